"""What the manifest says of an engine, and whether it fits a library and a GPU."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import parse_sizes

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # flavour → Python module
INSTALL = {
    "tensorrt": "install tensorrt (a Jetson's JetPack brings it; elsewhere: pip install tensorrt)",
    "tensorrt-rtx": "pip install tensorrt-rtx",
}
PRECISION = re.compile(r"[a-z0-9+-]+")  # the form of a name; export.precisions has them


@dataclass(frozen=True)
class Batch:
    """How many images an engine takes in one run, and how many it is tuned for."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise UserError(f"batch {self} is out of order; it must be MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX")

    def __str__(self) -> str:
        return str(self.max) if self.static else f"{self.min}:{self.opt}:{self.max}"

    @property
    def static(self) -> bool:
        return self.min == self.max

    @classmethod
    def parse(cls, text: str) -> "Batch":
        """``8``, or ``1:4:16``. Raises UserError for anything else."""
        return cls(*parse_sizes(text))


@dataclass(frozen=True)
class Engine:
    """One engine of a bundle."""

    file: str  # in the bundle
    flavour: str  # a key of LIBRARIES
    version: str  # of the library that built it
    targets: tuple[str, ...]  # compute capabilities, as sm86
    precision: str
    batch: Batch
    loop: bool = False  # one evaluation, in a loop, instead of all of them unrolled
    axes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict, hash=False)  # least, usual, largest sizes

    def __post_init__(self) -> None:
        if self.flavour not in LIBRARIES or not PRECISION.fullmatch(self.precision):
            raise ValueError(f"engine {self.file} is of {self.flavour} in {self.precision}")

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> "Engine":
        """As ``record`` wrote it. Raises KeyError, TypeError, ValueError or UserError when damaged."""
        batch, targets = Batch(**recorded["batch"]), tuple(recorded["targets"])
        axes = {
            name: (int(least), int(usual), int(most)) for name, (least, usual, most) in recorded.get("axes", {}).items()
        }
        return cls(**{**recorded, "targets": targets, "batch": batch, "axes": axes})

    def record(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"axes": {name: list(sizes) for name, sizes in self.axes.items()}}

    def unfit(self, version: str, capability: str | None) -> str | None:
        """Why this engine cannot run with that version of its library, on that GPU (None: not asked); or None.

        An engine is machine code for some GPUs, in a format of one release of its library.
        """
        if version != self.version:
            return f"{self.file} needs {self.flavour} {self.version}, and {version} is installed: build it again"
        if capability not in (None, *self.targets):
            return f"{self.file} was built for {', '.join(self.targets)}, and this GPU is {capability}: build it again"
        return None
