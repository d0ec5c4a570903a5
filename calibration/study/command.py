"""Measures every solver and its rivals at several numbers of evaluations on held-out noises; draws what it found.

python -m calibration study --model edm-digits
python -m calibration study --model edm-digits --solvers heun,iia-edm --nfe 15,25 --refined 15 --rivals none
python -m calibration study --model edm-digits --solvers none --nfe 3,4,5,6,8,10 --plans shipped
torchrun --nproc-per-node 2 -m calibration study --model edm-fashion --refined 5,6 --out study/edm-fashion
"""

from collections.abc import Sequence
from pathlib import Path

from edge_sampler.calibration.arguments import (
    DEFAULTS,
    add_cache_argument,
    add_model_arguments,
    add_noises_arguments,
    add_refine_on_argument,
    cache,
    check_judging,
    file_name,
    load_model,
    refuse_engines_options,
)
from edge_sampler.calibration.check_fit import check_fit
from edge_sampler.calibration.evaluate.distributed import written
from edge_sampler.calibration.refinement import ITERATIONS
from edge_sampler.calibration.settings import AUTO, Settings
from edge_sampler.calibration.solvers import ALL_SOLVERS, find
from edge_sampler.calibration.solvers.base import Solver
from edge_sampler.calibration.study.rivals.entry import RIVALS, Rival
from edge_sampler.calibration.study.study import Study, study
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.progress import ProgressBars
from edge_sampler.models.shipped import SHIPPED, plan_file, shipped_plan
from edge_sampler.runtime.command_line import Parser, whole_numbers
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan

NFES = "4,5,6,8,10,12,15,20,25"
REFINED = (3, 4, 5, 6, 8, 10)


def main(rivals: Sequence[Rival] = RIVALS) -> None:
    """``rivals``: those that ``--rivals`` may name."""
    parser = Parser(
        prog="python -m calibration study",
        description=__doc__,
        common=("--model", "--nfe", "--solvers", "--rivals", "--noises", "--out"),
    )
    add_model_arguments(parser)
    group = parser.add_argument_group("study")
    group.add_argument(
        "--nfe", type=whole_numbers, default=NFES, help=f"numbers of network evaluations (default: {NFES})"
    )
    group.add_argument(
        "--solvers",
        default="all",
        help="names with commas; auto: the solvers of --solver auto; none: only rivals (default: all)",
    )
    names = ", ".join(rival.name for rival in rivals)
    group.add_argument(
        "--rivals",
        default="all",
        help=f"other methods to fit at the NFE of --refined: some of {names}, or none (default: all)",
    )
    group.add_argument(
        "--refined", type=whole_numbers, help="values of --nfe at which to refine (default: 3,4,5,6,8,10, if in --nfe)"
    )
    group.add_argument(
        "--plans", help="files of plans to judge too, with commas; shipped: the model's own plans (default: none)"
    )
    group.add_argument("--noises", type=int, default=1024, help="noises that judge (default: 1024)")
    add_noises_arguments(group, refined=True)
    refuse_engines_options(parser, "--batch")
    group.add_argument(
        "--iterations",
        type=int,
        default=ITERATIONS,
        help=f"largest number of refinement's iterations (default: {ITERATIONS}; 0: none)",
    )
    group.add_argument("--seed", type=int, default=DEFAULTS.seed, help="seed of the noises to fit on (default: 0)")
    add_refine_on_argument(group)
    add_cache_argument(group)
    group.add_argument("--out", type=Path, help="a new folder (default: study-MODEL)")
    arguments = parser.parse_args()
    nfes = sorted(set(arguments.nfe))
    refined = sorted(set(arguments.refined or {*REFINED} & {*nfes})) if arguments.iterations else []
    if not set(refined) <= set(nfes):
        raise UserError(f"--refined {refined} must be among --nfe {nfes}")
    check_judging(arguments.noises)
    solvers, entered = solvers_of(arguments.solvers), rivals_of(arguments.rivals, rivals)
    settings = Settings(
        nfe=nfes[0],
        fit_target="global",
        fit_batch=arguments.fit_batch,
        heldout=arguments.heldout,
        seed=arguments.seed,
        refine=arguments.iterations,
        refine_on=arguments.refine_on,
    )
    out = arguments.out or Path(f"study-{file_name(arguments.model)}")
    model, kept = load_model(arguments), cache(arguments)
    given = plans_of(arguments.plans, model, arguments.model, nfes) if arguments.plans is not None else {}

    def work(progress: ProgressBars) -> Study:
        return study(model, solvers, entered, nfes, refined, settings, arguments.noises, kept, progress, given)

    def write(found: Study, folder: Path) -> None:
        from edge_sampler.calibration.study import report  # late: Matplotlib takes a second

        report.write(found, folder)

    if written(out, model.device, work, write):
        print(f"{out}: see study.md, error.png and samples.png; plans/ can be exported with --plan")


def solvers_of(text: str) -> list[Solver]:
    """The solvers of a list by comma, each once. Raises UserError for an unknown one."""
    groups = {"all": [solver.name for solver in ALL_SOLVERS if not solver.clip], "auto": AUTO, "none": ()}
    names = [name for part in text.split(",") for name in groups.get(part.strip(), [part.strip()])]
    return [*dict.fromkeys(map(find, names))]


def plans_of(text: str, model: Denoiser, name: str, nfes: Sequence[int]) -> dict[tuple[str, int], Plan]:
    """Of a list by comma, by what the study calls them and NFE. Raises UserError for one that is not for ``model``."""
    found = dict[tuple[str, int], Plan]()
    for part in map(str.strip, text.split(",")):
        if not part:
            raise UserError(f"--plans {text!r} has an empty name: give files of plans with commas, or {SHIPPED}")
        called, scale = f"{Path(part).stem}.json", model.spec.guidance  # which no solver is called
        if part == SHIPPED:
            called = SHIPPED
            there = [nfe for nfe in nfes if plan_file(name, nfe, scale).is_file()] or nfes[:1]
            plans = [shipped_plan(name, nfe, scale) for nfe in there]
        else:
            plans = [Plan.load(part)]
        for plan in plans:
            check_fit(model, plan)
            if plan.nfe not in nfes:
                raise UserError(f"{part} has {plan.nfe} evaluations: add {plan.nfe} to --nfe")
            if (called, plan.nfe) in found:
                raise UserError(f"--plans has two that are called {called}, of {plan.nfe} evaluations: rename a file")
            found[called, plan.nfe] = plan
    return found


def rivals_of(text: str, known: Sequence[Rival] = RIVALS) -> list[Rival]:
    """Those of a list by comma, in the order of ``known``. Raises UserError for one that is not among them."""
    every = [rival.name for rival in known]
    names = {"all": every, "none": []}.get(text.strip(), [part.strip() for part in text.split(",")])
    if unknown := [name for name in names if name not in every]:
        raise UserError(f"--rivals: unknown {unknown[0]!r}; known: {', '.join(every)}, all, none")
    return [rival for rival in known if rival.name in names]
