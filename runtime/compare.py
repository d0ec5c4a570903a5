"""Parity without PyTorch: each backend's sampler, the loop over denoiser.onnx, and PyTorch's recorded output."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_sampler.runtime.backends import choose
from edge_sampler.runtime.backends.base import Backend, Session
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.images import as_floats
from edge_sampler.runtime.plan import Plan, labels_told, sample
from edge_sampler.runtime.recorded import INPUT
from edge_sampler.runtime.sampler import checked, checked_seeds, feed_of, made_of, shape_made, usual_batch

HALF_LEVEL = 0.5 / 127.5  # what rounding to uint8 may change
Feed = Mapping[str, np.ndarray]
BASELINE, PYTORCH = "baseline loop", "PyTorch"  # the other paths are called as their backends


@dataclass(frozen=True)
class Trajectory:
    """What one path computed.

    Args:
        plan: that it ran.
        denoised: [nfe, n, *shape], at each evaluation; None where the path does not tell.
        made: [n, …], what the sampler makes.
        tolerance: how far they may be, relative, from what exact arithmetic gives.
        rms_tolerance: how far the median sample may be, RMS.
        precision: of the network.
        inside_tolerance: how far evaluations may be, where that is further.
    """

    plan: Plan

    denoised: np.ndarray | None
    made: np.ndarray
    tolerance: float
    rms_tolerance: float = np.inf
    precision: str = "fp32"
    inside_tolerance: float = 0.0


@dataclass(frozen=True)
class Difference:
    """The difference of two paths at one stage.

    Args:
        stage: "denoised K", or the output's name.
        first: a path: a backend's name, "baseline loop" or "PyTorch".
        second: another path.
        max: the largest difference.
        rms: the root mean square of the differences.
        relative: the largest over the largest magnitude of the second.
        finite: whether all values of both paths are finite.
        expected: the largest allowed ``relative``, for the two paths' precisions.
        median: the median sample's root mean square.
        expected_median: the largest allowed ``median``; infinity if nothing is known of it.
        precisions: the network's precision in the first path and in the second.

    Examples:
        >>> difference = edge_sampler.compare(edge_sampler.Bundle.open("shrink"), backends=["onnxrt"])[-1]
        >>> difference.finite, difference.relative <= difference.expected
        (True, True)
    """

    stage: str
    first: str
    second: str
    max: float
    rms: float
    relative: float
    finite: bool
    expected: float
    median: float
    expected_median: float
    precisions: tuple[str, str]


def compare(
    bundle: Bundle | str | Path,
    seeds: Sequence[int] | None = None,
    backends: Sequence[str] = ("auto",),
    precision: str | None = None,
) -> list[Difference]:
    """Compares each backend's sampler, the baseline loop over denoiser.onnx, and PyTorch's recorded output.

    A refitted precision has its own plan. The loop then runs that plan. PyTorch, which ran plan.json, is left out.

    Args:
        bundle: an open bundle, or a bundle's folder.
        seeds: whole numbers, which get the bundle's examples of conditions in turn; PyTorch is then left out. None: the
            seeds for which the bundle holds PyTorch's output.
        backends: names of ``edge_sampler.runtime.backends.BACKENDS``, or "auto".
        precision: a precision of the bundle; None: each backend's own.

    Returns:
        For every pair of paths, the differences at each evaluation, if both show it, and last in their output.

    Raises:
        UserError: if there is no bundle in the folder, for seeds that are not 1 to a million whole numbers, if no
            backend is named or can run it, if backends run different plans, or if there is nothing to compare with.

    Examples:
        >>> found = edge_sampler.compare("shrink", backends=["onnxrt"])
        >>> [one.stage for one in found if (one.first, one.second) == ("onnxrt", "PyTorch")]
        ['denoised 0', 'denoised 1', 'denoised 2', 'images']
    """
    if isinstance(bundle, str | Path):
        bundle = Bundle.open(bundle)
    if isinstance(backends, str) or not backends:
        raise UserError(f"backends are {backends!r}; they must be a list of names, at least one, such as ['onnxrt']")
    chosen = [choose(bundle, name, precision) for name in backends]
    recorded: dict[str, Trajectory] = {}
    if seeds is None:
        stored = bundle.reference()
        seeds = [int(seed) for seed in stored["seeds"]]
        conditions = {name: stored[f"{INPUT}{name}"] for name in bundle.inputs.conditions}
        recorded[PYTORCH] = Trajectory(bundle.plan, stored["denoised"], stored["made"], bundle.tolerance())
    else:
        seeds = checked_seeds(seeds)
        conditions = bundle.examples(len(seeds))
    feed = feed_of(bundle, seeds, conditions)
    paths = {backend.name: run_sampler(bundle, feed, backend, precision) for backend in chosen}
    plan, *others = {path.plan.sha256: path.plan for path in paths.values()}.values()
    if others:
        raise UserError(
            f"{' and '.join(paths)} run precisions with different plans, of which one was refitted: name a --precision"
        )
    for backend in chosen:
        if backend.open_graph is not None:
            paths[BASELINE] = run_baseline(bundle, feed, backend.open_graph, plan)
            break
    paths |= recorded if plan == bundle.plan else {}
    if len(paths) == 1:
        other_plan = "; PyTorch's recorded output is of plan.json, before the refit" * bool(recorded)
        raise UserError(f"there is nothing to compare with: leave --seeds out, or name another backend{other_plan}")
    names = list(paths)
    return [
        difference
        for i, first in enumerate(names)
        for second in names[i + 1 :]
        for difference in _differences(bundle.output.name, first, paths[first], second, paths[second])
    ]


def run_sampler(bundle: Bundle, feed: Feed, backend: Backend, precision: str | None) -> Trajectory:
    """The unrolled graph or its engine; a graph's intermediate denoised images are fetched as well."""
    made, stages = bundle.output.name, list[str]()
    if backend.open_graph is not None:
        stages, made = [denoised_name(k) for k in range(bundle.plan.nfe)], bundle.inner_output
    with backend.open(bundle, precision, [*stages, *([made] if made != bundle.output.name else [])]) as session:
        ran = [session.run(part) for part in parts(feed)]
        found = {name: np.concatenate([np.atleast_1d(one[name]) for one in ran]) for name in ran[0]}
        precision, by = session.precision, session.description
    made_of(bundle, feed, found)
    for stage in stages:
        checked(found, stage, feed["noise"].shape, "float32", by)
    rounding = HALF_LEVEL if found[made].dtype == np.uint8 else 0
    denoised = np.stack([found[stage] for stage in stages]) if stages else None
    return Trajectory(
        bundle.plan_of(precision),
        denoised,
        as_floats(found[made]),
        bundle.tolerance(precision) + rounding,
        bundle.rms_tolerance(precision) + rounding,
        precision,
        bundle.tolerance(precision, inside=True),
    )


