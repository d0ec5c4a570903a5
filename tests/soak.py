"""Samplers that are asked for long: python -m tests.soak --minutes 15, on Linux

Seeds, their number, batches and conditions change from call to call. Each sample must be what its seed and condition
gave when it was made alone, and the process must not grow.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_sampler.runtime.sampler import Sampler, load
from tests.bundles import BUNDLES

VALUES: dict[str, Sequence[Any]] = {  # of the bundles' conditions
    "class_labels": range(10),
    "prompt": ("a red heart", "a blue star", "", "the moon"),
}
SEEDS = 24  # from which is drawn
LARGEST = 12  # samples of one call: ONNX Runtime keeps a plan of its memory for each number that it meets
CLOSE = 1e-4  # of float samples; one step of eight bits
GROWTH = 8e6  # bytes that a process may come to have from the first tenth on


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Asked:
    """A sampler, and what it made of each seed and value of its condition, one at a time."""

    def __init__(self, sampler: Sampler, seeds: int = SEEDS, largest: int = LARGEST) -> None:
        self.sampler, self.seeds, self.largest = sampler, seeds, largest
        self.condition = next(iter(sampler.bundle.inputs.conditions), None)
        self.values = VALUES[self.condition] if self.condition else (None,)
        for count in range(largest, 0, -1):  # libraries make their room as large as it will be
            self.made([0] * count, [0] * count, count)
        self.alone = {(s, v): self.made([s], [v], 1)[0] for s in range(seeds) for v in range(len(self.values))}

    def made(self, seeds: Sequence[int], values: Sequence[int | None], batch: int | None) -> np.ndarray:
        told: dict[str, Any] = {self.condition: [self.values[v or 0] for v in values]} if self.condition else {}
        return self.sampler.sample(seeds, batch, **told)

    def wrong(self, chance: random.Random) -> tuple[int, int]:
        """How many samples a call made, and how many of them are others'."""
        count = chance.randint(1, self.largest)
        seeds = [chance.randrange(self.seeds) for _ in range(count)]
        values = [chance.randrange(len(self.values)) for _ in seeds]
        made = self.made(seeds, values, chance.choice([None, 1, *[chance.randint(1, self.largest) for _ in range(6)]]))
        close = 1 if made.dtype == np.uint8 else CLOSE
        expected = [self.alone[one] for one in zip(seeds, values, strict=True)]
        far = [np.abs(found.astype(float) - known).max() > close for found, known in zip(made, expected, strict=True)]
        return count, sum(far)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(os.environ.get("EDGE_SAMPLER_BUNDLES") or made)
        if folder == Path(made):
            subprocess.run([sys.executable, "-m", "tests.bundles", made], check=True, stdout=subprocess.DEVNULL)
        asked = [Asked(load(folder / name)) for name in BUNDLES]
        chance, begun, calls, samples, wrong = random.Random(arguments.seed), time.monotonic(), 0, 0, 0
        early = 0
        while (passed := time.monotonic() - begun) < 60 * arguments.minutes:
            count, others = chance.choice(asked).wrong(chance)
            calls, samples, wrong = calls + 1, samples + count, wrong + others
            if not early and passed > 6 * arguments.minutes:
                early = resident()
        grown = resident() - early
    sizes = f"{early / 1e6:.1f} MB of memory after a tenth of the time, {(early + grown) / 1e6:.1f} MB at the end"
    print(f"{calls:,} calls, {samples:,} samples, {wrong} of them wrong; {sizes}")
    return 1 if wrong or grown > GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
