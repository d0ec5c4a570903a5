"""The task: a point robot goes to a goal, round an obstacle that stands halfway, on the left or on the right.

Two ways are right and their mean is wrong. The robot is disturbed at every step, so that it has to look again.
NumPy alone: a robot runs this.
"""

from collections.abc import Callable

import numpy as np

PERIODS = 40  # control periods that the expert takes
LONGEST = 60  # and that an episode may take
CHUNK, EXECUTED = 16, 8  # actions that a policy plans, and that are carried out before it looks again
OBSERVED = 8  # position one period ago, position, goal, obstacle: x and y of each, m
RADIUS, PASSING = 0.25, 0.38  # m: of the obstacle, robot included; from its centre, where the expert passes
FASTEST, REACHED = 0.12, 0.1  # m: in one period; from the goal, at the end
DISTURBED = 0.01  # m in one period, standard deviation in x and in y

Plan = Callable[[np.ndarray, int], np.ndarray]  # observations [n, 8], the period → actions [n, 16, 2], m


def scenes(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, goal and obstacle, [n, 2] each, m: from left to right, the obstacle near the middle of the way."""
    start = np.stack([np.full(count, -1.0), rng.uniform(-0.5, 0.5, count)], -1)
    goal = np.stack([np.full(count, 1.0), rng.uniform(-0.5, 0.5, count)], -1)
    return start, goal, (start + goal) / 2 + rng.uniform(-0.1, 0.1, (count, 2))


def moved(position: np.ndarray, action: np.ndarray, rng: np.random.Generator, disturbed: float) -> np.ndarray:
    """Where the robot is one period after it was told to go to ``action``, [n, 2] m."""
    way = action - position
    length = np.maximum(np.linalg.norm(way, axis=-1, keepdims=True), 1e-9)
    return position + way * np.minimum(1, FASTEST / length) + disturbed * rng.standard_normal(way.shape)


def demonstrations(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Observations [n·40, 8] and the expert's next actions [n·40, 16, 2], m; it is disturbed more than a policy."""
    start, goal, obstacle = scenes(count, rng)
    side = rng.choice([-1.0, 1.0], count)

    def path(period: int) -> np.ndarray:
        done = min(period / PERIODS, 1)
        bend = (obstacle - (start + goal) / 2)[:, 1] + side * PASSING
        return start + done * (goal - start) + np.sin(np.pi * done) * np.stack([0 * bend, bend], -1)

    positions, actions = [start, start], []
    for period in range(PERIODS + CHUNK):
        actions.append(path(period + 1) + 0.8 * (positions[-1] - path(period)))
        positions.append(moved(positions[-1], actions[-1], rng, 2 * DISTURBED))
    observed = [np.concatenate([positions[k], positions[k + 1], goal, obstacle], -1) for k in range(PERIODS)]
    chunks = [np.stack(actions[k : k + CHUNK], 1) for k in range(PERIODS)]
    return np.concatenate(observed).astype(np.float32), np.concatenate(chunks).astype(np.float32)


def episodes(
    plan: Plan, count: int, seed: int = 0, each: Callable[[], None] = lambda: None
) -> tuple[np.ndarray, np.ndarray]:
    """Runs ``count`` episodes at once: whether each reached its goal untouched, and whether it passed on the left.

    ``each`` is called after every control period.
    """
    rng = np.random.default_rng([7, seed])
    position, goal, obstacle = scenes(count, rng)
    before, actions = position, np.empty(0)
    touched, reached, above = (np.zeros(count, bool) for _ in range(3))
    for period in range(LONGEST):
        if period % EXECUTED == 0:
            actions = plan(np.concatenate([before, position, goal, obstacle], -1).astype(np.float32), period)
        before, position = position, moved(position, actions[:, period % EXECUTED], rng, DISTURBED)
        above = np.where(position[:, 0] < obstacle[:, 0], position[:, 1] > obstacle[:, 1], above)
        touched |= ~reached & (np.linalg.norm(position - obstacle, axis=-1) < RADIUS)
        reached |= np.linalg.norm(position - goal, axis=-1) < REACHED
        each()
        if reached.all():
            break
    return reached & ~touched, above
