"""Small random denoisers, drawn by Hypothesis, as the graphs that PyTorch's exporter writes; and plans for them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

from edge_sampler.runtime.plan import Plan, nested

SIZE, LEVEL, SEEN = 4, 8, 3  # pixels of a side; widths of the noise embedding and of the condition
KINDS = (
    "attention",
    "conv",
    "film",
    "grouped",
    "norm",
    "normal_first",
    "projected",
    "residual",
    "rows",
    "shift",
    "silu",
)


@dataclass(frozen=True)
class Recipe:
    """What is drawn: layers in order, a seed for the weights, and whether there is a condition ``seen`` [batch, 3]."""

    layers: tuple[str, ...]
    seed: int
    channels: int
    groups: int
    conditional: bool

    def graph(self) -> ir.Model:
        """x [batch, 2, 4, 4], sigma [], and where it is conditional ``seen`` → denoised, preconditioned as in EDM."""
        return Drawing(self).model()

    def feed(self, count: int, seed: int = 0) -> dict[str, np.ndarray]:
        """``noise`` and the condition for so many samples."""
        rng = np.random.default_rng(seed)
        drawn = {"noise": rng.standard_normal((count, 2, SIZE, SIZE), np.float32)}
        return drawn | ({"seen": rng.standard_normal((count, SEEN), np.float32)} if self.conditional else {})


class Drawing:
    """A graph while it is drawn; every value has its shape, as the exporter leaves them."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.rng = recipe, np.random.default_rng(recipe.seed)
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []
        self.x = self.given("x", ["batch", 2, SIZE, SIZE])
        self.sigma = self.given("sigma", [])
        self.seen = self.given("seen", ["batch", SEEN])

    def given(self, name: str, shape: Sequence[int | str]) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))

    def add(
        self, op_type: str, inputs: Sequence[ir.Value], shape: Sequence[int | str | None], **attributes: Any
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        self.nodes.append(node)
        made = node.outputs[0]
        made.name, made.shape = f"value_{len(self.nodes)}", ir.Shape(shape)
        made.type = ir.TensorType(ir.DataType.INT64 if op_type in ("Shape",) else inputs[0].dtype or ir.DataType.FLOAT)
        return made

    def constant(self, array: Any) -> ir.Value:
        tensor = ir.tensor(np.asarray(array))
        value = ir.Value(
            name=f"weight_{len(self.weights)}",
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.weights.append(value)
        return value

    def weight(self, *shape: int, around: float = 0.0, scale: float | None = None) -> ir.Value:
        spread = 1 / math.sqrt(math.prod(shape[1:])) if scale is None else scale
        return self.constant((around + spread * self.rng.standard_normal(shape)).astype(np.float32))

    def number(self, value: float) -> ir.Value:
        return self.constant(np.float32(value))

    def sizes(self, *numbers: int) -> ir.Value:
        return self.constant(np.array(numbers, np.int64))

    def model(self) -> ir.Model:
        channels = self.recipe.channels
        square = self.add("Mul", [self.sigma, self.sigma], [])
        spread = self.add("Add", [square, self.number(0.25)], [])
        root = self.add("Sqrt", [spread], [])
        scaled = self.add("Div", [self.x, root], ["batch", 2, SIZE, SIZE])
        level = self.embedded()
        weights = [self.weight(channels, 2, 3, 3), self.weight(channels, scale=0.1)]
        h = self.add("Conv", [scaled, *weights], self.image, kernel_shape=[3, 3], pads=[1] * 4)
        for layer in self.recipe.layers:
            made: Callable[[ir.Value, ir.Value], ir.Value] = getattr(self, layer)
            h = made(h, level)
        weights = [self.weight(2, channels, 1, 1), self.weight(2, scale=0.1)]
        predicted = self.add("Conv", [h, *weights], ["batch", 2, SIZE, SIZE], kernel_shape=[1, 1])
        out = self.add("Div", [self.add("Mul", [self.sigma, self.number(0.5)], []), root], [])
        skip = self.add("Div", [self.number(0.25), spread], [])
        kept = self.add("Mul", [skip, self.x], ["batch", 2, SIZE, SIZE])
        changed = self.add("Mul", [out, predicted], ["batch", 2, SIZE, SIZE])
        denoised = self.add("Add", [kept, changed], ["batch", 2, SIZE, SIZE])
        denoised.name = "denoised"
        inputs = [self.x, self.sigma, *([self.seen] if self.recipe.conditional else [])]
        graph = ir.Graph(
            inputs,
            [denoised],
            nodes=self.nodes,
            initializers=[one for one in self.weights if one.uses()],
            opset_imports={"": 21},
            name="denoiser",
        )
        return ir.Model(graph, ir_version=10)

    @property
    def image(self) -> list[int | str]:
        return ["batch", self.recipe.channels, SIZE, SIZE]

    def embedded(self) -> ir.Value:
        """sigma → [1, 8]."""
        logarithm = self.add("Reshape", [self.add("Log", [self.sigma], []), self.sizes(1, 1)], [1, 1])
        angles = self.add("Mul", [logarithm, self.weight(1, LEVEL // 2, scale=1)], [1, LEVEL // 2])
        waves = [self.add(op, [angles], [1, LEVEL // 2]) for op in ("Sin", "Cos")]
        joined = self.add("Concat", waves, [1, LEVEL], axis=-1)
        return self.add("Tanh", [self.linear(joined, LEVEL, LEVEL, [1, LEVEL])], [1, LEVEL])

    def linear(self, value: ir.Value, width: int, to: int, shape: Sequence[int | str]) -> ir.Value:
        return self.add("Gemm", [value, self.weight(to, width), self.weight(to, scale=0.3)], shape, transB=1)

    def silu(self, h: ir.Value, level: ir.Value) -> ir.Value:
        return self.add("Mul", [h, self.add("Sigmoid", [h], self.image)], self.image)

    def conv(self, h: ir.Value, level: ir.Value, groups: int = 1, bias: bool = True) -> ir.Value:
        channels = self.recipe.channels
        weights = [self.weight(channels, channels // groups, 3, 3), *([self.weight(channels, scale=0.1)] * bias)]
        return self.add("Conv", [h, *weights], self.image, kernel_shape=[3, 3], pads=[1] * 4, group=groups)

    def grouped(self, h: ir.Value, level: ir.Value) -> ir.Value:
        return self.conv(h, level, groups=2, bias=False)

    def norm(self, h: ir.Value, level: ir.Value) -> ir.Value:
        weights = [self.weight(self.recipe.channels, around=around, scale=0.3) for around in (1.0, 0.0)]
        return self.add("GroupNormalization", [h, *weights], self.image, num_groups=self.recipe.groups, epsilon=1e-5)

    def residual(self, h: ir.Value, level: ir.Value) -> ir.Value:
        branch = self.conv(self.silu(self.norm(h, level), level), level)
        return self.add("Add", [h, branch], self.image)

    def projected(self, h: ir.Value, level: ir.Value) -> ir.Value:
        """Two residual blocks whose sums have a factor; the first one's skip path is a convolution too."""
        skip, branch = self.conv(h, level, bias=False), self.conv(self.silu(h, level), level)
        first = self.add("Mul", [self.add("Add", [skip, branch], self.image), self.number(0.75)], self.image)
        branch = self.conv(self.norm(first, level), level)
        return self.add("Add", [branch, self.add("Mul", [self.number(0.5), first], self.image)], self.image)

    def normal_first(self, h: ir.Value, level: ir.Value) -> ir.Value:
        """A norm that one 1×1 convolution reads, as attention begins in EDM's networks."""
        channels = self.recipe.channels
        weights = [self.weight(channels, channels, 1, 1), self.weight(channels, scale=0.1)]
        return self.add("Conv", [self.norm(h, level), *weights], self.image, kernel_shape=[1, 1])

    def rows(self, h: ir.Value, level: ir.Value) -> ir.Value:
        """A norm over channels, which stand last for it."""
        channels = self.recipe.channels
        last = self.add("Transpose", [h], ["batch", SIZE, SIZE, channels], perm=[0, 2, 3, 1])
        weights = [self.weight(channels, around=around, scale=0.3) for around in (1.0, 0.0)]
        normal = self.add("LayerNormalization", [last, *weights], ["batch", SIZE, SIZE, channels], axis=-1)
        return self.add("Transpose", [normal], self.image, perm=[0, 3, 1, 2])

    def shift(self, h: ir.Value, level: ir.Value) -> ir.Value:
        """A convolution and a shift for each channel, of the noise level alone."""
        channels = self.recipe.channels
        told = self.linear(level, LEVEL, channels, [1, channels])
        shift = self.add("Reshape", [told, self.sizes(1, channels, 1, 1)], [1, channels, 1, 1])
        return self.add("Add", [self.conv(h, level), shift], self.image)

    def film(self, h: ir.Value, level: ir.Value) -> ir.Value:
        """A factor for each channel, of the noise level and of the condition joined to it, where there is one."""
        channels, told, width, rows = self.recipe.channels, level, LEVEL, "1"
        if self.recipe.conditional:
            count = self.add("Shape", [self.x], [1], start=0, end=1)
            target = self.add("Concat", [count, self.sizes(LEVEL)], [2], axis=0)
            repeated = self.add("Expand", [level, target], ["batch", LEVEL])
            told = self.add("Concat", [repeated, self.seen], ["batch", LEVEL + SEEN], axis=-1)
            width, rows = LEVEL + SEEN, "batch"
        first = 1 if rows == "1" else rows
        factor = self.linear(self.add("Tanh", [told], [first, width]), width, channels, [first, channels])
        wide = self.add("Reshape", [factor, self.sizes(-1, channels, 1, 1)], [first, channels, 1, 1])
        return self.add("Mul", [h, self.add("Add", [wide, self.number(1.0)], [first, channels, 1, 1])], self.image)

    def attention(self, h: ir.Value, level: ir.Value) -> ir.Value:
        """Two heads over the pixels; keys are transposed as PyTorch writes that, in three steps."""
        channels, pixels, wide = self.recipe.channels, SIZE * SIZE, self.recipe.channels // 2
        flat = self.add("Reshape", [h, self.sizes(-1, channels, pixels)], ["batch", channels, pixels])
        tokens = self.add("Transpose", [flat], ["batch", pixels, channels], perm=[0, 2, 1])

        def projected() -> ir.Value:
            made = self.add("MatMul", [tokens, self.weight(channels, channels)], ["batch", pixels, channels])
            apart = self.add("Reshape", [made, self.sizes(-1, pixels, 2, wide)], ["batch", pixels, 2, wide])
            return self.add("Transpose", [apart], ["batch", 2, pixels, wide], perm=[0, 2, 1, 3])

        queries, keys, values = projected(), projected(), projected()
        three = self.add("Reshape", [keys, self.sizes(-1, pixels, wide)], [None, pixels, wide])
        turned = self.add("Transpose", [three], [None, wide, pixels], perm=[0, 2, 1])
        count = self.add("Shape", [keys], [2], start=0, end=2)
        target = self.add("Concat", [count, self.sizes(wide, pixels)], [4], axis=0)
        four = self.add("Reshape", [turned, target], ["batch", 2, wide, pixels])
        scores = self.add("MatMul", [queries, four], ["batch", 2, pixels, pixels])
        scaled = self.add("Mul", [scores, self.number(1 / math.sqrt(wide))], ["batch", 2, pixels, pixels])
        weights = self.add("Softmax", [scaled], ["batch", 2, pixels, pixels], axis=-1)
        seen = self.add("MatMul", [weights, values], ["batch", 2, pixels, wide])
        beside = self.add("Transpose", [seen], ["batch", pixels, 2, wide], perm=[0, 2, 1, 3])
        joined = self.add("Reshape", [beside, self.sizes(-1, pixels, channels)], ["batch", pixels, channels])
        out = self.add("MatMul", [joined, self.weight(channels, channels)], ["batch", pixels, channels])
        back = self.add("Transpose", [out], ["batch", channels, pixels], perm=[0, 2, 1])
        image = self.add("Reshape", [back, self.sizes(-1, channels, SIZE, SIZE)], self.image)
        return self.add("Add", [h, image], self.image)


def recipes() -> st.SearchStrategy[Recipe]:
    return st.builds(
        Recipe,
        layers=st.lists(st.sampled_from(KINDS), min_size=2, max_size=6).map(tuple),
        seed=st.integers(0, 2**16),
        channels=st.sampled_from([4, 8]),
        groups=st.sampled_from([1, 2, 4]),
        conditional=st.booleans(),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Two or three evaluations, perhaps at one noise level, with any weights; some clip, some begin with a mean.

    States are about as large as their noise level: of constants, norms would make rounding alone large.
    """
    sigmas = draw(st.lists(st.sampled_from([10.0, 2.0, 0.5, 0.1]), min_size=2, max_size=3))
    rng, afs, clip = np.random.default_rng(draw(st.integers(0, 99))), draw(st.booleans()), draw(st.booleans())
    table = []
    for k, level in enumerate([*sigmas, 1.0]):
        others = rng.standard_normal(afs + (1 + clip) * k) / 2
        table.append((level * rng.uniform(0.5, 1.5), *(level * others).tolist()))
    mean = nested(rng.standard_normal((2, SIZE, SIZE))) if afs else ()
    return Plan("any", tuple(sigmas), tuple(table), mean=mean, clip=1.0 if clip else 0.0)
