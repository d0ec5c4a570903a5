"""What the command lines do, as functions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.settings import Settings
from edge_sampler.export.build_engine import engine_for
from edge_sampler.export.extend import Additions, add
from edge_sampler.export.precisions import QUANTISED
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.families.base import Lora, Options
from edge_sampler.models.loading import load
from edge_sampler.models.progress import ProgressBars, silent
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.engine_record import Batch
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Axis
from edge_sampler.runtime.plan import Plan


def load_model(
    name: str,
    weights: str | Path | None = None,
    *,
    random_weights: bool = False,
    size: tuple[int, int] | None = None,
    vae: str | Path | None = None,
    loras: Sequence[Lora] = (),
) -> Denoiser:
    """A denoiser by name, file, folder, address or FILE.py:FUNCTION, in evaluation mode, on the CPU, float32.

    ``python -m models list`` shows the names. ``weights`` is the checkpoint to load instead of the model's own;
    ``random_weights`` makes a dry run. ``size``, height and width in pixels, and ``vae``, a folder, are chosen for a
    text-to-image pipeline, ``vae`` for EDM2's latents too; ``loras`` are merged into a pipeline's weights. ``adapt``
    makes a denoiser of a network that is there. ``guided`` and ``built_in`` build guidance, a class or another
    condition into it; ``with_examples`` gives it texts and other conditions to be fitted on. Raises UserError for an
    unknown name, a bad file, or weights of another architecture.
    """
    return load(name, weights, random_weights, options=Options(size, Path(vae) if vae else None, tuple(loras)))


def fit(
    model: Denoiser,
    settings: Settings | None = None,
    *,
    nfe: int | None = None,
    solver: str = "auto",
    refine: int = 0,
    towards: Denoiser | None = None,
    cache: str | Path | None = None,
    progress: ProgressBars = silent,
) -> Plan:
    """The plan of a sampler with exactly ``nfe`` network evaluations, its coefficients fitted (arXiv 2304.11328).

    Args:
        model: on the device that is to fit.
        settings: all that can be chosen, in place of ``nfe``, ``solver`` and ``refine``.
        solver: "auto", whichever measures best for this model, or a name, such as "ddim" or "iia-ipndm".
        refine: iterations of joint refinement after the fit, at the most.
        towards: the model whose converged images are aimed at, where ``model`` is a worse one of it.
        cache: a folder to keep results in, so that a killed fit goes on where it was; None: nothing is kept.
        progress: ``edge_sampler.models.progress.bar`` shows bars.

    Returns a plan; ``plan.report`` tells what was fitted, and its error on held-out noises. Raises UserError for a
    value out of range, and for a model whose conditions have no examples.
    """
    if (settings is None) == (nfe is None):
        raise UserError("give either nfe or settings")
    chosen = settings or Settings(nfe or 0, solver, refine=refine)
    return calibrate(model, chosen, progress, Cache(Path(cache)) if cache else NO_CACHE, towards)


def add_engine(
    bundle: str | Path,
    flavour: str = "tensorrt-rtx",
    *,
    targets: str | None = None,
    precision: str = "fp32",
    batch: str = "1",
    axes: Mapping[str, str] | None = None,
    loop: bool = False,
    max_error: float | None = None,
    refit: bool = False,
) -> Bundle:
    """Builds an engine of a bundle's graph and adds it, with its hash and the log of its build.

    Args:
        flavour: tensorrt-rtx, which builds without a GPU, or tensorrt, which builds on the GPU that it is for.
        targets: compute capabilities, such as "sm86,sm89"; None: TensorRT-RTX's own, or this GPU.
        precision: fp32, fp16, bf16, int8, int8+fp16 or fp8.
        batch: a number, or MIN:OPT:MAX.
        axes: the same for each axis with a name; by default all sizes that the bundle takes.
        loop: one evaluation in a loop, instead of all of them unrolled.
        max_error: the largest RMS error that the precision may cost; eight bits leave out layers to hold it.
        refit: of eight bits: whether the plan is refined with the rounding in the loop, by the bundle's denoiser.onnx.

    Returns the bundle with the engine. Raises UserError for a missing library or an unknown target, BoundError beyond
    ``max_error``; then nothing is added.
    """
    if refit and precision not in QUANTISED:
        raise UserError(f"refit is for {', '.join(QUANTISED)}, and precision is {precision}")
    engine = engine_for(flavour, targets, precision, Batch.parse(batch), loop)
    sizes = {name: Axis.parse(text) for name, text in (axes or {}).items()}
    add(Bundle.open(bundle), Additions(precision, max_error, engine, sizes, refit=refit))
    return Bundle.open(bundle)
