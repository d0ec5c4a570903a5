"""The policy in its control loop, as a robot runs it: NumPy and the bundle, no PyTorch.

    python -m export --model examples/policy/model.py:make --nfe 4 --out policy
    python examples/policy/control.py policy --rate 200

In every control period the robot carries out one action. After eight it looks, and plans the next chunk within that
period, on the bundle's engine where this machine has a GPU for it, else on ONNX Runtime.
"""

import time

import numpy as np
from task import CHUNK, episodes

import edge_sampler
from edge_sampler.runtime.command_line import Parser, run_command


class Clock:
    """Control periods of 1/rate seconds; ``wait`` ends one. A late period is one whose work took longer than it has."""

    def __init__(self, rate: float) -> None:
        self.period, self.late, self.periods = 1 / rate, 0, 0
        self.started = time.perf_counter()
        self.due = self.started + self.period

    def wait(self) -> None:
        self.periods += 1
        left = self.due - time.perf_counter()
        if left < 0:
            self.late += 1
            self.due -= left  # the next period begins now
        else:
            time.sleep(left)
        self.due += self.period

    @property
    def held(self) -> float:
        """Periods a second."""
        return self.periods / (time.perf_counter() - self.started)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("bundle", help="of examples/policy/model.py:make")
    parser.add_argument("--rate", type=float, default=100.0, help="control periods a second (default: 100)")
    parser.add_argument("--episodes", type=int, default=20, help="default: 20")
    parser.add_argument("--backend", default="auto", help="default: auto, the best that this machine can run")
    arguments = parser.parse_args()
    if not 0 < arguments.rate < float("inf"):
        raise edge_sampler.UserError(f"--rate is {arguments.rate}; it must be above 0 and finite")
    if arguments.episodes < 1:
        raise edge_sampler.UserError(f"--episodes is {arguments.episodes}; it must be at least 1")
    with edge_sampler.load(arguments.bundle, arguments.backend) as sampler:
        output, conditions = sampler.bundle.output, list(sampler.bundle.inputs.conditions)
        if conditions != ["observation"] or output.shape != (CHUNK, 2):
            raise edge_sampler.UserError(
                f"{arguments.bundle} makes {output.name} {list(output.shape)} of {', '.join(conditions) or 'nothing'}; "
                "the task needs the policy of examples/policy/model.py:make"
            )
        took: list[float] = []

        def plan(observation: np.ndarray, period: int) -> np.ndarray:
            begun = time.perf_counter()
            actions = sampler.sample([len(took)], observation=observation)
            took.append(time.perf_counter() - begun)
            return actions

        episodes(plan, 1)  # the first run is slower
        took.clear()
        clock, succeeded = Clock(arguments.rate), 0
        for seed in range(arguments.episodes):
            succeeded += int(episodes(plan, 1, seed, clock.wait)[0].sum())
        print(f"on {sampler.description}: a chunk in {1e3 * np.median(took):.2f} ms, at most {1e3 * max(took):.2f} ms")
        print(f"holds {clock.held:.1f} of {arguments.rate:g} Hz: {clock.late} of {clock.periods} periods were late")
        print(f"reached the goal untouched in {succeeded} of {arguments.episodes} episodes")


if __name__ == "__main__":
    run_command(main)