def run_baseline(bundle: Bundle, feed: Feed, open_graph: Callable[[Bundle, str], Session], plan: Plan) -> Trajectory:
    """The plan's loop on the host, one call of denoiser.onnx an evaluation, and the stages around it."""
    denoised, made = list[np.ndarray](), list[np.ndarray]()
    with Baseline(bundle, open_graph, plan) as baseline:
        for part in parts(feed):
            answers = list[np.ndarray]()
            made.append(baseline.run(part, answers.append))
            denoised.append(np.stack(answers))
    return Trajectory(plan, np.concatenate(denoised, 1), np.concatenate(made), bundle.tolerance())


def parts(feed: Feed) -> list[Feed]:
    """Of as many samples as go in one run."""
    count = usual_batch(feed["noise"].shape[1:])
    return [
        {name: rows[start : start + count] for name, rows in feed.items()}
        for start in range(0, len(feed["noise"]), count)
    ]


class Baseline:
    """encoder.onnx, a plan's loop over denoiser.onnx, and decoder.onnx; a context manager that frees them."""

    def __init__(self, bundle: Bundle, open_graph: Callable[[Bundle, str], Session], plan: Plan) -> None:
        self._bundle, self._plan = bundle, plan
        with ExitStack() as stack:
            self._stages = {
                name: stack.enter_context(open_graph(bundle, f"{name}.onnx"))
                for name in ("encoder", "denoiser", "decoder")
                if name == "denoiser" or name in bundle.manifest["stages"]
            }
            self._stack = stack.pop_all()

    def encode(self, feed: Feed) -> dict[str, np.ndarray]:
        """The denoiser's conditions, of the sampler's."""
        conditions = {name: array for name, array in feed.items() if name != "noise"}
        if "encoder" in self._stages:
            taken = {name: conditions.pop(name) for name in self._bundle.manifest["model"]["raw"]}
            conditions |= self._stages["encoder"].run(taken)
        return conditions

    def denoise(self, x: np.ndarray, sigma: float, conditions: Feed) -> np.ndarray:
        feed = {"x": x, "sigma": np.array(sigma, np.float32), **conditions}
        return self._run("denoiser", feed, "denoised", x.shape)

    def _run(self, stage: str, feed: Feed, name: str, shape: Sequence[int]) -> np.ndarray:
        session = self._stages[stage]
        return checked(session.run(feed), name, shape, "float32", session.description)

    def run(self, feed: Feed, record: Callable[[np.ndarray], None] = lambda x: None) -> np.ndarray:
        """What the sampler makes of ``feed``, the inputs of sampler.onnx; ``record`` gets each denoised sample."""
        conditions = self.encode(feed)

        def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
            denoised = self.denoise(x, sigma, conditions)
            record(denoised)
            return denoised

        labels = labels_told(conditions, self._bundle.loop_inputs)
        made: np.ndarray = sample(denoise, feed["noise"], self._plan, labels)
        if "decoder" in self._stages:
            shape = shape_made(self._bundle, feed)
            made = self._run("decoder", {"x": made}, self._bundle.output.name, shape)
        return made

    def __enter__(self) -> "Baseline":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def denoised_name(evaluation: int) -> str:
    """What sampler.onnx calls the answer of one evaluation."""
    return f"denoised_{evaluation}"


