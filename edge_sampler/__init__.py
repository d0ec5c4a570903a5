"""Few-step diffusion samplers: fitted, exported as one ONNX graph, and run without PyTorch.

    import edge_sampler

    model = edge_sampler.load_model("edm-digits")          # or edge_sampler.adapt(network, …)
    plan = edge_sampler.fit(model, nfe=6)
    edge_sampler.export_bundle(model, plan, "digits")
    with edge_sampler.load("digits") as sampler:           # NumPy and ONNX Runtime from here on
        images = sampler.sample(seeds=range(64))

A device needs ``edge_sampler.runtime`` alone; ``models``, ``calibration`` and ``export`` need PyTorch.
Names are imported when they are asked for.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sampler import calibration, export, models, runtime
    from edge_sampler.api import add_engine, fit, load_model
    from edge_sampler.calibration.settings import Settings
    from edge_sampler.export.assemble import Form, export_bundle
    from edge_sampler.models.conditioned import Branch, Guided, Pinned, built_in, guided
    from edge_sampler.models.denoiser import Denoiser
    from edge_sampler.models.families.base import Lora
    from edge_sampler.models.own import Decoder, Encoder, adapt, with_examples
    from edge_sampler.runtime.bundle import Bundle
    from edge_sampler.runtime.compare import compare
    from edge_sampler.runtime.errors import UserError
    from edge_sampler.runtime.inputs import Condition, Output
    from edge_sampler.runtime.plan import Plan
    from edge_sampler.runtime.sampler import Sampler, load
    from edge_sampler.runtime.text import Text

HOMES = {
    "Branch": "models.conditioned",
    "Bundle": "runtime.bundle",
    "Condition": "runtime.inputs",
    "Decoder": "models.own",
    "Denoiser": "models.denoiser",
    "Encoder": "models.own",
    "Form": "export.assemble",
    "Guided": "models.conditioned",
    "Lora": "models.families.base",
    "Output": "runtime.inputs",
    "Pinned": "models.conditioned",
    "Plan": "runtime.plan",
    "Sampler": "runtime.sampler",
    "Settings": "calibration.settings",
    "Text": "runtime.text",
    "UserError": "runtime.errors",
    "adapt": "models.own",
    "add_engine": "api",
    "built_in": "models.conditioned",
    "compare": "runtime.compare",
    "export_bundle": "export.assemble",
    "fit": "api",
    "guided": "models.conditioned",
    "load": "runtime.sampler",
    "load_model": "api",
    "with_examples": "models.own",
}
__all__ = [
    "Branch",
    "Bundle",
    "Condition",
    "Decoder",
    "Denoiser",
    "Encoder",
    "Form",
    "Guided",
    "Lora",
    "Output",
    "Pinned",
    "Plan",
    "Sampler",
    "Settings",
    "Text",
    "UserError",
    "adapt",
    "add_engine",
    "built_in",
    "calibration",
    "compare",
    "export",
    "export_bundle",
    "fit",
    "guided",
    "load",
    "load_model",
    "models",
    "runtime",
    "with_examples",
]

_here = Path(__file__).parent
if not (_here / "runtime").is_dir() and (_here.parent / "pyproject.toml").is_file():
    __path__.append(str(_here.parent))  # a checkout, where the rooms stand beside this folder


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in HOMES:
        return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    return import_module(f"{__name__}.{name}")
