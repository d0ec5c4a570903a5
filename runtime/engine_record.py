"""What the manifest says of an engine, and whether it fits a library and a GPU."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edge_sampler.runtime.condition import parse_sizes
from edge_sampler.runtime.errors import UserError

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # flavour → Python module
INSTALL = {
    "tensorrt": "install tensorrt (a Jetson's JetPack brings it; elsewhere: pip install tensorrt)",
    "tensorrt-rtx": "pip install tensorrt-rtx",
}
MOST_BATCH = 2**20  # samples in one run, of an engine or a graph
PRECISION = re.compile(r"[a-z0-9+-]+")  # the form of a name; export.precisions has them


@dataclass(frozen=True)
class Batch:
    """The number of images that an engine takes in one run.

    Args:
        min: the smallest number.
        opt: the number for which it is tuned.
        max: the largest number.

    Raises:
        UserError: where they are not in order, below 1, or beyond a million.

    Examples:
        >>> from edge_sampler.runtime.engine_record import Batch
        >>> str(Batch.parse("1:4:16")), Batch.parse("8").static
        ('1:4:16', True)
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max <= MOST_BATCH:
            order = f"MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX <= {MOST_BATCH:,}"
            raise UserError(f"batch {self} is out of order; it must be {order}")

    def __str__(self) -> str:
        return str(self.max) if self.static else f"{self.min}:{self.opt}:{self.max}"

    @property
    def static(self) -> bool:
        """Whether it takes that many and no other number."""
        return self.min == self.max

    @classmethod
    def parse(cls, text: str) -> "Batch":
        """A batch as command lines have it.

        Args:
            text: ``8``, or ``1:4:16``.

        Returns:
            The batch.

        Raises:
            UserError: for anything else.
        """
        return cls(*parse_sizes(text))


@dataclass(frozen=True)
class Engine:
    """One engine of a bundle.

    Args:
        file: its file in the bundle.
        flavour: "tensorrt" or "tensorrt-rtx".
        version: the version of the library that built it.
        targets: compute capabilities, such as "sm86".
        precision: the network's precision.
        batch: the number of images in one run.
        loop: whether it loops over one evaluation, in place of all evaluations in a row.
        axes: the smallest, usual and largest size of each named axis.

    Raises:
        ValueError: for another flavour, and for a bad precision's name.

    Examples:
        >>> from edge_sampler.runtime.engine_record import Batch, Engine
        >>> engine = Engine("engines/one.engine", "tensorrt-rtx", "1.7", ("sm86", "sm89"), "fp16", Batch(1, 1, 4))
        >>> engine.unfit("1.7", "sm89"), Engine.read(engine.record()) == engine
        (None, True)
        >>> engine.unfit("1.7", "sm120")
        'engines/one.engine was built for sm86, sm89, and this GPU is sm120: build it again'
    """

    file: str
    flavour: str
    version: str
    targets: tuple[str, ...]
    precision: str
    batch: Batch
    loop: bool = False
    axes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.flavour not in LIBRARIES or not PRECISION.fullmatch(self.precision):
            raise ValueError(f"engine {self.file} is of {self.flavour} in {self.precision}")

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> "Engine":
        """The engine of a manifest.

        Args:
            recorded: what ``record`` made.

        Returns:
            The engine.

        Raises:
            KeyError, TypeError, ValueError, UserError: for anything else.
        """
        batch, targets = Batch(**recorded["batch"]), tuple(recorded["targets"])
        axes = {
            name: (int(least), int(usual), int(most)) for name, (least, usual, most) in recorded.get("axes", {}).items()
        }
        return cls(**{**recorded, "targets": targets, "batch": batch, "axes": axes})

    def record(self) -> dict[str, Any]:
        """As a manifest holds it.

        Returns:
            JSON values.
        """
        return asdict(self) | {"axes": {name: list(sizes) for name, sizes in self.axes.items()}}

    def unfit(self, version: str, capability: str | None) -> str | None:
        """Why this engine cannot run: it is machine code for some GPUs, in a format of one release of its library.

        Args:
            version: of the library that is there.
            capability: of the GPU, such as "sm89"; None: not asked.

        Returns:
            One line for people, or None where it can.
        """
        if version != self.version:
            return f"{self.file} needs {self.flavour} {self.version}, and {version} is installed: build it again"
        if capability not in (None, *self.targets):
            return f"{self.file} was built for {', '.join(self.targets)}, and this GPU is {capability}: build it again"
        return None
