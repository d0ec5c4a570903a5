"""A solver of your own, as a researcher tries one: textbook code, its table, and its error beside the usual solvers'.

    python examples/solver.py --model edm-digits --nfe 6 --out ab2.json
    python -m export --model edm-digits --plan ab2.json --out ab2

It is Adams and Bashforth's of two steps, on noise levels that are not evenly spaced. A file in calibration/solvers with
``SOLVERS = (AB2,)`` gives it a name that ``--solver`` and the study know; with ``history=1`` it is fitted, too.
"""

from pathlib import Path

from edge_sampler import Plan, Settings, load_model
from edge_sampler.calibration.candidates import grid_of, scheme_of
from edge_sampler.calibration.judge import USUAL, errors_against_converged
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import Evaluation, Solver, multistep
from edge_sampler.calibration.trace import trace
from edge_sampler.models.progress import bar
from edge_sampler.runtime.command_line import Parser, run_command
from edge_sampler.runtime.output import check_writable


def adams_bashforth(past: list[Evaluation], sigma: float) -> object:
    """x at ``sigma``, of the evaluations so far, newest first; the first step is Euler's.

    Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, section III.5. ``d`` is dx/dσ.
    """
    now, step = past[0], sigma - past[0].sigma
    if len(past) == 1:
        return now.x + step * now.d
    ratio = step / (now.sigma - past[1].sigma)
    return now.x + step * ((1 + ratio / 2) * now.d + (-ratio / 2) * past[1].d)


AB2 = Solver("ab2", multistep(adams_bashforth), order=2)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default="edm-digits", help="default: edm-digits")
    parser.add_argument("--nfe", type=int, default=6, help="network evaluations (default: 6)")
    parser.add_argument("--noises", type=int, default=64, help="to judge on (default: 64)")
    parser.add_argument("--out", type=Path, help="where the plan goes, for `python -m export --plan`")
    arguments = parser.parse_args()
    if arguments.out:
        check_writable(arguments.out, False)
    model, settings = load_model(arguments.model), Settings(arguments.nfe)
    solvers = [AB2, *(find(name) for name in USUAL)]
    grid = grid_of(model, model.spec.schedule)
    plans: list[Plan] = [trace(scheme_of(solver, grid, settings)) for solver in solvers]
    errors = errors_against_converged(model, plans, arguments.noises, bar)
    print(f"RMS error against the converged images of {arguments.noises} noises, {model.spec.schedule}'s noise levels:")
    for plan, error in zip(plans, errors, strict=True):
        print(f"{plan.solver:<10}{error:.4f}")
    if arguments.out:
        plans[0].save(arguments.out)


if __name__ == "__main__":
    run_command(main)
