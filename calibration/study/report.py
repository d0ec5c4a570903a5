"""What a study found, written out: JSON, a Markdown table, plans, and pictures."""

import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from edge_sampler.calibration.evaluate.reference import REFERENCE
from edge_sampler.calibration.study.measure import CONVERGED, TRIMMED, Row
from edge_sampler.calibration.study.rivals.entry import BEST_FIXED, RIVAL
from edge_sampler.calibration.study.study import KINDS, Study

matplotlib.use("Agg")

HUES = ("orange", "gray", "blue", "olive", "green", "purple", "red", "pink", "brown")
COLOURS = dict(zip(KINDS, ("black", *(f"tab:{hue}" for hue in HUES)), strict=True))
NAMED = 2  # solvers of a kind that get a line style and a name of their own; the others share one; rivals all do
STYLES = ("-", "--", ":")


def write(study: Study, folder: Path) -> None:
    """Makes ``folder``: study.json, study.md, plans/, error.png, gamma.png, steps.png, samples.png, and
    fd.png where there is a Fréchet distance.
    """
    folder.mkdir()
    (folder / "study.json").write_text(json.dumps(as_json(study), indent=1) + "\n")
    (folder / "study.md").write_text(markdown(study))
    (folder / "plans").mkdir()
    for row in study.rows:
        if row.kind != "fixed":
            row.plan.save(folder / "plans" / f"{row.solver}-nfe{row.nfe}.json")
    plot_against_nfe(study, "rmse", "RMS error against the converged images", folder / "error.png")
    if study.reference_fd is not None:
        plot_against_nfe(study, "fd", "FD-fashion against the training images", folder / "fd.png")
    nfe = min(nfes(study), key=lambda nfe: abs(nfe - 10))
    plot_gamma(study, nfe, folder / "gamma.png")
    if any(row.nfe == nfe and row.steps for row in study.rows):
        plot_steps(study, nfe, folder / "steps.png")
    plot_samples(study, min(nfes(study), key=lambda nfe: abs(nfe - 5)), folder / "samples.png")


def nfes(study: Study) -> list[int]:
    return sorted({row.nfe for row in study.rows})


def as_json(study: Study) -> dict[str, object]:
    """Everything but the pictures; plans by their hash, since they lie beside."""
    rows = []
    for row in study.rows:
        fields = {key: value for key, value in vars(row).items() if key != "plan"}
        rows.append(fields | {"plan_sha256": row.plan.sha256})
    return {
        "model": study.model,
        "settings": asdict(study.settings),
        "judged_noises": study.judged,
        "reference_rms_change_at_twice_its_steps": study.convergence,
        "reference_images_unsettled": study.unsettled,
        "reference_fd": study.reference_fd,
        "reference_judged": study.reference_judged,
        "rows": rows,
    }


def markdown(study: Study) -> str:
    """Errors by solver and NFE, the best of each kind in bold, and ratios: to the best fixed solver, and to the best of
    what others do. What fits alone cost.
    """
    columns = nfes(study)
    lines = [
        f"# {study.model}: RMS error of final images, {study.judged} held-out noises",
        "",
        f"Against images of as many {REFERENCE.name} steps as each needs, which move by {study.convergence:.1e} when "
        f"these double ({study.unsettled} of them by more than {CONVERGED}); in brackets the 95 % bootstrap interval. "
        "Bold: the best of its kind. best-fixed: the best fixed solver on its best noise levels, with an analytical "
        "first step (AFS) where that is best, chosen on other noises; gits, ld3, bns: baselines of our own from those "
        "papers; other fixed solvers: on the model's own levels. Fitted (iia-, biia-): γ by least squares, global "
        "target; -chosen: noise levels chosen for the model; -afs: AFS; refined: all of it jointly; auto, "
        "auto-refined: what `python -m calibration` makes by itself; shipped: the plans that ship with the model.",
        "",
        *_table(study, columns, lambda row: f"{row.rmse:.4f} [{row.low:.4f}, {row.high:.4f}]", "rmse"),
    ]
    for measure, name in (
        ("rmse", "RMS error"),
        ("trimmed", f"RMS error without the worst {TRIMMED:.0%} of each solver's images"),
        ("median", "the median of the images' RMS errors"),
    ):
        if {BEST_FIXED} < {row.kind for row in study.rows}:
            heading = f"By {name}, the best of a kind to the best fixed solver on its best levels at the same NFE:"
            lines += ["", heading, "", *_ratios(study, columns, measure, lambda *at: fixed_row(study, *at))]
        if {RIVAL} < {row.kind for row in study.rows if row.kind != BEST_FIXED}:
            lines += ["", f"By {name}, to the best of what others do, that solver, gits, ld3 and bns:", ""]
            lines += _ratios(study, columns, measure, study.rival)
    lines += ["", "These medians:", "", *_table(study, columns, lambda row: f"{row.median:.4f}", "median")]
    if any(row.evaluations is not None for row in study.rows):
        lines += [
            "",
            "What a fit alone costs: network evaluations of one sample, a backward pass counted as two, and seconds on "
            "the machine that made this page; in brackets the solver that was chosen or started from:",
            "",
            *_costs(study, columns),
        ]
    if study.reference_fd is not None:
        lines += ["", f"FD-fashion (the converged images: {study.reference_fd:.2f}):", ""]
        lines += _table(study, columns, lambda row: f"{row.fd:.2f}", "fd")
    if study.reference_judged is not None:
        fd, precision, recall = study.reference_judged
        lines += [
            "",
            "FD by another classifier, built otherwise, on which nothing is ever fitted; in brackets precision and "
            f"recall (the converged images: {fd:.2f}; {precision:.2f}, {recall:.2f}):",
            "",
            *_table(
                study, columns, lambda row: f"{row.judged_fd:.2f} ({row.precision:.2f}, {row.recall:.2f})", "judged_fd"
            ),
        ]
    return "\n".join(lines) + "\n"


