"""The rivals are what their papers say, choose on noises that do not judge, and count what they spend."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.evaluate.noise_sets import to_fit, to_judge
from edge_sampler.calibration.evaluate.reference import REFERENCE_STEPS
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.schedules import edm
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import Scheme, Solver
from edge_sampler.calibration.study.command import rivals_of
from edge_sampler.calibration.study.rivals import bns, fixed, gits, ld3, ours
from edge_sampler.calibration.study.rivals.contest import Contest
from edge_sampler.calibration.study.rivals.entry import RIVALS, enter
from edge_sampler.calibration.study.rivals.gradient import BACKWARD, descent, flat
from edge_sampler.calibration.study.rivals.learn import BATCH, Lesson, learn
from edge_sampler.calibration.trace import trace
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.progress import silent
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan, sample
from tests.calibration.toys import calls_of
from tests.conftest import report_of

SETTINGS = Settings(3, fit_batch=8, heldout=8, fit_target="global")


def contest(model: Denoiser, cache: Cache = NO_CACHE, nfe: int = 3) -> Contest:
    settings = replace(SETTINGS, nfe=nfe)
    return Contest(to_fit(model, settings.fit_batch, settings.heldout, 0), settings, cache)


def solver_on(name: str, nfe: int) -> Scheme:
    solver = find(name)
    return Scheme(solver, edm(solver.steps(nfe), 0.02, 80.0), nfe)


def heldout_error(contest: Contest, plan: Plan) -> float:
    return contest.errors([plan], 8)[0]


@pytest.mark.parametrize("factor", [1.0, 1.15, 0.8])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_path_of_gits_is_the_best_of_all(factor: float, steps: int) -> None:
    costs = np.random.default_rng(steps).random((7, 7))
    costs[np.tri(7, dtype=bool)] = np.inf

    def price(places: tuple[int, ...]) -> float:
        return sum(factor**k * costs[pair] for k, pair in enumerate(pairwise(places)))

    every = [(0, *inner, 6) for inner in combinations(range(1, 6), steps - 1)]
    assert tuple(gits.path(costs, steps, factor)) == min(every, key=price)


def test_errors_of_gits_steps_are_those_of_euler_steps(mixture: Denoiser) -> None:
    noises, levels = to_fit(mixture, 3, 1, 0), [80.0, 8.0, 2.0, 0.5, 0.1]
    states, slopes = gits.trajectory(noises.network, levels[0] * noises.noise, levels)
    distances, departures = gits.step_errors(states, slopes, levels)
    euler = states[1] + (0.5 - 8.0) * (states[1] - noises.network(states[1], 8.0)) / 8.0
    wrong = (euler - states[3]).flatten(1)
    assert distances[1, 3] == pytest.approx(wrong.norm(dim=1).sum().item(), rel=1e-4)
    assert distances[0, 4] > 2 * distances[3, 4]
    line = (states[-1] - states[0]).flatten(1)

    def height(point: torch.Tensor) -> torch.Tensor:  # of the triangle upon the line: Pythagoras
        away = (point - states[0]).flatten(1)
        along = (away * line).sum(1) / line.norm(dim=1)
        return (away.square().sum(1) - along.square()).clamp_min(0).sqrt()

    assert departures[1, 3] == pytest.approx((height(euler) - height(states[3])).sum().item(), rel=1e-3)


def test_derivatives_through_the_loop_are_those_of_differences(mixture: Denoiser) -> None:
    few = to_judge(mixture, 2)
    plan, goal = trace(solver_on("ipndm", 3)), torch.zeros_like(few.noise)

    def loss(errors: torch.Tensor) -> torch.Tensor:
        return errors.sqrt().mean()

    def value(plan: Plan, noise: torch.Tensor) -> float:
        return loss((sample(few.network, noise, plan) - goal).square().flatten(1).mean(1)).item()

    by_plan, by_noise = descent(few.network, few.noise, goal, plan, loss)
    assert len(by_plan) == len(flat(plan))
    rows = [list(row) for row in plan.table]
    for place, (k, j) in enumerate((k, j) for k, row in enumerate(rows) for j in range(len(row))):
        size = 0.02 * max(1.0, plan.sigmas[min(k, 2)]) if k < 3 else 0.02
        moved = []
        for side in (size, -size):
            changed = [list(row) for row in rows]
            changed[k][j] += side
            moved.append(value(replace(plan, table=tuple(map(tuple, changed))), few.noise))
        assert by_plan[place] == pytest.approx((moved[0] - moved[1]) / (2 * size), rel=0.1, abs=2e-3), (k, j)
    for k, sigma in enumerate(plan.sigmas):
        moved = []
        for side in (1.02, 0.98):
            told = (*plan.sigmas[:k], sigma * side, *plan.sigmas[k + 1 :])
            moved.append(value(replace(plan, sigmas=told), few.noise))
        slope = (moved[0] - moved[1]) / (0.04 * sigma)
        assert by_plan[len(by_plan) - 3 + k] == pytest.approx(slope, rel=0.1, abs=1e-3 / sigma), k
    towards = 0.01 * by_noise / by_noise.norm()
    slope = (value(plan, few.noise + towards) - value(plan, few.noise - towards)) / 0.02
    assert by_noise.norm().item() == pytest.approx(slope, rel=0.1)


@pytest.mark.parametrize("solver", fixed.FIXED, ids=lambda solver: solver.name)
def test_fixed_solvers_evaluate_as_often_as_nfe_says(solver: Solver, mixture: Denoiser) -> None:
    for nfe, mean in product((1, 2, 3, 4), (None, torch.zeros(mixture.spec.shape))):
        assert {trace(scheme).nfe for scheme in fixed.schemes(mixture, solver, nfe, mean)} == {nfe}


@pytest.mark.parametrize("solver", fixed.FIXED, ids=lambda solver: solver.name)
def test_a_solver_is_where_ld3_starts(solver: Solver) -> None:
    for grid in (edm(solver.steps(5), 0.002, 80.0), edm(solver.steps(5) + 1, 0.002, 80.0)[:-1]):
        if grid[-1] == 0 or solver.steps(5) == 5:
            scheme = Scheme(solver, grid, 5)
            made, meant = ld3.plan_of(ld3.parameters_of(scheme), scheme), trace(scheme)
            np.testing.assert_allclose(flat(made), flat(meant), rtol=1e-9, atol=1e-9)
            shifted = ld3.parameters_of(scheme)
            shifted[-meant.nfe] += np.log(2)
            assert ld3.plan_of(shifted, scheme).sigmas[0] == pytest.approx(2 * meant.sigmas[0])
            np.testing.assert_allclose(np.concatenate(ld3.plan_of(shifted, scheme).table), np.concatenate(meant.table))


@pytest.mark.parametrize("name", ["ipndm", "dpmpp-2m", "unipc", "heun", "ddim"])
def test_every_table_without_afs_is_one_of_bns(name: str) -> None:
    meant = trace(solver_on(name, 5))
    made = bns.plan_of(bns.parameters_of(meant), 5, meant.sigmas[0])
    np.testing.assert_allclose(flat(made), flat(meant), rtol=1e-7, atol=1e-7)


def test_a_velocity_of_bns_is_the_paths(mixture: Denoiser) -> None:
    """With the last row alone, Euler's step to the end from x̂_0 lands on the denoised image."""
    sigmas = [80.0]
    parameters = np.array([1.0, -80.0 / 81.0])
    plan = bns.plan_of(parameters, 1, sigmas[0])
    noise = torch.randn(2, *mixture.spec.shape, dtype=torch.float64)
    images = sample(lambda x, sigma: 0.25 * torch.ones_like(x), noise, plan)
    torch.testing.assert_close(images, 0.25 * torch.ones_like(noise), atol=1e-9, rtol=0)


