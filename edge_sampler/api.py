"""What the command lines do, as functions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.settings import Settings, noises_for
from edge_sampler.export.build_engine import engine_for
from edge_sampler.export.extend import Additions, add
from edge_sampler.export.precisions import PRECISIONS, QUANTISED
from edge_sampler.export.sign import Signer
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.families.base import Lora, Options
from edge_sampler.models.loading import load
from edge_sampler.models.progress import ProgressBars, silent
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.condition import Axis
from edge_sampler.runtime.engine_record import LIBRARIES, Batch
from edge_sampler.runtime.errors import UserError
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
    """Loads a denoiser by name, file, folder or address, or by the function that makes it.

    ``adapt`` makes a denoiser of a network that is there. ``guided`` and ``built_in`` build guidance, a class or
    another condition into one; ``with_examples`` gives it texts and other conditions to be fitted on.

    Args:
        name: a name that ``python -m models list`` shows; a checkpoint that describes itself (EDM's or EDM2's .pkl,
            .safetensors), by path or URL; FILE.json, an architecture; a folder of a diffusers pipeline or of a lerobot
            policy, or OWNER/NAME of a pipeline on the hub; FILE.onnx, or a bundle's folder; or FILE.py:FUNCTION, which
            is run.
        weights: the checkpoint to load, in place of the model's own.
        random_weights: whether weights are random: a dry run.
        size: height and width in pixels, of a text-to-image pipeline; None: its own.
        vae: a folder with the decoder of latents, of a text-to-image pipeline or of EDM2's latents; None: its own.
        loras: LoRA weights to merge into a diffusers pipeline, in this order.

    Returns:
        The denoiser in evaluation mode, on the CPU, float32.

    Raises:
        UserError: for an unknown name, a bad file, weights of another architecture, or an option that does not apply.

    Examples:
        >>> model = edge_sampler.load_model("edm-digits")
        >>> model.spec.shape, model.spec.sigma_max
        ((1, 8, 8), 80.0)
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
    """Fits a sampler to a model: Improved Integration Approximation (arXiv 2304.11328).

    Args:
        model: the denoiser, on the device that is to fit.
        settings: all that can be chosen, in place of ``nfe``, ``solver`` and ``refine``.
        nfe: network evaluations of the sampler, exactly; 1 or more.
        solver: "auto", whichever measures best for this model, or a name, such as "ddim" or "iia-ipndm".
        refine: iterations of joint refinement after the fit, at the most.
        towards: the model whose converged images are aimed at, where ``model`` is a worse one of it.
        cache: a folder to keep results in, so that a killed fit goes on where it was; None: nothing is kept.
        progress: what shows how far it is: ``edge_sampler.models.progress.bar``, or by default nothing.

    Returns:
        The plan. Its ``report`` tells what was fitted, and its error on held-out noises; a fixed solver has none.

    Raises:
        UserError: for a value out of range, for both or neither of ``nfe`` and ``settings``, and for a model whose
            conditions have no examples.

    Examples:
        >>> settings = edge_sampler.Settings(nfe=2, solver="iia-ddim", batch=32, heldout=16)
        >>> fitted = edge_sampler.fit(model, settings)
        >>> [step.error_after <= step.error_before for step in fitted.report.steps]
        [True, True]
    """
    if (settings is None) == (nfe is None):
        raise UserError("give either nfe or settings")
    batch, heldout = noises_for(refine)
    chosen = settings or Settings(nfe or 0, solver, batch=batch, heldout=heldout, refine=refine)
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
    sign: Signer | None = None,
) -> Bundle:
    """Builds an engine of a bundle's graph and adds it, with its hash and the log of its build.

    Args:
        bundle: its folder.
        flavour: tensorrt-rtx, which builds without a GPU, or tensorrt, which builds on the GPU that it is for.
        targets: compute capabilities, such as "sm86,sm89"; None: TensorRT-RTX's own, or this GPU.
        precision: fp32, fp16, bf16, int8, int8+fp16 or fp8.
        batch: a number, or MIN:OPT:MAX.
        axes: the same for each axis with a name; None: all sizes that the bundle takes.
        loop: one evaluation in a loop, instead of all of them unrolled.
        max_error: the largest RMS error of the images that the precision may cost, in the data's units; eight bits
            leave out layers to hold it. None: any.
        refit: of eight bits: whether the plan is refined with the rounding in the loop, by the bundle's denoiser.onnx.
        sign: of ``signer``, what signs the bundle anew; one that is signed asks for it.

    Returns:
        The bundle with the engine.

    Raises:
        UserError: for a missing library, an unknown name, and a value out of range; then nothing is added.
        BoundError: beyond ``max_error``; then nothing is added.

    Examples:
        >>> bundle = edge_sampler.add_engine("shrink", targets="sm89", precision="fp16")
        >>> [(engine.flavour, engine.precision, engine.targets) for engine in bundle.engines]
        [('tensorrt-rtx', 'fp16', ('sm89',))]
    """
    precisions = ("fp32", *PRECISIONS, *QUANTISED)
    for what, name, known in (("flavour", flavour, tuple(LIBRARIES)), ("precision", precision, precisions)):
        if name not in known:
            raise UserError(f"unknown {what} {name!r}; known: {', '.join(known)}")
    if refit and precision not in QUANTISED:
        raise UserError(f"refit is for {', '.join(QUANTISED)}, and precision is {precision}")
    engine = engine_for(flavour, targets, precision, Batch.parse(batch), loop)
    sizes = {name: Axis.parse(text) for name, text in (axes or {}).items()}
    add(Bundle.open(bundle), Additions(precision, max_error, engine, sizes, refit=refit), sign=sign)
    return Bundle.open(bundle)