def _heading(first: str, columns: Sequence[int]) -> list[str]:
    return [f"| {first} | " + " | ".join(f"NFE {nfe}" for nfe in columns) + " |", "| --- " * (len(columns) + 1) + "|"]


def fixed_row(study: Study, nfe: int, measure: str) -> Row | None:
    return study.best(BEST_FIXED, nfe, measure) if BEST_FIXED in study.kinds(nfe) else None


def _ratios(study: Study, columns: Sequence[int], measure: str, to: Callable[[int, str], Row | None]) -> list[str]:
    def cell(kind: str, nfe: int) -> str:
        base = to(nfe, measure)
        if kind not in study.kinds(nfe) or base is None:
            return ""
        return f"{getattr(study.best(kind, nfe, measure), measure) / getattr(base, measure):.2f}"

    measured = [kind for kind in KINDS[1:] if any(row.kind == kind for row in study.rows)]
    rows = [f"| {kind} | " + " | ".join(cell(kind, nfe) for nfe in columns) + " |" for kind in measured]
    return _heading("kind", columns) + rows


def _costs(study: Study, columns: Sequence[int]) -> list[str]:
    def cell(name: str, nfe: int) -> str:
        mine = [row for row in study.rows if row.solver == name and row.nfe == nfe]
        if not mine:
            return ""
        seconds = f", {mine[0].seconds:.0f} s" if mine[0].seconds is not None else ""
        return f"{mine[0].evaluations:,}{seconds} ({mine[0].of})"

    names = dict.fromkeys(row.solver for row in study.rows if row.evaluations is not None)
    return _heading("fit", columns) + [
        f"| {name} | " + " | ".join(cell(name, nfe) for nfe in columns) + " |" for name in names
    ]


def _table(study: Study, columns: Sequence[int], show: Callable[[Row], str], field: str) -> list[str]:
    lines = _heading("solver", columns)
    for kind in KINDS:
        for solver in dict.fromkeys(row.solver for row in study.rows if row.kind == kind):
            cells = []
            for nfe in columns:
                mine = [row for row in study.rows if row.solver == solver and row.nfe == nfe]
                peers = [getattr(row, field) for row in study.rows if row.kind == kind and row.nfe == nfe]
                text = show(mine[0]) if mine else ""
                best = mine and getattr(mine[0], field) == min(peers) and len(peers) > 1
                cells.append(f"**{text}**" if best else text)
            lines.append(f"| {solver} | " + " | ".join(cells) + " |")
    return lines


