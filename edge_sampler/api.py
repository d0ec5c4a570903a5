"""What the command lines do, as functions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.settings import Settings
from edge_sampler.export.build_engine import engine_for
from edge_sampler.export.extend import Additions, add
from edge_sampler.export.sign import Signer
from edge_sampler.models.arguments import check_kinds
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

    ``adapt`` makes a denoiser from a network in memory. ``guided`` and ``built_in`` build guidance, a class or another
    condition into a denoiser. ``with_examples`` gives it texts and other conditions for the fit.

    Args:
        name: a name that ``python -m models list`` shows; a checkpoint that describes itself (EDM's or EDM2's .pkl,
            .safetensors), by path or URL; FILE.json, an architecture; a folder of a diffusers pipeline or of a lerobot
            policy, or OWNER/NAME of a pipeline on the hub; FILE.onnx, or a bundle's folder; or FILE.py:FUNCTION. This
            runs FILE.py.
        weights: the checkpoint to load, in place of the model's own.
        random_weights: whether to use random weights, for a first try.
        size: height and width in pixels of a text-to-image pipeline's images; None: the pipeline's own.
        vae: a folder with the decoder for a text-to-image pipeline, or for EDM2's latents; None: the model's own.
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
    solver: str | None = None,
    refine: int | None = None,
    towards: Denoiser | None = None,
    cache: str | Path | None = None,
    progress: ProgressBars = silent,
) -> Plan:
    """Fits a sampler to a model: Improved Integration Approximation (arXiv 2304.11328).

    Args:
        model: the denoiser, on the device that runs the fit.
        settings: all options of the fit, in place of ``nfe``, ``solver`` and ``refine``.
        nfe: the exact number of the sampler's network evaluations, 1 or more.
        solver: a name, such as "ddim" or "iia-ipndm", or "auto", as None is: what ``Settings`` says.
        refine: the largest number of iterations of joint refinement after the fit; None: what ``Settings`` has.
        towards: the model whose converged images the fit aims at, if ``model`` is a worse form of it.
        cache: a folder for results, so that a killed fit can go on; None: keeps nothing.
        progress: shows the progress, such as ``edge_sampler.models.progress.bar``; by default nothing.

    Returns:
        The plan. Its ``report`` describes the fit, and has the error on held-out noises; a fixed solver has no report.

    Raises:
        UserError: for a value out of range, for neither ``nfe`` nor ``settings``, for one of their options beside
            ``settings``, and for a model whose conditions have no examples.

    Examples:
        >>> settings = edge_sampler.Settings(nfe=2, solver="iia-ddim", fit_batch=32, heldout=16)
        >>> fitted = edge_sampler.fit(model, settings)
        >>> [step.error_after <= step.error_before for step in fitted.report.steps]
        [True, True]
    """
    options: dict[str, Any] = {"nfe": nfe, "solver": solver, "refine": refine}
    given = {name: value for name, value in options.items() if value is not None}
    if settings is not None and given:
        raise UserError(f"{', '.join(given)} beside settings: give either, since settings say all of a fit")
    if settings is None and nfe is None:
        raise UserError("give either nfe or settings")
    settings = settings or Settings(**given)
    check_kinds({"settings": settings, "model": model, "towards": towards}, fit)
    return calibrate(model, settings, progress, Cache(Path(cache)) if cache else NO_CACHE, towards)


def add_engine(
    bundle: str | Path,
    flavour: str = "tensorrt-rtx",
    *,
    targets: str | None = None,
    precision: str = "fp32",
    batch: str | int = "1",
    axes: Mapping[str, str | int] | None = None,
    loop: bool = False,
    max_error: float | None = None,
    refit: bool = False,
    sign: Signer | None = None,
) -> Bundle:
    """Builds an engine from a bundle's graph and adds it, with its hash and its build log.

    Args:
        bundle: the bundle's folder.
        flavour: tensorrt-rtx, which builds without a GPU, or tensorrt, which builds for this machine's GPU.
        targets: compute capabilities, such as "sm86,sm89"; None: TensorRT-RTX's defaults, or this GPU.
        precision: fp32, fp16, bf16, int8, int8+fp16 or fp8.
        batch: the samples in one run, as a number, or MIN:OPT:MAX.
        axes: the same for each named axis; None: all sizes that the bundle takes.
        loop: whether to build a loop over one evaluation, in place of all evaluations in a row.
        max_error: the largest RMS change of the images, in the data's units, that the precision may cause, above 0;
            eight bits leave out layers to hold it. None: no bound.
        refit: whether to refine the plan while layers are rounded, by the bundle's denoiser.onnx; for eight bits only.
        sign: a signer from ``signer``, which signs the bundle again; a signed bundle requires it.

    Returns:
        The bundle with the engine.

    Raises:
        UserError: for a missing library, an unknown name, and a value out of range; the bundle does not change.
        BoundError: beyond ``max_error``; the bundle does not change.

    Examples:
        >>> bundle = edge_sampler.add_engine("shrink", targets="sm89", batch="1:4:16")
        >>> [(engine.flavour, engine.precision, engine.targets) for engine in bundle.engines]
        [('tensorrt-rtx', 'fp32', ('sm89',))]
    """
    additions = Additions(precision, max_error, refit=refit)
    if flavour not in LIBRARIES:
        raise UserError(f"unknown flavour {flavour!r}; known: {', '.join(LIBRARIES)}")
    engine = engine_for(flavour, targets, precision, Batch.parse(str(batch)), loop)
    sizes = {name: Axis.parse(str(size)) for name, size in (axes or {}).items()}
    add(Bundle.open(bundle), replace(additions, engine=engine, axes=sizes), sign=sign)
    return Bundle.open(bundle)