def lesson_of_ld3(
    nfe: int, iterations: int, rates: tuple[float, ...] = (0.03,), radius: float = 0.0, solver: str = "ddim"
) -> Lesson:
    scheme = solver_on(solver, nfe)
    return Lesson(
        "LD3",
        lambda parameters: ld3.plan_of(parameters, scheme),
        ld3.parameters_of(scheme),
        lambda errors: errors.sqrt().mean(),
        rates,
        iterations,
        radius,
        judged_every=4,
    )


def test_learning_moves_levels_to_where_the_error_is_less(mixture: Denoiser) -> None:
    entered = contest(mixture)
    start = trace(solver_on("ddim", 3))
    learned = learn(entered, lesson_of_ld3(3, 12))
    assert heldout_error(entered, learned) < 0.9 * heldout_error(entered, start)
    assert learned.sigmas != start.sigmas


def test_without_iterations_bns_is_the_solver_that_it_starts_from(
    mixture: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = solver_on("dpmpp-2m", 3)
    monkeypatch.setattr(bns, "best_scheme", lambda contest, afs: start)
    np.testing.assert_allclose(flat(bns.bns(contest(mixture), 0)), flat(trace(start)), rtol=1e-7, atol=1e-7)
    entered = contest(mixture)
    assert heldout_error(entered, bns.bns(entered, 8, judged_every=4)) < 0.95 * heldout_error(entered, trace(start))


def test_a_rate_that_runs_away_is_left_behind(mixture: Denoiser) -> None:
    entered = contest(mixture)
    calm = learn(entered, lesson_of_ld3(3, 8))
    both = learn(entered, lesson_of_ld3(3, 8, rates=(1e3, 0.03)))
    assert flat(both) == pytest.approx(flat(calm))


def test_noises_move_within_their_ball_and_only_those_that_fit(
    mixture: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    real = descent

    def spy(network: object, noise: torch.Tensor, *rest: object) -> object:
        seen.append(noise)
        return real(network, noise, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("edge_sampler.calibration.study.rivals.learn.descent", spy)
    entered = contest(mixture)
    learn(entered, lesson_of_ld3(3, 4, radius=0.5))
    shifts = [(noise - entered.noises.noise[:8]).flatten(1).norm(dim=1) for noise in seen]
    assert shifts[0].max() == 0
    assert shifts[1].min() == pytest.approx(0.25)
    assert 0.25 < shifts[-1].max() <= 0.5 + 1e-9
    assert all(len(noise) == 8 for noise in seen)


def test_choices_rest_on_held_out_noises_that_do_not_judge(mixture: Denoiser) -> None:
    entered = contest(mixture)
    one, other = trace(solver_on("ddim", 3)), trace(solver_on("ipndm", 3))
    noises = entered.noises
    for wanted, unwanted in ((one, other), (other, one)):
        fitting = sample(noises.network, noises.noise, unwanted)[:8]
        heldout = sample(noises.network, noises.noise, wanted)[8:]
        entered.__dict__["goal"] = torch.cat([fitting, heldout])
        assert entered.best([one, other]) == wanted
    assert not torch.isin(to_judge(mixture, 32).noise, noises.noise).any()


def test_many_candidates_are_thinned_out_without_losing_the_best(mixture: Denoiser) -> None:
    entered = contest(mixture)
    plans = [trace(replace(solver_on("ipndm", 3), sigmas=[80.0, top, 0.3, 0.0])) for top in np.linspace(0.5, 40, 12)]
    errors = entered.errors(plans, 8)
    assert entered.best(plans) == plans[int(np.argmin(errors))]


@pytest.mark.parametrize("name", ["best-fixed", "gits", "ld3"])
def test_a_fit_counts_what_it_spends_and_a_kept_one_what_it_spent(
    name: str, mixture: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ld3, "best_scheme", lambda contest, afs: solver_on("ddim", 3))
    (rival,) = rivals_of(name)
    fewer: dict[str, dict[str, Any]] = {"gits": {"fine": 9}, "ld3": {"iterations": 8, "judged_every": 4}}
    rival = replace(rival, fit=partial(rival.fit, **fewer.get(name, {})))
    entries, made, calls = [], [], calls_of(mixture)
    for _ in range(2):
        noises = to_fit(mixture, 8, 8, 0)
        entries.append(enter(rival, noises, SETTINGS, Cache(tmp_path), silent))
        assert noises.network.meter.evaluations == entries[-1].evaluations
        made.append(len(calls))
    assert entries[0] == entries[1]
    assert entries[0].plan.solver == name
    assert entries[0].seconds > 0
    assert made[0] == made[1]
    if name == "ld3":  # converged images, the start judged, two rates tried for two pieces of four iterations
        assert BACKWARD == 2
        pieces = 4 * (4 * min(BATCH, 8) * 3 * 3 + 3 * 8)
        assert entries[0].evaluations == REFERENCE_STEPS * 16 + 3 * 8 + pieces


def test_a_killed_fit_goes_on_where_it_was(mixture: Denoiser, tmp_path: Path) -> None:
    lesson, whole, calls = lesson_of_ld3(3, 12, radius=0.2), contest(mixture), calls_of(mixture)
    undisturbed, made = learn(whole, lesson), len(calls)
    first = contest(mixture, Cache(tmp_path))

    class KilledError(Exception):
        pass

    def advance(samples: int) -> None:
        if meter.evaluations > REFERENCE_STEPS * 16 + 800:
            raise KilledError

    meter = first.noises.network.meter
    object.__setattr__(first, "progress", lambda *_: nullcontext(advance))
    with pytest.raises(KilledError):
        learn(first, lesson)
    again, before = contest(mixture, Cache(tmp_path)), len(calls)
    assert flat(learn(again, lesson)).tolist() == flat(undisturbed).tolist()
    assert 0 < len(calls) - before < made
    assert again.noises.network.meter.evaluations == whole.noises.network.meter.evaluations


def test_our_own_fit_is_that_of_the_command_and_costs_what_it_costs(mixture: Denoiser, tmp_path: Path) -> None:
    settings = replace(SETTINGS, nfe=2, refine=1)
    entries = {}
    for name, refine in (("auto", 0), ("auto-refined", 1)):
        alone = replace(settings, solver="auto", fit_target=None, refine=refine)
        if not refine:  # which has the noises that the command takes by itself
            alone = Settings(2, fine_steps=alone.fine_steps, reference_steps=alone.reference_steps, seed=alone.seed)
        plan = calibrate(mixture, alone, cache=Cache(tmp_path / name))  # empty, as the command's is at first
        (rival,), shown = rivals_of(name), list[int]()
        for progress in (lambda *_, to=shown: nullcontext(to.append), silent):
            entries[name] = enter(rival, to_fit(mixture, 8, 8, 0), settings, Cache(tmp_path), progress)
        assert sum(shown) == report_of(plan).evaluations  # in its bar
        assert entries[name].plan.sha256 == plan.sha256
        assert entries[name].evaluations == report_of(plan).evaluations
        assert entries[name].solver == plan.solver


def test_what_is_kept_of_one_solver_is_not_taken_for_another(mixture: Denoiser, tmp_path: Path) -> None:
    """Their parameters are the same: noise levels alone."""
    cache = Cache(tmp_path)
    learn(contest(mixture, cache), lesson_of_ld3(3, 4, solver="ddim"))
    kept, alone = (learn(contest(mixture, one), lesson_of_ld3(3, 4, solver="dpmpp-2m")) for one in (cache, NO_CACHE))
    assert kept == alone


def test_names_of_rivals() -> None:
    assert rivals_of("all") == [*RIVALS]
    assert rivals_of("none") == []
    assert [rival.name for rival in rivals_of("bns, gits")] == ["gits", "bns"]
    with pytest.raises(UserError, match="unknown 'gts'; known: best-fixed"):
        rivals_of("gits,gts")


def test_our_own_fit_is_kept_by_what_its_view_shows(mixture: Denoiser, tmp_path: Path) -> None:
    """A view is a function of a file, which may change under its name."""
    view, plans = tmp_path / "view.py", []
    for weight in ("1.0", "torch.arange(x[0].numel()).float() ** 2"):
        view.write_text(f"import torch\n\ndef see(x):\n    return x.flatten(1) * {weight}\n")
        settings = replace(SETTINGS, refine=1, refine_on=f"{view}:see")
        noises = to_fit(mixture, settings.fit_batch, settings.heldout, 0)
        plans.append(ours.refined(Contest(noises, settings, Cache(tmp_path / "cache"))))
    assert plans[0] != plans[1]
