"""Extends a finished bundle: by its graph in mixed precision, and by engines. All of it, or nothing."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from rich.table import Table

from edge_sampler.export.build_engine import build, read_graph
from edge_sampler.export.changing import changing
from edge_sampler.export.image_error import image_error
from edge_sampler.export.lower import drop_unused
from edge_sampler.export.precision import lower_precision, round_activations
from edge_sampler.export.precisions import PRECISIONS, QUANTISED
from edge_sampler.export.quantised import Refit, write_quantised
from edge_sampler.export.report_page import REPORT, report_page
from edge_sampler.export.save import save_checked
from edge_sampler.export.sign import Signer
from edge_sampler.models.progress import bar
from edge_sampler.runtime import interrupt
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.condition import Axis
from edge_sampler.runtime.engine_record import Engine
from edge_sampler.runtime.errors import BoundError, UserError
from edge_sampler.runtime.install import install_command
from edge_sampler.runtime.json_file import ODD, read_json
from edge_sampler.runtime.manifest import FILE, MANIFEST, facts_of, read_manifest, write_manifest
from edge_sampler.runtime.output import check_writable, writable
from edge_sampler.runtime.plan import Plan
from edge_sampler.runtime.scratch import scratch
from edge_sampler.runtime.signature import SIGNATURE, waiting
from edge_sampler.runtime.verified import describe_files, missing

ENGINES = "engines/"
NEW, JOINING = ".new-", ".joining"  # in a bundle, while something is added to it


@dataclass(frozen=True)
class Additions:
    """What to add to a bundle. Raises UserError where ``precision`` is unknown, or does not go with the others."""

    precision: str
    max_error: float | None
    engine: Engine | None = None
    axes: Mapping[str, Axis] = field(default_factory=dict)  # that the engine is for, where not all of the bundle's
    one_scale: bool = False  # of a quantised precision: the same scales in all evaluations
    refit: bool = False  # of a quantised precision: the plan refined with the rounding in the loop

    def __post_init__(self) -> None:
        known = ("fp32", *PRECISIONS, *QUANTISED)
        if self.precision not in known:
            raise UserError(f"unknown precision {self.precision!r}; known: {', '.join(known)}")
        if self.max_error is not None and not self.max_error > 0:
            raise UserError(f"max-error is {self.max_error}; it must be above 0")
        if self.max_error is not None and self.precision == "fp32":
            raise UserError("max-error bounds what a precision costs: name one, and fp32 costs nothing")
        for name, given in (("one-scale", self.one_scale), ("refit", self.refit)):
            if given and self.precision not in QUANTISED:
                raise UserError(
                    f"{name} is for {', '.join(QUANTISED)}, and precision is {self.precision}: name another"
                )


def add(bundle: Bundle, additions: Additions, refit: Refit | None = None, sign: Signer | None = None) -> Table:
    """Adds a precision's graph, when it is not there, and an engine; returns the table to print.

    ``refit`` is what refits the plan where that is asked for, unless told by the bundle's own denoiser.onnx.
    All or nothing joins the bundle, which is signed anew by ``sign``. Raises BoundError when the precision costs more
    than ``max_error``, and UserError for a bundle that is signed where nothing is to sign it anew.
    """
    table = Table(title=f"{bundle.manifest['model']['name']}, {additions.precision}", show_header=False)
    with extended(bundle, sign) as (folder, facts):
        if additions.precision != "fp32":
            add_precision(bundle, folder, facts, additions, refit)
            error = facts["precisions"][additions.precision]
            table.add_row("error against fp32", f"{error['rms_error']:.1e} RMS, {error['largest_error']:.1e} largest")
            table.add_row("measured on", f"{error['samples']} samples{' of RANDOM WEIGHTS' * bundle.random_weights}")
            if additions.precision in QUANTISED:
                kept = [f"{layer} ({effect:.1e} RMS alone)" for layer, effect in error["kept"].items()]
                table.add_row("layers in 8 bits", f"{error['layers'] - len(kept)} of {error['layers']}")
                table.add_row("layers left out", "\n".join(kept) or "none")
            if additions.refit:
                table.add_row("plan", refit_summary(bundle, folder, additions.precision))
            if additions.max_error is not None and not error["rms_error"] <= additions.max_error:
                raise BoundError(
                    f"{additions.precision} costs an RMS error of {error['rms_error']:.2g}, more than --max-error "
                    f"{additions.max_error:g}; nothing was added"
                )
        if additions.engine:
            engine = replace(additions.engine, axes=profile_of(bundle.inputs.axes, additions.axes))
            layers, seconds = add_engine(bundle, folder, facts, engine)
            file = facts["engines"][-1]["file"]
            table.add_row("engine", file)
            table.add_row("for", f"{', '.join(additions.engine.targets)}; batch {additions.engine.batch}")
            table.add_row("size", f"{(folder / file).stat().st_size / 1e6:.1f} MB")
            table.add_row("layers", str(layers))
            table.add_row("build", f"{seconds:.1f} s, {seconds / bundle.plan.nfe:.2f} an evaluation")
    return table


def profile_of(known: Mapping[str, Axis], chosen: Mapping[str, Axis]) -> dict[str, tuple[int, int, int]]:
    """Least, usual and largest size of each axis with a name, as an engine takes them.

    Raises UserError for an axis that is not ``known``, and for sizes beyond what is, or without its usual one.
    """
    for name, axis in chosen.items():
        if name not in known:
            raise UserError(f"--axis {name}: the sampler's axes are {', '.join(known) or 'none'}")
        told, usual = f"--axis {name} is {':'.join(map(str, axis.sizes))}", known[name].usual
        if not all(map(known[name].takes, axis.sizes)):
            raise UserError(f"{told}; the sampler takes {known[name]}")
        if not axis.least <= usual <= axis.largest:
            raise UserError(f"{told}, without {usual}: who names no size asks for that, so let them reach it")
    return {name: chosen.get(name, axis).sizes for name, axis in known.items()}


@contextmanager
def extended(bundle: Bundle, sign: Signer | None = None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields a folder whose files join the bundle if all goes well, and the manifest's facts to change.

    New files have names that the bundle does not list, so that it stays as it was until its manifest is the new one.
    Only the report keeps its name: while it is replaced, no manifest lists it. What ``sign`` makes of each manifest is
    there before that is. Raises UserError as ``changing`` and ``add`` do.
    """
    signature = bundle.folder / SIGNATURE
    with changing(bundle):
        clear(bundle.folder)
        check_writable(bundle.folder / JOINING, force=True, kind="part")
        place = bundle.folder / ENGINES
        if os.path.lexists(place) and not place.is_dir():
            raise UserError(f"{place} is no folder, and engines go there: remove it")
        if signature.exists() and sign is None:
            raise UserError(
                f"{bundle.folder} is signed, and its new manifest must be too: name the secret key with --sign, or "
                f"remove {signature} before"
            )
        for name in bundle.manifest["files"]:
            if not name.startswith(ENGINES) and not missing(bundle.folder, name):  # engines can be built again
                bundle.file(name)
        before, facts = bundle.manifest["files"], deepcopy(facts_of(bundle.manifest))
        try:
            with tempfile.TemporaryDirectory(prefix=NEW, dir=bundle.folder) as name:
                folder = Path(name)
                yield folder, facts
                interrupt.check()
                files = {**before, **describe_files(folder)}
                engines = {recorded["file"] for recorded in facts.get("engines", [])}
                files = {
                    name: one for name, one in files.items() if not name.startswith(ENGINES) or kept(name, engines)
                }
                shown = Bundle(Path(bundle.folder.resolve().name), {**facts, "files": files})
                report = folder / REPORT
                report.write_text(report_page(shown, bundle.folder), encoding="utf-8")
                joined = describe_files(folder)
                for name in joined:
                    if (bundle.folder / name).is_dir():
                        raise UserError(f"{bundle.folder / name} is a folder, where a file is to be: remove it")
                with writable(bundle.folder / JOINING, force=True, kind="part") as joining:
                    joining.write_text(json.dumps(sorted({*before, *files} - {REPORT})), encoding="utf-8")
                for path in sorted(folder.rglob("*")):
                    if path.is_file() and path != report:
                        place = bundle.folder / path.relative_to(folder)
                        place.parent.mkdir(exist_ok=True)
                        path.replace(place)
                replace_manifest(bundle, facts, {name: one for name, one in files.items() if name != REPORT}, sign)
                report.replace(bundle.folder / REPORT)
                replace_manifest(bundle, facts, files | {REPORT: joined[REPORT]}, sign)
        finally:
            clear(bundle.folder)


