"""Makes very many samples in shards, by several processes or a cluster. A shard is complete or absent.

python -m runtime generate BUNDLE --seeds 0-999999 --out shards/
python -m runtime generate BUNDLE --seeds 0-999999 --class-labels 0-9 --workers 4 --out shards/
python -m runtime generate BUNDLE --seeds 0-999999 --ray HOST:6379 --workers 16 --out /shared/shards

A shard is a tar for WebDataset. It has SEED.json and SEED.png for each sample, or SEED.npy if the sample is no picture.
shards.json lists all shards with their hashes. After a kill, the same command goes on.
"""

import argparse
import re
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from edge_sampler.runtime.backends import BACKENDS, choose
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command_line import MOST_NUMBERS, Parser, add_verify_key, conditions_of, whole_numbers
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.generate.job import (
    FORMATS,
    RECORD,
    Job,
    Shard,
    finished,
    manifest_sha256,
    missing,
    write_record,
)
from edge_sampler.runtime.generate.on_ray import on_ray
from edge_sampler.runtime.generate.workers import in_processes
from edge_sampler.runtime.lock import locked
from edge_sampler.runtime.noise import SEEDS
from edge_sampler.runtime.output import check_link, make_all, sweep
from edge_sampler.runtime.sampler import checked_temperature

MOST_WORKERS, MOST_SAMPLES = 1024, 10**8  # of one job
EVERY = 1.0  # seconds between two records of what is done, and between two lines of progress


def main() -> int:
    parser = Parser(
        prog="python -m runtime generate",
        description=__doc__,
        common=("--seeds", "--out", "--workers", "--class-labels", "--condition", "--format"),
    )
    parser.add_argument("bundle", type=Path)
    add_verify_key(parser)
    parser.add_argument("--seeds", type=span, required=True, metavar="FIRST-LAST", help="such as 0-999999")
    parser.add_argument("--out", type=Path, required=True, help="a new folder, or the folder of the same job")
    parser.add_argument("--workers", type=int, help="processes (default: 1); with --ray, tasks at a time (default: 8)")
    parser.add_argument("--ray", metavar="ADDRESS", help="a cluster of Ray: HOST:PORT, auto, or local")
    parser.add_argument("--shard", type=int, default=1000, help="samples in one shard (default: 1000)")
    parser.add_argument("--format", choices=FORMATS, default="webdataset", help="default: webdataset")
    condition_help = "as for `sample`: one value for all seeds, or one for each"
    parser.add_argument("--condition", action="append", default=[], metavar="NAME=VALUE", help=condition_help)
    parser.add_argument("--class-labels", type=whole_numbers, help="such as 0-9; the seeds take them in turn")
    parser.add_argument("--temperature", type=float, help="scales the noise (default: as for `sample`)")
    parser.add_argument("--batch", type=int, help="samples in one run (default: an engine's largest, or up to 64)")
    parser.add_argument("--backend", default="auto", help=f"auto (default), {', '.join(BACKENDS)}")
    parser.add_argument("--precision", help="the network's precision, such as fp16")
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle, arguments.verify_key)
    workers = arguments.workers if arguments.workers is not None else 1 if arguments.ray is None else 8
    for name, value, most in (("workers", workers, MOST_WORKERS), ("shard", arguments.shard, MOST_NUMBERS)):
        if not 1 <= value <= most:
            raise UserError(f"--{name} is {value}; it must be at least 1 and at most {most:,}")
    check_link(arguments.out)
    job = job_of(arguments, bundle)
    record = job.record(bundle)
    out = arguments.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: --out is a folder")
    try:
        make_all(out)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from error
    with locked(out / ".lock", f"another process writes into {out}: wait for it, or name another folder"):
        there = finished(out, record)
        sweep(out)
        write_record(out, record, there, complete=False)  # what cannot be written is known before the work
        try:
            run(job, record, there, workers, arguments.ray)
        except UserError:
            if not any(out.glob("shard-*")):  # else the folder would be that of a job that cannot be
                (out / RECORD).unlink()
            raise
    return 0


def span(text: str) -> range:
    """``0-999999``, or one number."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not match or not int(match[1]) <= int(match[2] or match[1]) < SEEDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of seeds such as 0-999999, below {SEEDS}")
    seeds = range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(seeds) > MOST_SAMPLES:
        raise argparse.ArgumentTypeError(f"{text!r} is {len(seeds):,} seeds; a job has {MOST_SAMPLES:,} at most")
    return seeds


def job_of(arguments: argparse.Namespace, bundle: Bundle) -> Job:
    """The job, its conditions checked for every seed."""
    known, seeds = bundle.inputs.conditions, arguments.seeds
    told = conditions_of(arguments, known)
    if arguments.class_labels is not None:
        told["class_labels"] = np.resize(np.array(arguments.class_labels), len(seeds))
    backend = choose(bundle, arguments.backend, arguments.precision)  # says at once what cannot run
    temperature = checked_temperature(bundle, arguments.temperature)
    conditions, sizes = bundle.inputs.check(bundle.tokenized(told), len(seeds))
    texts = {
        name: value if isinstance(value, str) else np.broadcast_to(value, len(seeds))
        for name, value in told.items()
        if np.asarray(value).dtype.kind == "U"
    }
    return Job(
        bundle=str(bundle.folder.resolve()),
        manifest_sha256=manifest_sha256(bundle),
        out=str(arguments.out.resolve()),
        seeds=seeds,
        shard=arguments.shard,
        form=arguments.format,
        backend=arguments.backend,
        precision=backend.precision(bundle, arguments.precision),
        batch=arguments.batch,
        temperature=temperature,
        conditions=conditions,
        texts=texts,
        sizes=sizes,
    )


def run(job: Job, record: dict[str, Any], there: dict[str, Shard], workers: int, ray: str | None) -> None:
    """Makes the shards that are missing, and tells how it goes."""
    out, total, started, told = Path(job.out), len(job.seeds), time.monotonic(), 0.0
    before = sum(shard.count for shard in there.values())
    if before:
        print(f"{before:,} of {total:,} are there already", file=sys.stderr)
    tasks, made = missing(job, there), before
    for shard in in_processes(tasks, workers) if ray is None else on_ray(tasks, workers, ray):
        there[shard.file] = shard
        made += shard.count
        elapsed = time.monotonic() - started
        if elapsed - told > EVERY or made == total:
            told = elapsed
            write_record(out, record, there, complete=made == total)
            show(made, total, (made - before) / max(elapsed, 1e-9))
    write_record(out, record, there, complete=True)
    by = ", ".join(sorted({shard.by for shard in there.values()}))
    print(f"{out}: {total:,} samples in {job.shards:,} shards, by {by}")


def show(made: int, total: int, rate: float) -> None:
    """One line of progress: written over the last one on a terminal."""
    left = timedelta(seconds=round((total - made) / rate))
    end = "\r" if sys.stderr.isatty() and made < total else "\n"
    print(f"{made:>12,} of {total:,}  {rate:,.1f} a second  {left} left ", end=end, file=sys.stderr, flush=True)
