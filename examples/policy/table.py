"""Success and latency of the policy: fitted at few evaluations, and with DDIM as lerobot runs it.

    python examples/policy/table.py --out docs/policy.md    # takes minutes

Trains, fits, exports a bundle for each row and runs all of them in the same episodes, on ONNX Runtime. In a page that
has the two lines of ``MARKS`` the table stands between them.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from model import LEVELS, policy, trained
from task import episodes, scenes

import edge_sampler
from edge_sampler.calibration.own_steps import library_ddim
from edge_sampler.export.assemble import export_graphs
from edge_sampler.models.progress import bar
from edge_sampler.runtime.command_line import Parser, run_command
from edge_sampler.runtime.output import writable

FITTED, DDIM = (2, 4, 8), (2, 4, 8, 10, 50, 100)
MARKS = "<!-- table.py -->", "<!-- end -->"
HEAD = (
    "| sampler | NFE | reached the goal untouched, % (95 % interval) | passed on the left, % | ms a chunk |",
    "| --- | ---: | --- | ---: | ---: |",
)


@dataclass
class Row:
    name: str
    nfe: int
    sampler: edge_sampler.Sampler
    succeeded: float = 0.0
    left: float = 0.0
    seconds: float = 0.0

    def line(self, count: int) -> str:
        low, high = interval(self.succeeded, count)
        share = f"{100 * self.succeeded:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        return f"| {self.name} | {self.nfe} | {share} | {100 * self.left:.0f} | {1e3 * self.seconds:.2f} |"


def interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share that was found in ``count`` episodes."""
    middle, wide = share + z**2 / (2 * count), z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return (middle - wide) / (1 + z**2 / count), (middle + wide) / (1 + z**2 / count)


def rows(folder: Path, iterations: int, fitted: Sequence[int] = FITTED, ddim: Sequence[int] = DDIM) -> list[Row]:
    """A sampler for each row, its bundle in ``folder``."""
    networks, made = trained(iterations), list[Row]()

    def add(name: str, model: edge_sampler.Denoiser, plans: Iterable[edge_sampler.Plan]) -> None:
        graphs = export_graphs(model)
        for plan in plans:
            out = folder / str(len(made))
            edge_sampler.export_bundle(model, plan, out, graphs=graphs, force=True)
            made.append(Row(name, plan.nfe, edge_sampler.load(out, "onnxrt")))

    model = policy(*networks, sigma_max=float(LEVELS[90]))
    add("fitted", model, (edge_sampler.fit(model, nfe=nfe, progress=bar) for nfe in fitted))
    model = policy(*networks, sigma_max=float(LEVELS[-1]))  # from where DDIM of a hundred steps starts
    add("DDIM with clip_sample", model, (library_ddim(LEVELS, nfe, clip=1.0) for nfe in ddim))
    return made


def judge(row: Row, count: int) -> None:
    """In the same scenes and with the same noises for every row."""

    def plan(observation: np.ndarray, period: int) -> np.ndarray:
        seeds = range(period * count, (period + 1) * count)
        return row.sampler.sample(seeds, batch=min(count, 250), observation=observation)

    reached, left = episodes(plan, count)
    row.succeeded, row.left = float(reached.mean()), float(left.mean())


def time_all(made: list[Row], runs: int) -> None:
    """Median seconds of one chunk, in turns, so that a busy machine is busy for all."""
    start, goal, obstacle = scenes(1, np.random.default_rng(0))
    observation = np.concatenate([start, start, goal, obstacle], -1).astype(np.float32)
    took: list[list[float]] = [[] for _ in made]
    for seed in range(runs):
        for row, seconds in zip(made, took, strict=True):
            row.sampler.sample([0], observation=observation)  # after another sampler's turn the first is slower
            begun = time.perf_counter()
            row.sampler.sample([seed], observation=observation)
            seconds.append(time.perf_counter() - begun)
    for row, seconds in zip(made, took, strict=True):
        row.seconds = float(np.median(seconds))


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=2000, help="default: 2000, for an interval of at most ±2.2 %%")
    parser.add_argument("--iterations", type=int, default=4000, help="of training (default: 4000)")
    parser.add_argument("--bundles", type=Path, default=Path("artifacts/policy"), help="where each row's bundle goes")
    parser.add_argument("--out", type=Path, help="a page, Markdown, for the table (default: print it)")
    arguments = parser.parse_args()
    made = rows(arguments.bundles, arguments.iterations)
    with bar("episodes", len(made)) as advance:
        for row in made:
            judge(row, arguments.episodes)
            advance(1)
    time_all(made, 200)
    table = "\n".join([*HEAD, *(row.line(arguments.episodes) for row in made)])
    print(table)
    if arguments.out:
        page = arguments.out.read_text() if arguments.out.is_file() else "\n".join(MARKS)
        before, _, rest = page.partition(MARKS[0])
        _, _, behind = rest.partition(MARKS[1])
        with writable(arguments.out, force=True) as path:
            path.write_text(f"{before}{MARKS[0]}\n\n{table}\n\n{MARKS[1]}{behind}")


if __name__ == "__main__":
    run_command(main)
