"""Few-step diffusion samplers: fitted, exported as one ONNX graph, and run without PyTorch.

    import edge_sampler

    with edge_sampler.load("artifacts/edm-digits-iia-ddim-afs-nfe10") as sampler:
        images = sampler.sample(seeds=range(64))

A device needs ``edge_sampler.runtime`` alone; ``models``, ``calibration`` and ``export`` need PyTorch.
Names are imported when they are asked for.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sampler import calibration, export, models, runtime
    from edge_sampler.models.own import adapt
    from edge_sampler.runtime.errors import UserError
    from edge_sampler.runtime.sampler import Sampler, load

__all__ = ["Sampler", "UserError", "adapt", "calibration", "export", "load", "models", "runtime"]
HOMES = {"Sampler": "runtime.sampler", "UserError": "runtime.errors", "adapt": "models.own", "load": "runtime.sampler"}

_here = Path(__file__).parent
if not (_here / "runtime").is_dir() and (_here.parent / "pyproject.toml").is_file():
    __path__.append(str(_here.parent))  # a checkout, where the rooms stand beside this folder


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in HOMES:
        return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    return import_module(f"{__name__}.{name}")
