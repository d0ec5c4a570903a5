"""The plan of a quantised sampler: the bundle's, refined with the rounding in the loop (``calibrate.refit``)."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from edge_sampler.calibration.calibrate import refit
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.calibration.forecast import announce_refit
from edge_sampler.calibration.settings import Settings
from edge_sampler.export.evaluations import quantised_evaluations
from edge_sampler.export.precisions import QUANTISED
from edge_sampler.export.quantised import Refit
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.onnx_denoiser import of_bundle
from edge_sampler.models.progress import bar
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.cache_folder import cache_folder
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan
from edge_sampler.runtime.scratch import scratch

REFIT = Settings(nfe=1, fit_batch=128, heldout=128, refine=2)


def refitted(
    model: Denoiser,
    cache: Cache,
    bundle: Bundle,
    precision: str,
    largest: Mapping[str, float],
    like: Settings = REFIT,
) -> Plan:
    """The bundle's plan, refined for evaluations in one of ``QUANTISED`` with these scales.

    ``model`` is the one that the bundle was made of. Seed, temperature and reference steps are those of its fit, and
    other settings those of ``like``. What it takes is told before, on standard error.
    """
    fitted = bundle.plan.report.settings if bundle.plan.report else {}
    kept = {name: fitted[name] for name in ("seed", "temperature", "reference_steps") if name in fitted}
    settings = replace(like, nfe=bundle.plan.nfe, **kept)
    with scratch() as folder:
        evaluations = quantised_evaluations(bundle, model, QUANTISED[precision], largest, folder)
        announce_refit(model, evaluations, bundle.plan, settings)
        plan = refit(model, evaluations, bundle.plan, settings, bar, cache)
    assert plan.report
    recorded = bundle.manifest["model"]["fingerprint"]  # denoiser.onnx has another, and the same answers
    return replace(plan, report=replace(plan.report, fingerprint=recorded))


def refit_of(bundle: Bundle) -> Refit:
    """``refitted`` by the bundle's own denoiser.onnx. Raises UserError where its conditions have no examples."""
    model = of_bundle(bundle)
    try:
        model.draw_raw([0])
    except UserError as error:
        raise UserError(
            f"--refit asks for examples of {', '.join(bundle.inputs.conditions)}, and a bundle holds too few: name it "
            "where the bundle is exported"
        ) from error
    return partial(refitted, model, Cache(cache_folder() / "calibration"))
