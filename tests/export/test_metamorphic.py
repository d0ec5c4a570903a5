"""What must not change what a network computes does not, for any small network that Hypothesis draws."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
from hypothesis import example, given, settings

from edge_sampler.export.assemble import simplify
from edge_sampler.export.precision import lower_precision, round_activations
from edge_sampler.export.roll import roll
from edge_sampler.export.save import save_checked
from edge_sampler.export.tensorrt_graph import prepare_for_tensorrt
from edge_sampler.export.unroll import unroll
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.plan import Plan, sample
from tests.conftest import relative
from tests.export.generated import KINDS, Recipe, plans, recipes
from tests.export.networks import euler

ROUNDING = 1e-4  # of float32, where a sum is taken in another order
EVERY = Recipe(KINDS, 0, 8, 2, True)
TWO = euler([10.0, 0.5])
few = settings(max_examples=12, derandomize=True, database=None)
Feed = Mapping[str, np.ndarray]


@contextmanager
def loaded(model: ir.Model) -> Iterator[Callable[[Feed], np.ndarray]]:
    """What runs the graph, as it is written into a file: its one output by its inputs."""
    with TemporaryDirectory() as folder:
        save_checked(model, Path(folder) / "graph.onnx")
        with Session(Path(folder) / "graph.onnx") as session:
            yield lambda feed: next(iter(session.run(feed).values()))


def run(model: ir.Model, feed: Feed) -> np.ndarray:
    with loaded(model) as made:
        return made(feed)


def lowered(recipe: Recipe) -> ir.Model:
    """As `export` hands a graph on."""
    graph = recipe.graph()
    simplify(graph)
    return graph


@given(recipes())
@example(EVERY)
@few
def test_graphs_for_engines_compute_the_same(recipe: Recipe) -> None:
    drawn = recipe.feed(3)
    feed = {"x": 2 * drawn.pop("noise"), "sigma": np.array(2.0, np.float32), **drawn}
    expected = run(recipe.graph(), feed)
    assert relative(run(lowered(recipe), feed), expected) < ROUNDING
    for batch, group_norm in ((None, True), (3, True), (None, False)):
        graph = lowered(recipe)
        prepare_for_tensorrt(graph, batch, group_norm)
        assert relative(run(graph, feed), expected) < ROUNDING, (batch, group_norm)


@given(recipes(), plans())
@example(EVERY, TWO)
@few
def test_one_graph_is_the_loop(recipe: Recipe, plan: Plan) -> None:
    """Whatever is folded of the noise level and of conditions, and whatever the table says."""
    feed = recipe.feed(2)
    noise, told = feed["noise"], {name: value for name, value in feed.items() if name != "noise"}
    with loaded(recipe.graph()) as denoise:
        expected = sample(lambda x, s: denoise({"x": x, "sigma": np.array(s, np.float32), **told}), noise, plan)
    for shape in (unroll, roll):
        assert relative(run(shape(lowered(recipe), plan), feed), expected) < ROUNDING, shape.__name__


@given(recipes())
@example(EVERY)
@few
def test_lower_precision_rounds_and_no_more(recipe: Recipe) -> None:
    feed = recipe.feed(2)
    expected = run(unroll(lowered(recipe), TWO), feed)
    for lower, precision, bound in ((lower_precision, "fp16", 0.01), (round_activations, "bf16", 0.1)):
        graph = unroll(lowered(recipe), TWO)
        lower(graph, precision)
        assert 0 < relative(run(graph, feed), expected) < bound, precision


@given(recipes())
@example(EVERY)
@few
def test_a_sample_is_its_own(recipe: Recipe) -> None:
    """Whoever else is in its batch, at whichever place, in whichever thread."""
    feed = recipe.feed(4)
    order = np.array([2, 0, 3, 1])
    with loaded(unroll(lowered(recipe), TWO)) as made:
        together = made(feed)
        turned = made({name: value[order] for name, value in feed.items()})
        assert relative(turned, together[order]) < ROUNDING
        for row in range(4):
            assert (
                relative(made({name: value[row : row + 1] for name, value in feed.items()}), together[row]) < ROUNDING
            )
        with ThreadPoolExecutor(4) as threads:
            for other in threads.map(made, [feed] * 8):
                np.testing.assert_array_equal(other, together)


def test_another_process_makes_the_same_bits(tmp_path: Path) -> None:
    save_checked(unroll(lowered(EVERY), TWO), tmp_path / "graph.onnx")
    np.savez(tmp_path / "feed.npz", **EVERY.feed(3))  # type: ignore[arg-type]
    program = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from edge_sampler.runtime.backends.onnxrt import Session\n"
        "folder = Path(sys.argv[1])\n"
        "with Session(folder / 'graph.onnx') as session:\n"
        "    np.save(folder / 'made.npy', session.run(dict(np.load(folder / 'feed.npz')))['images'])"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    with Session(tmp_path / "graph.onnx") as session:
        np.testing.assert_array_equal(np.load(tmp_path / "made.npy"), session.run(EVERY.feed(3))["images"])