def plot_against_nfe(study: Study, field: str, label: str, path: Path) -> None:
    """One line a solver, log scale; a band for the bootstrap interval of the best of each kind."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for kind, colour in COLOURS.items():
        by_solver = {
            solver: [row for row in study.rows if row.solver == solver]
            for solver in dict.fromkeys(row.solver for row in study.rows if row.kind == kind)
        }
        ranked = sorted(by_solver, key=lambda solver: np.mean([np.log(getattr(r, field)) for r in by_solver[solver]]))
        for place, solver in enumerate(ranked):
            rows = by_solver[solver]
            named = place < NAMED or kind == RIVAL
            axes.plot(
                [row.nfe for row in rows],
                [getattr(row, field) for row in rows],
                STYLES[place] if named else "-",
                color=colour,
                alpha=1.0 if named else 0.25,
                linewidth=2 if place == 0 else 1.2,
                marker="o" if place == 0 else None,
                markersize=4,
                label=solver if named else None,
            )
        if ranked and field == "rmse":
            rows = by_solver[ranked[0]]
            axes.fill_between(
                [r.nfe for r in rows], [r.low for r in rows], [r.high for r in rows], color=colour, alpha=0.15
            )
    if field == "fd" and study.reference_fd is not None:
        axes.axhline(study.reference_fd, color="black", linewidth=0.8, linestyle=":", label="converged images")
    _finish(axes, study, label)
    axes.set_yscale("log")
    axes.set_xticks(nfes(study))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _finish(axes: Axes, study: Study, label: str) -> None:
    axes.set(xlabel="network evaluations (NFE)", ylabel=label, title=f"{study.model}, {study.judged} held-out noises")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend(fontsize=8, ncols=2)


def plot_gamma(study: Study, nfe: int, path: Path) -> None:
    """The tables of the best fixed, fitted and refined samplers: what each state takes of each past image."""
    kinds = study.kinds(nfe)
    figure, every = plt.subplots(
        1, len(kinds), figsize=(3.4 * len(kinds) + 1, 3.8), layout="constrained", squeeze=False
    )
    for axes, kind in zip(every[0], kinds, strict=True):
        row = study.best(kind, nfe)
        weighed = [weights[1:] for weights in row.plan.table if len(weights) > 1]
        table = np.full((len(weighed), len(weighed)), np.nan)
        for k, weights in enumerate(weighed):
            table[k, : k + 1] = weights
        drawn = axes.imshow(table, cmap="RdBu_r", norm=matplotlib.colors.SymLogNorm(0.1, vmin=-10, vmax=10))
        axes.set(
            title=f"{row.solver}, NFE {nfe}",
            xlabel="denoised image $D_j$" + ", mean first" * row.plan.afs,
            ylabel="state (last: images)",
        )
    figure.colorbar(drawn, ax=every[0].tolist(), label="weight of $D_j$ in the state", shrink=0.8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_steps(study: Study, nfe: int, path: Path) -> None:
    """RMS error against the fine trajectory after each step, without and with that step's γ."""
    fitted = [row for row in study.rows if row.nfe == nfe and row.steps]
    columns = min(4, len(fitted))
    count = -(-len(fitted) // columns)
    figure, every = plt.subplots(
        count, columns, figsize=(3.6 * columns, 2.6 * count), layout="constrained", squeeze=False, sharey=True
    )
    for axes, row in zip(every.flat, fitted, strict=False):
        before, after = zip(*row.steps, strict=True)
        axes.semilogy(before, "o--", color=COLOURS["fixed"], markersize=3, label="the step alone")
        axes.semilogy(after, "o-", color=COLOURS["fitted"], markersize=3, label="with γ")
        axes.set_title(f"{row.solver}, NFE {nfe}", fontsize=9)
        axes.grid(visible=True, alpha=0.2)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in every.flat[len(fitted) :]:
        axes.axis("off")
    every[0, 0].legend(fontsize=7)
    figure.supxlabel("step")
    figure.supylabel("RMS error, held out")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def show_sample(axes: Axes, sample: np.ndarray) -> None:
    """A picture of 1 or 3 channels, the first channel of others, or a line for each dimension of a sequence."""
    if sample.ndim < 3:
        axes.plot(sample, linewidth=0.6)
    else:
        channels = sample if len(sample) == 3 else sample[:1]
        pixels = np.clip(channels.transpose(1, 2, 0) / 2 + 0.5, 0, 1)
        axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])


def plot_samples(study: Study, nfe: int, path: Path) -> None:
    """The same noise in each row: the converged image, and that of the best sampler of each kind."""
    best = [study.best(kind, nfe) for kind in study.kinds(nfe)]
    columns = [("converged", study.pictures["reference"])]
    for row in best:
        names = dict.fromkeys([*textwrap.wrap(row.kind, 16), *textwrap.wrap(row.solver, 16)])
        title = "\n".join([*names, f"RMSE {row.rmse:.3f}"])
        columns.append((title, study.pictures[f"{row.solver} {nfe}"]))
    shown = len(columns[0][1])
    figure, every = plt.subplots(
        shown, len(columns), figsize=(1.25 * len(columns), 1.15 * shown + 0.9), layout="constrained", squeeze=False
    )
    for column, (name, images) in zip(every.T, columns, strict=True):
        for axes, image in zip(column, images, strict=True):
            show_sample(axes, image)
        column[0].set_title(name, fontsize=7)
    for axes, caption in zip(every[:, 0], study.captions, strict=False):
        axes.set_ylabel(textwrap.fill(caption, 16), fontsize=7, rotation=0, ha="right", va="center")
    figure.suptitle(f"{study.model}, NFE {nfe}: the same noise in each row", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
