"""A bundle's report.html: one file without a script, which says what the bundle is and how good it is.

All of it comes from the manifest, the plan and samples.png. So the same bundle has the same report.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from edge_sampler.export.facts import Command, commands, input_rows, judged
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.manifest import built_in
from edge_sampler.runtime.plan import Plan

REPORT = "report.html"
CELL, LABEL, LEVELS = 58, 64, 620  # of the drawings, in pixels: a cell's width, a row's label, the noise levels' width
WITH_NUMBERS = 12  # evaluations; of more, a cell's number is shown when it is pointed at

WHERE = "<p>Run them in the folder that holds this bundle.</p>"


def report_page(bundle: Bundle, folder: Path) -> str:
    """The page of ``bundle``, whose folder gives the name to show; plan and picture are read in ``folder``."""
    plan = Plan.load(folder / "plan.json")
    parts = [
        header(bundle, plan),
        samples(folder / "samples.png"),
        quality(bundle, plan),
        section("The sampler", drawn(plan)),
        parity(bundle, plan),
        precisions(bundle),
        engines(bundle),
        inputs(bundle),
        section("Commands", WHERE + "".join(command(one) for one in commands(bundle))),
        files(bundle),
    ]
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return Template(template).substitute(title=escape(title_of(bundle)), body="\n".join(filter(None, parts)))


def title_of(bundle: Bundle) -> str:
    return f"{bundle.manifest['model']['name']}, {bundle.manifest['nfe']} network evaluations"


def header(bundle: Bundle, plan: Plan) -> str:
    model, manifest = bundle.manifest["model"], bundle.manifest
    alarm = '<p class="alarm">RANDOM WEIGHTS: what it makes means nothing.</p>' if bundle.random_weights else ""
    rows = [
        ("solver", plan.solver),
        ("makes", bundle.makes),
        ("licence of the weights", model["licence"]),
        ("built in", ", ".join(built_in(model))),
        ("weights, SHA-256", model["weights_sha256"]),
        ("plan's numbers, SHA-256", manifest["plan_sha256"]),
        ("made with", ", ".join(f"{tool} {version}" for tool, version in manifest["tools"].items())),
    ]
    shown = [(name, text(value)) for name, value in rows if value]
    return f"<h1>{escape(title_of(bundle))}</h1>{alarm}<div class='facts'>{table((), shown)}</div>"


def samples(picture: Path) -> str:
    if not picture.is_file():
        return ""
    data = base64.b64encode(picture.read_bytes()).decode()
    return section("Samples", f'<img alt="what the bundle makes" src="data:image/png;base64,{data}">')


def command(one: Command) -> str:
    return f'<p class="soft">{escape(one.purpose)}</p><pre>{escape(one.line)}</pre>'


def quality(bundle: Bundle, plan: Plan) -> str:
    """Errors against the converged solution: those measured at export, and those of the fit."""
    parts, report, measured = list[str](), plan.report, judged(bundle)
    if measured:
        parts.append(bars(measured.note, ("sampler", "RMS error"), measured.errors))
        if measured.medians:
            parts.append(bars("", ("sampler", "of the median image"), measured.medians))
    if report:
        note = (
            f"The fit judged on {report.heldout} held-out noises: RMS error {report.heldout_rms_error:.4g}. It took "
            f"{report.evaluations:,} evaluations of one sample."
        )
        parts.append(f"<p>{escape(note)}</p>")
        if len(report.compared) > 1:
            told = "Mean of each image's error, on the fit's held-out noises, of the solvers that it compared."
            parts.append(bars(told, ("solver", "mean error"), report.compared))
        if len(report.refinement) > 1:
            after = {f"after iteration {i}" if i else "before": error for i, error in enumerate(report.refinement)}
            parts.append(bars("Refinement: mean error on the same noises.", ("", "mean error"), after))
    return section("Quality", "".join(parts)) if parts else ""


def parity(bundle: Bundle, plan: Plan) -> str:
    """Differences from PyTorch's recorded run, evaluation by evaluation."""
    rows = []
    for one, sigma in zip(bundle.manifest.get("parity", []), (*plan.sigmas, None), strict=False):
        level = "" if sigma is None else f"{sigma:.4g}"
        rows.append((text(one["stage"]), level, f"{one['largest']:.1e}", f"{one['rms']:.1e}"))
    heads = ("value", "noise level", "largest difference", "RMS")
    note = "sampler.onnx in ONNX Runtime on a CPU, against the same sampler in PyTorch."
    return section("Parity with PyTorch", table(heads, rows, note)) if rows else ""


def precisions(bundle: Bundle) -> str:
    listed, rows = bundle.manifest["files"], []
    for name, told in {"fp32": {}, **bundle.manifest.get("precisions", {})}.items():
        error = f"{told['rms_error']:.1e}" if told else ""
        largest = f"{told['largest_error']:.1e}" if told else ""
        refitted = "yes" if "plan_sha256" in told else ""
        rows.append((text(name), megabytes(listed[bundle.graph_name(name)]["bytes"]), error, largest, refitted))
    heads = ("precision", "MB", "RMS change of what it makes", "largest", "plan refitted")
    note = "Changes are against fp32 with its plan."
    return section("Precisions", table(heads, rows, note)) if len(rows) > 1 else ""


def engines(bundle: Bundle) -> str:
    rows = [
        (
            text(f"{one.flavour} {one.version}"),
            text(one.precision),
            text(", ".join(one.targets)),
            text(str(one.batch)),
            "a loop" if one.loop else "unrolled",
            megabytes(bundle.manifest["files"][one.file]["bytes"]),
        )
        for one in bundle.engines
    ]
    heads = ("engine", "precision", "for", "batch", "form", "MB")
    return section("Engines", table(heads, rows, number_from=5)) if rows else ""