def replace_manifest(bundle: Bundle, facts: Mapping[str, Any], files: Mapping[str, Any], sign: Signer | None) -> None:
    with writable(bundle.folder / MANIFEST, force=True, kind="part") as path:
        write_manifest(path, facts, files)
        if sign:
            sign(path.parent)
            path.with_name(SIGNATURE).replace(bundle.folder / waiting(path.read_bytes()))


def kept(name: str, engines: Collection[str]) -> bool:
    """Whether a file among the engines is one of theirs, or the log of its build."""
    return any(Path(name) in (Path(engine), Path(engine).with_suffix(".log")) for engine in engines)


def clear(folder: Path) -> None:
    """Ends what an addition began that was cut short: files that joined and that no manifest lists go."""
    for new in folder.glob(f"{NEW}*"):
        if new.is_dir():  # a pipe would be waited for
            shutil.rmtree(new, ignore_errors=True)
    joining = folder / JOINING
    with suppress(OSError, *ODD):
        listed = read_manifest(folder)["files"]
        for name in read_json(joining):
            path = folder / str(name)
            above = Path(os.path.realpath(path.parent))  # behind links
            if FILE.fullmatch(str(name)) and name not in listed and above.is_relative_to(folder.resolve()):
                with suppress(OSError):  # what is no file was not put there
                    path.unlink(missing_ok=True)
        joining.unlink()


