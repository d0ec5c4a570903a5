"""What exporting costs, beside one bare torch.onnx.export of the denoiser. Each row is a process of its own.

python -m export.export_cost --model edm-cifar10 --random-weights
python -m export.export_cost --model edm-cifar10 --random-weights --nfe 5,10,20 --engine tensorrt-rtx  # engines too
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table

from edge_sampler.calibration.arguments import add_model_arguments, load_model
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.settings import Settings
from edge_sampler.export.assemble import export_bundle, export_graphs, write_graphs
from edge_sampler.export.build_engine import build, read_graph
from edge_sampler.export.engine_command import add_engine_arguments, additions_of
from edge_sampler.export.extend import Additions
from edge_sampler.export.network_graph import OPSET, Positional
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.progress import Screen
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command_line import Parser, run_command, whole_numbers
from edge_sampler.runtime.engine_record import Engine
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.scratch import scratch

BARE = 0  # stands for the bare export where a number of evaluations is expected
KIB = 1024  # ru_maxrss counts in these


def main() -> None:
    parser = Parser(
        prog="python -m export.export_cost",
        description=__doc__,
        common=("--model", "--weights", "--random-weights", "--nfe", "--rounds", "--engine"),
    )
    add_model_arguments(parser)
    parser.add_argument("--nfe", type=whole_numbers, default=[10, 40], help="such as 10,40 (the default)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is measured (default: 3)")
    add_engine_arguments(parser)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)  # what one process of its own does
    arguments = parser.parse_args()
    additions = additions_of(arguments)
    if arguments.measure is not None:
        model = load_model(arguments)
        print(json.dumps(measure(model, arguments.measure, additions)))
        return
    if arguments.rounds < 1 or min(arguments.nfe) < 1:
        raise UserError(f"--rounds is {arguments.rounds} and --nfe {arguments.nfe}; both must be at least 1")
    load_model(arguments)  # so that bad input is reported here
    found: dict[int, list[dict[str, Any]]] = {nfe: [] for nfe in (BARE, *arguments.nfe)}
    for _ in range(arguments.rounds):
        for nfe, measured in found.items():
            command = [sys.executable, "-m", "edge_sampler.export.export_cost", *sys.argv[1:], "--measure", str(nfe)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            measured.append(json.loads(output.splitlines()[-1]))
    show(found)


def measure(model: Denoiser, nfe: int, additions: Additions | None) -> dict[str, Any]:
    """Seconds from the loaded model to the files, and what came of it; ``BARE`` for PyTorch's exporter alone."""
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    plan = calibrate(model, Settings(nfe, "ddim")) if nfe else None
    with scratch() as folder:
        started = time.perf_counter()
        if plan is None:
            bare_export(model, folder / "bare.onnx")
            result: dict[str, Any] = {}
        else:
            graphs = export_graphs(model)
            written = write_graphs(graphs, plan, folder)
            size = written.sampler_bytes
            result = {"bytes": size, "size": size / written.denoiser_bytes, "nodes": written.nodes / nfe}
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
        if plan and additions and additions.engine:
            exported = export_bundle(model, plan, folder / "bundle", graphs=graphs)
            result |= measure_engine(Bundle.open(exported.folder), additions.engine, weights)
    return result | {"seconds": seconds, "memory": peak / weights, "peak": peak}


def bare_export(model: Denoiser, path: Path) -> None:
    """PyTorch's exporter alone, on the model as it is."""
    conditions = model.encode(model.draw_raw([0, 1]))
    example = (torch.zeros(2, *model.spec.shape), torch.tensor(1.0), *conditions.values())
    batch: Any = {0: torch.export.Dim.DYNAMIC}
    told = (tuple(batch for _ in conditions),) if conditions else ()
    torch.onnx.export(
        Positional(model, tuple(conditions)),
        example,
        path,
        dynamic_shapes=(batch, None, *told),
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )


def measure_engine(bundle: Bundle, engine: Engine, weights: int) -> dict[str, Any]:
    graph, nfe = read_graph(bundle, engine), bundle.plan.nfe
    started = time.perf_counter()
    built = build(graph, engine)
    seconds = time.perf_counter() - started
    return {
        "build": seconds / nfe,
        "engine": memoryview(built.engine_bytes).nbytes / weights,
        "layers": built.layers / nfe,
    }


def show(found: dict[int, list[dict[str, Any]]]) -> None:
    table = Table("", "seconds", "/ bare", "peak MB", "/ weights", "sampler / denoiser", "nodes / NFE")
    bare = median(row["seconds"] for row in found[BARE])
    for nfe, rows in found.items():
        seconds = median(row["seconds"] for row in rows)
        table.add_row(
            f"export, NFE {nfe}" if nfe else "bare torch.onnx.export",
            f"{seconds:.1f}",
            f"{seconds / bare:.2f}",
            f"{max(row['peak'] for row in rows) / 1e6:.0f}",
            f"{max(row['memory'] for row in rows):.2f}",
            f"{rows[0]['size']:.3f}" if nfe else "",
            f"{rows[0]['nodes']:.0f}" if nfe else "",
        )
    Screen().print(table)
    engines = Table("engine, NFE", "build seconds / NFE", "engine / fp32 weights", "layers / NFE")
    for nfe, rows in found.items():
        if "build" in rows[0]:
            seconds = median(row["build"] for row in rows)
            engines.add_row(str(nfe), f"{seconds:.2f}", f"{rows[0]['engine']:.2f}", f"{rows[0]['layers']:.0f}")
    if engines.rows:
        Screen().print(engines)


if __name__ == "__main__":
    run_command(main)
