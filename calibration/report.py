"""Tables of what a calibration found."""

from rich.table import Table

from edge_sampler.calibration.settings import REFINED
from edge_sampler.models.progress import Screen
from edge_sampler.runtime.plan import Plan


def figure(error: float) -> str:
    """``0.0107``, and ``7.6e-06`` of what four decimals would not show."""
    return f"{error:.4f}" if error >= 0.001 else f"{error:.1e}"


def show(plan: Plan) -> None:
    """Prints what was fitted; nothing for a fixed solver."""
    report = plan.report
    if not report:
        return
    console = Screen()
    if len(report.compared) > 1:
        table = Table("solver", "held out", title=f"solvers at {plan.nfe} evaluations: mean of the images' RMS errors")
        taken = plan.solver.removesuffix(REFINED)
        for solver, error in sorted(report.compared.items(), key=lambda row: row[1]):
            table.add_row(solver, figure(error) + ("  <- taken" if solver == taken else ""))
        console.print(table)
    if report.steps:
        table = Table("step", "RMS error before", "after", "γ", title=f"{plan.solver}, target {report.target}")
        for index, step in enumerate(report.steps):
            gamma = ", ".join(f"{weight:+.4f}" for weight in step.gamma) or "none"
            table.add_row(str(index), f"{step.error_before:.2e}", f"{step.error_after:.2e}", gamma)
        console.print(table)
    if len(report.refinement) > 1:
        what = "RMS" if report.settings.get("refine_error") == "rms" else "mean"
        console.print(f"refinement, {what} error held out: " + " → ".join(map(figure, report.refinement)))
    console.print(
        f"RMS error of what it makes {figure(report.heldout_rms_error)} on {report.heldout} held-out noises; "
        + (f"fitted in {report.seconds:.0f} s" if report.seconds else "fitted beforehand")
        + f" by {report.evaluations} evaluations of one sample"
    )
