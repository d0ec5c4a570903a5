"""Makes the plans that ship beside the weights: fitted by default and refined, for each model and NFE.

python -m calibration ship                            # those that lack, or whose model has changed
python -m calibration ship --model edm-digits --nfe 10
"""

from dataclasses import dataclass, replace
from pathlib import Path

from edge_sampler import models
from edge_sampler.calibration.arguments import add_cache_argument, cache
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.refinement import ITERATIONS
from edge_sampler.calibration.settings import Settings
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.progress import bar
from edge_sampler.models.shipped import PLANS, plan_file
from edge_sampler.runtime.command_line import Parser, whole_numbers
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.output import check_writable, writable
from edge_sampler.runtime.plan import Plan


@dataclass(frozen=True)
class Shipping:
    """Of which evaluations a model has plans, and for which factor of guidance.

    Plans of so many evaluations as ``rms`` has are refined for the RMS error of all images, the others for the mean.
    """

    nfes: tuple[int, ...] = (3, 4, 5, 6, 8, 10)
    guidance: float = 1.0
    rms: tuple[int, ...] = ()

    def settings(self, nfe: int) -> Settings:
        return Settings(nfe, refine=ITERATIONS, refine_error="rms" if nfe in self.rms else "mean")


SHIPPING = {
    "edm-digits": Shipping(rms=(3,)),
    "flow-digits": Shipping(),
    "edm-fashion": Shipping(rms=(6,)),
    "edm-fashion-cond": Shipping(),
    "ddim-fashion": Shipping(rms=(3, 4)),
    "flow-emoji": Shipping((3, 4, 5, 6), guidance=3.0),
}


def main() -> None:
    parser = Parser(prog="python -m calibration ship", description=__doc__)
    parser.add_argument("--model", action="append", help=f"of the zoo (default: {', '.join(SHIPPING)})")
    parser.add_argument("--nfe", type=whole_numbers, help="default: those that ship")
    parser.add_argument("--out", type=Path, default=PLANS, help="a folder (default: the package's own)")
    add_cache_argument(parser)
    arguments = parser.parse_args()
    kept = cache(arguments)
    lacking = list[tuple[Denoiser, Settings, Path]]()
    for name in arguments.model or SHIPPING:
        shipping = SHIPPING.get(name, Shipping())
        model = conditioned(models.load(name), guidance=shipping.guidance)
        for nfe in arguments.nfe or shipping.nfes:
            path, settings = plan_file(name, nfe, shipping.guidance, arguments.out), shipping.settings(nfe)
            if not fits(path, model, settings):
                check_writable(path, force=True)  # before the fits
                lacking.append((model, settings, path))
    for model, settings, path in lacking:
        plan = calibrate(model, settings, bar, kept)
        assert plan.report is not None
        with writable(path, force=True) as new:
            replace(plan, report=replace(plan.report, seconds=0.0)).save(new)  # what differs from run to run
        print(f"{path.name}: {plan.solver}, {plan.report.heldout_rms_error:.4f} RMS")


def fits(path: Path, model: Denoiser, settings: Settings) -> bool:
    """Whether that file has a plan of this model, as it is now, that was refined for that error."""
    try:
        report = Plan.load(path).report
    except UserError:
        return False
    refined_for = report and report.settings.get("refine_error", "mean")  # plans of before have the mean's
    return report is not None and (report.fingerprint, refined_for) == (model.spec.fingerprint, settings.refine_error)