def _differences(output: str, first: str, a: Trajectory, second: str, b: Trajectory) -> list[Difference]:
    stages = [(output, a.made, b.made)]
    if a.denoised is not None and b.denoised is not None:
        pairs = zip(a.denoised, b.denoised, strict=True)
        stages = [*((f"denoised {k}", *pair) for k, pair in enumerate(pairs)), *stages]
    for stage, x, y in stages:
        if x.shape != y.shape:
            raise UserError(f"{stage} is {list(x.shape)} by {first} and {list(y.shape)} by {second}: export it again")
    bounds = [bound for bound in (a.rms_tolerance, b.rms_tolerance) if np.isfinite(bound)]
    expected_median = max(bounds, default=np.inf)  # a path of fp32 adds next to nothing
    return [
        Difference(
            stage,
            first,
            second,
            max=float(np.abs(x - y).max()),
            rms=float(np.sqrt(np.mean(np.square(x.astype(np.float64) - y)))),
            relative=float(np.abs(x - y).max() / max(np.abs(y).max(), 1e-30)),
            finite=bool(np.isfinite(x).all() and np.isfinite(y).all()),
            expected=max(
                a.tolerance, b.tolerance, *(() if stage == output else (a.inside_tolerance, b.inside_tolerance))
            ),
            median=float(
                np.median(np.sqrt(np.mean(np.square(x.astype(np.float64) - y), axis=tuple(range(1, x.ndim)))))
            ),
            expected_median=expected_median if stage == output else np.inf,
            precisions=(a.precision, b.precision),
        )
        for stage, x, y in stages
    ]


def within(differences: list[Difference], tolerance: float | None) -> bool:
    """Whether every value is finite and every relative difference at most ``tolerance``; None: what is expected, of the
    median sample too."""
    if tolerance is not None:
        return all(d.finite and d.relative <= tolerance for d in differences)
    return all(d.finite and d.relative <= d.expected and d.median <= d.expected_median for d in differences)
