"""Shipped plans: of the weights that ship, for each NFE, and what `--plan shipped` takes."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_sampler import models
from edge_sampler.calibration import ship
from edge_sampler.calibration.check_fit import check_fit
from edge_sampler.calibration.settings import Settings
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.shipped import plan_file, shipped_plan
from edge_sampler.runtime import install
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan
from tests.conftest import export


@pytest.mark.parametrize("name", ship.SHIPPING)
def test_shipped_plans_are_of_the_weights_that_ship(name: str) -> None:
    """Else `python -m calibration ship` makes them again."""
    shipping = ship.SHIPPING[name]
    model = conditioned(models.load(name), guidance=shipping.guidance)
    for nfe in shipping.nfes:
        plan = shipped_plan(name, nfe, shipping.guidance)
        assert plan.nfe == nfe
        check_fit(model, plan)
        assert ship.fits(plan_file(name, nfe, shipping.guidance), model, shipping.settings(nfe))


def test_a_plan_of_other_weights_is_made_again_and_one_that_fits_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, plan = list[int](), shipped_plan("edm-digits", 5)

    def fit(model: object, settings: Settings, *others: object) -> Plan:
        fitted.append(settings.nfe)
        return plan

    monkeypatch.setattr(ship, "calibrate", fit)
    arguments = ["ship", "--model", "edm-digits", "--nfe", "5", "--out", str(tmp_path), "--cache", str(tmp_path / "c")]
    monkeypatch.setattr("sys.argv", arguments)
    ship.main()
    ship.main()
    assert fitted == [5]
    path = plan_file("edm-digits", 5, folder=tmp_path)
    data = json.loads(path.read_text())
    data["report"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(data))
    ship.main()
    assert fitted == [5, 5]
    monkeypatch.setitem(ship.SHIPPING, "edm-digits", ship.Shipping(rms=(5,)))
    ship.main()
    assert fitted == [5, 5, 5]  # it was refined for the mean error
    assert sorted(file.name for file in tmp_path.glob("*.json")) == ["edm-digits-nfe5.json"]
    assert not list(tmp_path.glob(".*"))


def test_what_is_fitted_has_the_guidance_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guided = dict[str, int]()

    def fit(model: Denoiser, *others: object) -> Plan:
        guided[model.spec.title] = model.spec.branches
        return shipped_plan("edm-digits", 5)

    monkeypatch.setattr(ship, "calibrate", fit)
    monkeypatch.setitem(ship.SHIPPING, "edm-fashion-cond", ship.Shipping((5,), guidance=2.0))
    arguments = ["ship", "--model", "edm-fashion-cond", "--out", str(tmp_path), "--cache", str(tmp_path / "c")]
    monkeypatch.setattr("sys.argv", arguments)
    ship.main()
    assert guided == {"edm-fashion-cond, guidance 2": 2}
    assert [file.name for file in tmp_path.glob("*.json")] == ["edm-fashion-cond-guidance2-nfe5.json"]


@pytest.mark.parametrize(("nfe", "place"), [("3,0", "new"), ("3", "file"), ("3,5", "full")])
def test_what_cannot_ship_is_told_before_any_fit(
    nfe: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    plan_file("edm-digits", 5, folder=tmp_path / "full").mkdir(parents=True)
    fitted = list[object]()
    monkeypatch.setattr(ship, "calibrate", lambda *told: fitted.append(told))
    arguments = ["ship", "--model", "edm-digits", "--nfe", nfe, "--out", str(tmp_path / place)]
    monkeypatch.setattr("sys.argv", [*arguments, "--cache", str(tmp_path / "c")])
    with pytest.raises(UserError, match=r"nfe is 0|cannot write to .*file|nfe5\.json is a folder but no file"):
        ship.main()
    assert not fitted


def test_the_page_names_what_ships() -> None:
    page = Path("docs/commands.md").read_text(encoding="utf-8")
    told = dict[str, ship.Shipping]()
    for names, guidance, nfes in re.findall(r"^\| ([a-z, -]+) \| ([0-9]*) ?\| ([0-9, ]+) \|$", page, re.M):
        shipping = ship.Shipping(tuple(map(int, nfes.split(", "))), float(guidance or 1))
        told |= dict.fromkeys(names.split(", "), shipping)
    assert told == {name: replace(shipping, rms=()) for name, shipping in ship.SHIPPING.items()}


def test_what_does_not_ship_is_said() -> None:
    with pytest.raises(UserError, match=r"its plans are of NFE 3, 4, 5, 6, 8, 10: fit one, with --nfe 7 alone"):
        shipped_plan("edm-digits", 7)
    with pytest.raises(UserError, match=r"of 7 evaluations with guidance 2 ships with edm-fashion-cond; its .* NFE 3,"):
        shipped_plan("edm-fashion-cond", 7, guidance=2)
    with pytest.raises(UserError, match=r"of 5 evaluations ships .*; its plans are of NFE 3, 4, 5, 6 with guidance 3"):
        shipped_plan("flow-emoji", 5)
    with pytest.raises(UserError, match="ships with edm-cifar10; it has none"):
        shipped_plan("edm-cifar10", 10)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--refine", ()), ("--solver", ("ddim",)), ("--temperature", ("2",)), ("--afs", ()), ("--paper", ()),
        ("--seed", ("1",)), ("--fit-batch", ("7",)), ("--schedule", ("edm",)), ("--budget", ("10m",)),
        ("--fit-target", ("local",)), ("--towards", ("edm-digits",)), ("--no-afs", ()),
    ],
)  # fmt: skip
def test_what_is_for_a_fit_is_not_ignored_beside_a_plan(option: str, values: tuple[str, ...], tmp_path: Path) -> None:
    told, shipped = option.replace("no-", ""), ("--nfe", "5", "--plan", "shipped", "--out", str(tmp_path / "b"))
    with pytest.raises(UserError, match=f"{told} is for a fit, and --plan is fitted already: leave it out"):
        export("--model", "edm-digits", *shipped, option, *values)
    assert not (tmp_path / "b").exists()


def test_a_plan_without_a_name_is_no_plan(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^\. is damaged: not a valid plan .*it is no file"):
        export("--model", "edm-digits", "--plan", "", "--out", str(tmp_path / "b"))


def test_without_docstrings_there_is_no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """They end after the fit, in a library that cannot be loaded."""
    monkeypatch.setattr(install, "sys", SimpleNamespace(flags=SimpleNamespace(optimize=2)))
    with pytest.raises(UserError, match="Python leaves out docstrings"):
        export("--model", "edm-digits", "--nfe", "5", "--plan", "shipped")


@pytest.mark.parametrize(("name", "guidance"), [("edm-digits", 1), ("flow-emoji", 3)])
def test_export_takes_a_shipped_plan(name: str, guidance: int, tmp_path: Path) -> None:
    out, told = tmp_path / "bundle", ["--guidance", str(guidance)] if guidance != 1 else []
    export("--model", name, "--nfe", "5", *told, "--plan", "shipped", "--check", "0", "--out", str(out))
    assert Bundle.open(out).plan == shipped_plan(name, 5, guidance)
