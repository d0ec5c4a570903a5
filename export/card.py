"""Writes the README.md of a bundle that a model hub expects: licence, tags, samples, figures, how to run it.

python -m export card BUNDLE                   # BUNDLE/README.md
python -m export card BUNDLE --out FILE.md
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from edge_sampler.export.facts import commands, input_rows, judged
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command_line import Parser, add_verify_key
from edge_sampler.runtime.output import in_utf8, writable

HUB_LICENCES = {  # how a licence's name begins here, and what the hub calls it
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0",
    "CreativeML Open RAIL-M": "creativeml-openrail-m",
}
TAGS = ("diffusion", "onnx", "edge", "few-step-sampler")


def main() -> None:
    parser = Parser(prog="python -m export card", description=__doc__)
    parser.add_argument("bundle", type=Path)
    add_verify_key(parser)
    parser.add_argument("--out", type=Path, help="default: README.md in the bundle")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle, arguments.verify_key)
    in_utf8(bundle.folder.resolve())  # the card names it
    out = arguments.out or bundle.folder / "README.md"
    text = card(bundle)
    with writable(out, arguments.force) as path:
        path.write_text(text, encoding="utf-8")
    print(f"{out}: read it before you publish it; its licence is that of the weights")


def card(bundle: Bundle) -> str:
    """The card, Markdown behind YAML; what it says is in the bundle."""
    name = bundle.folder.resolve().name
    shown = Bundle(Path(name), bundle.manifest)
    parts = [
        front_matter(bundle),
        f"# {name}",
        summary(bundle),
        f"![samples]({bundle.file('samples.png').name})" if "samples.png" in bundle.manifest["files"] else "",
        "## How to run it",
        *(f"{one.purpose}\n\n```sh\n{one.line}\n```" for one in commands(shown)),
        "## Inputs of one sample",
        table(("name", "values", ""), input_rows(bundle)),
        "## How good it is",
        quality(bundle),
        "## Licence",
        f"Of the weights: {bundle.manifest['model']['licence']}. What is made of them carries it.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def front_matter(bundle: Bundle) -> str:
    """What the hub reads: https://huggingface.co/docs/hub/model-cards."""
    told = str(bundle.manifest["model"]["licence"])
    known = [hub for begin, hub in HUB_LICENCES.items() if told.startswith(begin)]
    licence = [f"license: {known[0]}"] if known else ["license: other", f"license_name: {quoted(told)}"]
    tags = [f"- {tag}" for tag in (*TAGS, *sorted({engine.flavour for engine in bundle.engines}))]
    return "\n".join(["---", *licence, f"pipeline_tag: {task(bundle)}", "library_name: onnx", "tags:", *tags, "---"])


def quoted(text: str) -> str:
    """A YAML string on one line."""
    return '"' + re.sub(r"[\s]+", " ", text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def task(bundle: Bundle) -> str:
    """The hub's name of what it does."""
    if not bundle.output.is_image:
        return "robotics" if bundle.output.name == "actions" else "other"
    told = any(condition.text for condition in bundle.inputs.conditions.values())
    return "text-to-image" if told else "unconditional-image-generation"


def summary(bundle: Bundle) -> str:
    manifest, scaled = bundle.manifest, f"{bundle.temperature:g} times " * (bundle.temperature != 1)
    alarm = "**Random weights: what it makes means nothing.**\n\n" if bundle.random_weights else ""
    return (
        f"{alarm}A few-step sampler of {manifest['model']['name']} as one ONNX graph: {manifest['nfe']} network "
        f"evaluations, by {manifest['solver']}, unrolled, without a Python loop. `sampler.onnx` takes {scaled}unit "
        f"noise and makes {bundle.makes}. `report.html` shows more."
    )


def quality(bundle: Bundle) -> str:
    """Errors against the converged solution, and what lower precision changes."""
    measured, report, parts = judged(bundle), bundle.plan.report, list[str]()
    if measured:
        medians = {name: f"{error:.4g}" for name, error in measured.medians.items()}
        errors = [(name, f"{error:.4g}", medians.get(name, "")) for name, error in measured.errors.items()]
        parts += [measured.note, table(("sampler", "RMS error", "of the median image"), errors)]
    if report:
        parts.append(f"The fit's own {report.heldout} held-out noises: {report.heldout_rms_error:.4g}.")
    changes = [
        (name, f"{told['rms_error']:.1e}", f"{told['largest_error']:.1e}")
        for name, told in bundle.manifest.get("precisions", {}).items()
    ]
    if changes:
        parts.append("What lower precision changes, against fp32:")
        parts.append(table(("precision", "RMS", "largest"), changes))
    return "\n\n".join(parts) or "Not measured."


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