def add_precision(
    bundle: Bundle, folder: Path, facts: dict[str, Any], additions: Additions, refit: Refit | None
) -> None:
    """The graph in that precision, and its error against float32."""
    precision = additions.precision
    name = bundle.graph_name(precision)
    if name in bundle.manifest["files"]:
        if facts["precisions"][precision].get("one_scale", False) != additions.one_scale:
            other = "a scale for each evaluation" if additions.one_scale else "one scale for all evaluations"
            raise UserError(f"{bundle.folder} holds {name} already, with {other}: take another bundle")
        if additions.refit and "plan_sha256" not in facts["precisions"][precision]:
            raise UserError(
                f"{bundle.folder} holds {name} already, with a plan that is not refitted: take another bundle"
            )
        if not additions.refit and "plan_sha256" in facts["precisions"][precision]:
            raise UserError(f"{bundle.folder} holds {name} already, refitted: add --refit, or take another bundle")
        return
    if precision in QUANTISED:
        refit = (refit or refit_alone(bundle)) if additions.refit else None
        told = write_quantised(bundle, precision, folder / name, additions.max_error, additions.one_scale, refit)
        facts.setdefault("precisions", {})[precision] = told
        return
    with bar(f"{precision} graph", 2) as advance:
        graph = ir.load(bundle.graph("sampler.onnx"))
        lower_precision(graph, precision)
        drop_unused(graph.graph)
        save_checked(graph, folder / name)
        advance(1)
        facts.setdefault("precisions", {})[precision] = precision_error(bundle, precision)
        advance(1)


def refit_alone(bundle: Bundle) -> Refit:
    """What refits the bundle's plan with its own denoiser.onnx. Raises UserError where there is no PyTorch for it."""
    try:
        from edge_sampler.export.refitted import refit_of
    except ModuleNotFoundError as error:
        raise UserError(
            f"--refit fits with PyTorch, and {error.name} is not installed: {install_command('cpu')}, or name --refit "
            "where the bundle is exported"
        ) from error
    return refit_of(bundle)


def refit_summary(bundle: Bundle, folder: Path, precision: str) -> str:
    """What a refit changed, of the plan that is to join the bundle or is there."""
    new = folder / bundle.plan_name(precision)
    plan = Plan.load(new) if new.exists() else bundle.plan_of(precision)
    assert plan.report
    before, after = plan.report.refinement[0], min(plan.report.refinement)
    return (
        f"refitted: geometric mean of errors against the converged solution {before:.4f} → {after:.4f}, "
        f"{plan.report.heldout} held-out noises"
    )


def precision_error(bundle: Bundle, precision: str) -> dict[str, float]:
    """What rounding the network's weights and activations changes in what it makes."""
    rounded = ir.load(bundle.graph("sampler.onnx"))
    round_activations(rounded, precision)
    drop_unused(rounded.graph)
    with scratch() as folder:
        path = folder / "rounded.onnx"
        save_checked(rounded, path)
        return image_error(bundle, path, optimise=False)  # optimised, it would round less


def base_name(file: str) -> str:
    """An engine's, whether it was built again or not."""
    return file.removesuffix(".engine").removesuffix(".2")


def add_engine(bundle: Bundle, folder: Path, facts: dict[str, Any], engine: Engine) -> tuple[int, float]:
    """The engine and the log of its build; returns the network's layers and the seconds that building took."""
    others = [
        recorded for recorded in facts.get("engines", []) if base_name(recorded["file"]) != base_name(engine.file)
    ]
    if engine.file in bundle.manifest["files"]:  # which stays until the new one is there
        engine = replace(engine, file=engine.file.replace(".engine", ".2.engine"))
    path = folder / engine.file
    path.parent.mkdir()
    with bar(f"{engine.flavour} engine", 1) as advance:
        started = time.perf_counter()
        built = build(read_graph(bundle, engine, folder), engine)
        seconds = time.perf_counter() - started
        path.write_bytes(built.engine_bytes)
        path.with_suffix(".log").write_text("".join(f"{line}\n" for line in built.log), encoding="utf-8")
        advance(1)
    facts["engines"] = [*others, engine.record()]
    return built.layers, seconds
