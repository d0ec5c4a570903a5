"""The facts of a bundle for reports and model cards: its inputs, its errors, and the commands that run it."""

import shlex
from dataclasses import dataclass

from edge_sampler.runtime.bundle import Bundle


@dataclass(frozen=True)
class Command:
    """One, and what it is for."""

    purpose: str
    line: str


def commands(bundle: Bundle) -> list[Command]:
    folder = shlex.quote(str(bundle.folder))
    return [
        Command(
            "Install, in a checkout of edge-sampler, what a device needs (or tensorrt-rtx in place of onnxruntime).",
            "pip install . onnxruntime",
        ),
        Command(f"Make {bundle.output.name}.", sample_command(bundle)),
        Command("Compare every path with PyTorch's recorded output.", f"python -m runtime compare {folder}"),
        Command("Time it.", f"python -m runtime bench {folder}"),
        Command(
            "Build an engine for RTX GPUs; no GPU is needed for that.",
            f"python -m export engine {folder} --engine tensorrt-rtx --precision fp16",
        ),
    ]


def sample_command(bundle: Bundle) -> str:
    """What makes samples of a bundle, its conditions to be filled in."""
    file = "grid.png" if bundle.output.is_image else f"{bundle.output.name}.npz"
    known = bundle.inputs.conditions
    given = [f" --condition {name}=0" for name, one in known.items() if one.is_label]
    given += [f' --condition {name}="…"' for name, one in known.items() if one.text and one.text.must_be_given]
    given += [" --condition FILE.npz"] * any(not (one.text or one.is_label) for one in known.values())
    return f"python -m runtime sample {shlex.quote(str(bundle.folder))} --seeds 0-63{''.join(given)} --out {file}"


def input_rows(bundle: Bundle) -> list[tuple[str, str, str]]:
    """Name, values and meaning of whatever one sample is made of."""
    scaled = f", times {bundle.temperature:g}" * (bundle.temperature != 1)
    rows = [("noise", f"float32 {list(bundle.inputs.shape)}", f"unit normal{scaled}; made of a seed")]
    for name, condition in bundle.inputs.conditions.items():
        rows.append((name, condition.wanted(), condition.description))
    for name, axis in bundle.inputs.axes.items():
        rows.append((name, str(axis), f"an axis; usually {axis.usual}"))
    return rows


@dataclass(frozen=True)
class Judged:
    """By sampler, the bundle's own first: RMS errors, and those of the median image, which earlier bundles lack."""

    note: str
    errors: dict[str, float]
    medians: dict[str, float]


def judged(bundle: Bundle) -> Judged | None:
    """None: not measured."""
    told = bundle.manifest.get("judged")
    if not told:
        return None
    note = (
        f"RMS error against the converged solution from the same noise, {told['noises']} noises that no fit has seen. "
        "The other rows are fixed solvers with as many evaluations, on the model's usual noise levels, and the best of "
        "them on the levels that serve it best, chosen on these noises. A few images whose paths part decide the error "
        "of all; the median image is like most."
    )
    own, medians = bundle.manifest["solver"], dict[str, float]()
    if "median_error" in told:
        medians = {own: told["median_error"], **told.get("fixed_medians", {})}
    return Judged(note, {own: told["rms_error"], **told["fixed_solvers"]}, medians)