def inputs(bundle: Bundle) -> str:
    rows = [tuple(map(text, row)) for row in input_rows(bundle)]
    return section("Inputs of one sample", table(("name", "values", ""), rows, number_from=3))


def files(bundle: Bundle) -> str:
    rows = [
        (text(name), megabytes(one["bytes"]), f"<code>{one['sha256'][:16]}…</code>")
        for name, one in bundle.manifest["files"].items()
    ]
    return section("Files", table(("file", "MB", "SHA-256"), rows))


def drawn(plan: Plan) -> str:
    """The plan: its noise levels on a line, and its table as a heat map."""
    levels = ", ".join(f"{sigma:.4g}" for sigma in plan.sigmas)
    return (
        f'<p class="soft">Noise levels of the evaluations: {levels}.</p><div class="wide">{levels_drawn(plan)}</div>'
        '<p class="soft">The table. Row k gives the weights of the k-th network input; the last row makes the result. '
        "Blue is positive, orange is negative; the noise's column has a scale of its own.</p>"
        f'<div class="wide">{table_drawn(plan)}</div>'
    )


def levels_drawn(plan: Plan) -> str:
    """A logarithmic axis, high noise at the left."""
    logs = np.log10(plan.sigmas)
    low, high = np.floor(logs.min() - 1e-9), np.ceil(logs.max() + 1e-9)
    powers = np.arange(high, low - 1, -max(1, round((high - low) / 6)))
    places = {log: 20 + (high - log) / (high - low) * LEVELS for log in (*logs, *powers)}
    ticks = "".join(
        f'<line class="axis" x1="{places[power]:.0f}" x2="{places[power]:.0f}" y1="26" y2="34"/>'
        f'<text x="{places[power]:.0f}" y="50" text-anchor="middle">1e{power:g}</text>'
        for power in powers
    )
    dots = "".join(
        f'<circle class="dot" cx="{places[log]:.1f}" cy="30" r="5"><title>{sigma:.6g}</title></circle>'
        for log, sigma in zip(logs, plan.sigmas, strict=True)
    )
    width = LEVELS + 40
    axis = f'<line class="axis" x1="20" x2="{LEVELS + 20}" y1="30" y2="30"/>'
    return f'<svg role="img" aria-label="noise levels" width="{width}" height="56">{axis}{ticks}{dots}</svg>'


def table_drawn(plan: Plan) -> str:
    """The table's rows as coloured cells; their numbers too, where there are few."""
    names = ["noise", *(["mean"] if plan.afs else [])]
    for k in range(plan.nfe):
        names += [f"D{k}", *([f"D{k} cut"] if plan.clip else [])]
    numbers = plan.nfe <= WITH_NUMBERS and not plan.clip
    wide, tall = (CELL, 22) if numbers else (CELL // 3, 16)
    scales = largest(plan.table)
    cells = [
        f'<text x="{LABEL + (j + 0.5) * wide:.0f}" y="12" text-anchor="middle">{name}</text>'
        for j, name in enumerate(names)
        if numbers or j % 4 == 0
    ]
    for k, row in enumerate(plan.table):
        top = 18 + k * tall
        label = f"input {k}" if k < plan.nfe else "result"
        cells.append(f'<text x="0" y="{top + tall - 6}">{label}</text>')
        for j, weight in enumerate(row):
            left, shade = LABEL + j * wide, abs(weight) / scales[min(j, 1)]
            sign = "plus" if weight >= 0 else "minus"
            cells.append(
                f'<rect class="cell {sign}" fill-opacity="{0.85 * shade**0.5:.2f}" x="{left}" y="{top}" '
                f'width="{wide}" height="{tall}"><title>{label}, {names[j]}: {weight:.6g}</title></rect>'
            )
            if numbers and weight:
                cells.append(
                    f'<text x="{left + wide / 2:.0f}" y="{top + tall - 6}" text-anchor="middle">{weight:.3g}</text>'
                )
    width, height = LABEL + len(names) * wide + 20, 22 + len(plan.table) * tall
    return f'<svg role="img" aria-label="the table" width="{width}" height="{height}">{"".join(cells)}</svg>'


def largest(rows: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The largest weight of the noise, and of anything else."""
    noise = max(abs(row[0]) for row in rows)
    others = max((abs(weight) for row in rows for weight in row[1:]), default=0)
    return noise or 1.0, others or 1.0


def section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}"


def bars(note: str, heads: tuple[str, str], values: Mapping[str, float]) -> str:
    """Numbers by name, each with a bar as long as it is large."""
    most = max(values.values()) or 1.0
    rows = [
        (
            text(name),
            f"{value:.4g}",
            f'<div class="bar" style="width: {100 * value / most:.0f}%"></div>',
        )
        for name, value in values.items()
    ]
    return table((*heads, ""), rows, note)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], note: str = "", number_from: int = 1) -> str:
    """Rows of HTML; with ``heads``, columns from ``number_from`` on hold numbers."""
    kinds = [' class="number"' if heads and j >= number_from else "" for j in range(max(len(heads), 2))]
    top = "".join(f"<th{kind}>{escape(head)}</th>" for head, kind in zip(heads, kinds, strict=False))
    lines = [
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    ]
    said = f'<p class="soft">{escape(note)}</p>' if note else ""
    return f'{said}<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def text(value: Any) -> str:
    return escape(str(value))


def megabytes(size: int) -> str:
    return f"{size / 1e6:.2f}"
