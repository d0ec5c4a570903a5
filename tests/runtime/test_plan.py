"""Plans check themselves, and the loop computes the table."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime.condition import Condition
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.fit_report import FitReport, FittedStep
from edge_sampler.runtime.inputs import Inputs
from edge_sampler.runtime.plan import (
    Plan,
    is_array,
    labels_told,
    mean_shapes,
    nested,
    sample,
    terms_before,
    weighted_sum,
)

PLAN = Plan("test", (2.0, 0.5), ((2.0,), (1.5, 0.25), (0.0, -0.5, 1.5)), None)
WITH_MEAN = Plan("test", (2.0,), ((2.0, 0.5), (0.0, -0.25, 1.5)), mean=(((1.0, -2.0),),))


def array_of(library: str) -> Any:
    """What makes an array of numbers."""
    return np.array if library == "numpy" else pytest.importorskip(library).tensor


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_the_loop_is_the_table(library: str) -> None:
    make = array_of(library)
    noise = make([[3.0, -1.0]])
    asked = []

    def denoise(x: Any, sigma: float) -> Any:
        asked.append((x, sigma))
        return x * x + sigma

    images = sample(denoise, noise, PLAN)
    x0 = 2.0 * noise
    d0 = x0 * x0 + 2.0
    x1 = 1.5 * noise + 0.25 * d0
    d1 = x1 * x1 + 0.5
    assert [sigma for _, sigma in asked] == [2.0, 0.5]
    np.testing.assert_allclose(asked[1][0], x1)
    np.testing.assert_allclose(images, -0.5 * d0 + 1.5 * d1)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_mean_is_one_more_column(library: str) -> None:
    make = array_of(library)
    noise = make([[[[3.0, -1.0]]], [[[0.5, 2.0]]]])
    images = sample(lambda x, sigma: x * x + sigma, noise, WITH_MEAN)
    mean = make([[[1.0, -2.0]]])
    x0 = 2.0 * noise + 0.5 * mean
    np.testing.assert_allclose(images, -0.25 * mean + 1.5 * (x0 * x0 + 2.0))


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_mean_of_each_label_is_taken_by_label(library: str) -> None:
    make = array_of(library)
    noise = make([[[[3.0, -1.0]]], [[[0.5, 2.0]]], [[[1.0, 1.0]]]])
    means = (((1.0, -2.0),),), (((3.0, 4.0),),), (((5.0, 6.0),),)
    plan = replace(WITH_MEAN, mean=means)
    images = sample(lambda x, sigma: x * x + sigma, noise, plan, make([1, 0, -1]))
    mean = make([means[1], means[0], means[2]])
    x0 = 2.0 * noise + 0.5 * mean
    np.testing.assert_allclose(images, -0.25 * mean + 1.5 * (x0 * x0 + 2.0))
    with pytest.raises(UserError, match="the plan has a mean for each label, and no labels are told"):
        sample(lambda x, sigma: x, noise, plan)  # as many samples as labels


def test_which_means_go_with_a_network() -> None:
    def shapes(**conditions: Condition) -> list[tuple[int, ...]]:
        return mean_shapes(Inputs((1, 2), conditions=conditions))

    label = Condition((), "int64", null=-1, choices=3)
    assert shapes() == [(1, 2)]
    assert shapes(kind=label) == [(1, 2), (4, 1, 2)]
    assert shapes(kind=replace(label, null=None)) == shapes(kind=replace(label, null=0)) == [(1, 2), (3, 1, 2)]
    assert shapes(kind=label, size=label) == shapes(kind=replace(label, null=9)) == [(1, 2)]
    told = {"kind": np.array([2]), "more": np.array([0])}
    assert labels_told(told, Inputs((1, 2), conditions={"kind": label})) is told["kind"]
    assert labels_told(told, Inputs((1, 2), conditions={"kind": label, "more": label})) is None


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_an_answer_that_is_clipped_is_one_more_column(library: str) -> None:
    make = array_of(library)
    noise = make([[3.0, -1.0, 0.25]])
    plan = Plan("test", (2.0, 0.5), ((1.0,), (0.5, 0.25, 2.0), (0.0, 1.0, -1.0, 0.5, 4.0)), clip=0.75)
    images = sample(lambda x, sigma: x * sigma, noise, plan)
    first = 2.0 * noise
    second = 0.5 * (0.5 * noise + 0.25 * first + 2.0 * first.clip(-0.75, 0.75))
    expected = first - first.clip(-0.75, 0.75) + 0.5 * second + 4.0 * second.clip(-0.75, 0.75)
    np.testing.assert_allclose(images, expected)


def test_sums_of_what_is_weighed() -> None:
    terms = [np.array([1.0, np.nan]), np.array([2.0, 3.0]), np.array([5.0, 7.0])]
    np.testing.assert_array_equal(weighted_sum([0.0, 2.0, -1.0], terms), [-1.0, -1.0])  # no 0 times NaN
    np.testing.assert_array_equal(weighted_sum([0.0, 0.0], [np.array([4.0, 5.0]), np.array([1.0])]), [0.0, 0.0])
    with pytest.raises(ValueError, match="zip"):
        weighted_sum([1.0], terms)


def test_what_is_weighed_before_any_evaluation() -> None:
    noise = np.ones((2, 1, 1, 2), np.float16)
    assert terms_before(noise, PLAN) == [noise]
    _, mean = terms_before(noise, WITH_MEAN)
    _, told = terms_before(noise, WITH_MEAN, constant=lambda image: (image.shape, image.dtype))
    assert (mean.shape, mean.dtype, told) == ((1, 1, 2), np.float16, ((1, 1, 2), np.float32))
    assert [is_array(one) for one in ((1.0,), ((1.0, 2.0), (3.0, 4.0)), 1.0, (np.inf,), ((1.0,), (1.0, 2.0)))] == [
        True, True, False, False, False
    ]  # fmt: skip


@pytest.mark.parametrize("plan", [PLAN, WITH_MEAN], ids=["plain", "with a mean"])
def test_float32_stays_float32(plan: Plan) -> None:
    images = sample(lambda x, sigma: x, np.ones((1, 1, 1, 2), np.float32), plan)
    assert images.dtype == np.float32


@pytest.mark.parametrize("mean", [(((1.0, float("nan")),),), (((1.0, 2.0), (3.0,)),)])
def test_impossible_means_are_refused(mean: Any) -> None:
    with pytest.raises(UserError, match="mean"):
        Plan("test", (2.0,), WITH_MEAN.table, mean=mean)


def test_a_mean_needs_its_column() -> None:
    with pytest.raises(UserError, match="2 rows of 2 to 3 numbers"):
        Plan("test", (2.0,), ((2.0,), (0.0, 1.5)), mean=WITH_MEAN.mean)


@pytest.mark.parametrize(
    ("sigmas", "table"),
    [
        ((), ((1.0,),)),
        ((0.0,), ((1.0,), (0.0, 1.0))),
        ((-1.0,), ((1.0,), (0.0, 1.0))),
        ((float("inf"),), ((1.0,), (0.0, 1.0))),
        ((1.0,), ((1.0,),)),
        ((1.0,), ((1.0,), (0.0, 1.0, 2.0))),
        ((1.0,), ((1.0,), (0.0, float("nan")))),
    ],
)
def test_impossible_plans_are_refused(sigmas: Any, table: Any) -> None:
    with pytest.raises(UserError):
        Plan("test", sigmas, table)


REPORT = FitReport(
    model="edm-digits",
    fingerprint="00ff",
    settings={"nfe": 5},
    target="global",
    schedule="chosen",
    heldout=8,
    heldout_rms_error=0.1,
    steps=(FittedStep((0.1, -0.2), 0.5, 0.25),),
    compared={"ddim": 0.125},
    refinement=(0.125,),
    examples=(),
    evaluations=12,
    seconds=0.5,
)


@pytest.mark.parametrize("solver", [None, 3, "a\nb", "a\x1b[2J"])
def test_a_solvers_name_is_a_line(solver: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a plan's solver is .*; it must be a name in one line"):
        replace(PLAN, solver=solver)
    PLAN.save(tmp_path / "plan.json")
    told = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(told | {"solver": solver}))
    with pytest.raises(UserError, match=r"plan\.json is damaged: .* it must be a name in one line"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("channels", [0, 2])
def test_json_keeps_every_bit(channels: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mean = nested(rng.normal(size=(channels, 3, 3)))
    table = tuple(tuple(rng.normal(size=k + 1 + (channels > 0)).tolist()) for k in range(6))
    plan = Plan("test", tuple(rng.random(5).tolist()), table, REPORT, mean)
    plan.save(str(tmp_path / "plan.json"))  # a name will do, as everywhere
    loaded = Plan.load(str(tmp_path / "plan.json"))
    assert loaded == plan
    assert loaded.report == plan.report
    assert loaded.sha256 == plan.sha256
    assert replace(plan, report=None) == plan  # a plan is what it makes
    clipping = replace(PLAN, table=((2.0,), (1.5, 0.25, 0.5), (0.0, -0.5, 1.5, 0.25, 1.0)), clip=0.75)
    clipping.save(tmp_path / "clip.json")
    assert Plan.load(tmp_path / "clip.json") == clipping


def test_the_temperature_is_that_of_the_fit() -> None:
    assert [replace(PLAN, report=one).temperature for one in (None, replace(REPORT, settings={}))] == [1.0, 1.0]
    assert replace(PLAN, report=replace(REPORT, settings={"temperature": 0.5})).temperature == 0.5


@pytest.mark.parametrize("temperature", ["x", [1], None, 0, -1, float("nan"), float("inf")], ids=str)
def test_a_file_of_another_temperature_is_damaged(temperature: Any, tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    told = json.loads((tmp_path / "plan.json").read_text())
    told["report"] = replace(REPORT, settings={"temperature": temperature}).record()
    (tmp_path / "plan.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"plan\.json is damaged"):
        Plan.load(tmp_path / "plan.json")


def test_a_large_mean_is_no_heap_of_lines_and_older_plans_are_read(tmp_path: Path) -> None:
    """Schema 2 had it as lists; its hash is of the numbers, however they are written."""
    mean = np.random.default_rng(0).normal(size=(3, 32, 32))
    plan = replace(WITH_MEAN, mean=nested(mean))
    plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    assert text.count("\n") < 40
    assert len(text) < 11 * mean.size + 1000
    stored = json.loads(text)
    (tmp_path / "old.json").write_text(json.dumps(stored | {"schema": 2, "mean": mean.tolist()}))
    old = Plan.load(tmp_path / "old.json")
    assert old == plan
    assert old.sha256 == plan.sha256
    assert replace(old, mean=WITH_MEAN.mean).sha256 == WITH_MEAN.sha256


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1, 1, 1]},
        {"shape": [1, 1, 3]},
        {"shape": [1, -1, -2]},
        {"shape": []},
        {"shape": [1, 1, 2.0]},
        {"shape": [2**62, 2**62]},
        {"float64": "AAAA"},
        {"float64": "AAAAAAAA8D8AAAAAAADwP"},
        {"float64": "AAAAAAAA8D8AAAAAAADwP*=="},
        {"float64": "AAAAAAAA8D8AAAAAAADw/w=="},  # an infinity
        {"float64": 1},
    ],
)
def test_a_damaged_mean_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    WITH_MEAN.save(path)
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"mean": stored["mean"] | {"float64": "AAAAAAAA8D8AAAAAAADwPw=="}}))
    assert Plan.load(path).mean == (((1.0, 1.0),),)
    path.write_text(json.dumps(stored | {"mean": stored["mean"] | change}))
    with pytest.raises(UserError, match="is damaged: not a valid plan"):
        Plan.load(path)


def test_the_hash_tells_samplers_apart_and_ignores_reports() -> None:
    assert PLAN.sha256 == Plan("other name", PLAN.sigmas, PLAN.table).sha256
    assert PLAN.sha256 != Plan("test", (2.0, 0.4), PLAN.table).sha256
    assert WITH_MEAN.sha256 != replace(WITH_MEAN, mean=(((1.0, -2.5),),)).sha256


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: text.replace('"schema": 3', '"schema": 99'),
        lambda text: text.replace('"sigmas"', '"sigma"'),
        lambda text: text.replace("0.25", '"a"'),
        lambda text: text.replace("0.25", "null"),
        lambda text: text.replace("0.25", "NaN"),
        lambda text: text.replace("0.25", "0.25, 1.0"),
        lambda text: "\x00\xff",
    ],
)
def test_damaged_files_are_refused(damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    PLAN.save(path)
    json.loads(path.read_text())
    damaged = damage(path.read_text().replace("\n", "").replace("   ", ""))
    path.write_text(damaged)
    with pytest.raises(UserError, match=r"plan"):
        Plan.load(path)


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json"):
        Plan.load(tmp_path / "absent.json")


def test_a_plan_of_no_such_shape_says_which_it_needs() -> None:
    for clip, mean, told in ((0.0, (), "rows of 1 to 3"), (1.0, (), "rows of 1 to 5"), (1.0, (1.0,), "rows of 2 to 6")):
        with pytest.raises(UserError, match=f"a plan of 2 evaluations needs 3 {told} numbers"):
            Plan("test", (2.0, 1.0), ((1.0,),), mean=mean, clip=clip)
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(UserError, match=r"clip is .*; it must be a finite number, 0 or above"):
            Plan("test", (1.0,), ((1.0,), (1.0, 1.0)), clip=wrong)


def test_the_hash_is_of_what_decides_and_stays() -> None:
    """Bundles, caches and shipped plans name it: of plans without a mean or a clip it is as it always was."""
    clipping = Plan("test", (1.0,), ((1.0,), (0.5, 0.25, 0.25)), clip=1.0)
    assert PLAN.sha256 == "cef3ecd40643b948d014d60c275bd218d23ade1199253b36f59d2b77fde2b0a1"
    assert WITH_MEAN.sha256 == "5c8ccca9de7cac6d436e0d162843ec45ba4146edac4b64709600fc66d97156f6"
    assert clipping.sha256 == "45c6cc1c2e6567400106eb73c6c9f5c15eefbd9835e82ed9959c80d654c37c75"
