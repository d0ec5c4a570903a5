"""Shipped plans: of the weights that ship, for each NFE, and what `--plan shipped` takes."""

import json
import re
from pathlib import Path

import pytest

from edge_sampler import models
from edge_sampler.calibration import ship
from edge_sampler.calibration.settings import Settings
from edge_sampler.export.form import check_fit
from edge_sampler.models.shipped import plan_file, shipped_plan
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan
from tests.conftest import export


@pytest.mark.parametrize("name", ship.SHIPPING)
def test_shipped_plans_are_of_the_weights_that_ship(name: str) -> None:
    """Else `python -m calibration ship` makes them again."""
    model = models.load(name)
    for nfe in ship.NFES:
        plan = shipped_plan(name, nfe)
        assert plan.nfe == nfe
        check_fit(model, plan)
        assert ship.fits(plan_file(name, nfe), model)


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
    path = plan_file("edm-digits", 5, tmp_path)
    data = json.loads(path.read_text())
    data["report"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(data))
    ship.main()
    assert fitted == [5, 5]
    assert sorted(file.name for file in tmp_path.glob("*.json")) == ["edm-digits-nfe5.json"]
    assert not list(tmp_path.glob(".*"))


def test_the_page_names_what_ships() -> None:
    page = Path("docs/commands.md").read_text(encoding="utf-8")
    told = [tuple(cell.split(", ")) for cell in re.findall(r"^\| ([a-z, -]+) \| ([0-9, ]+) \|$", page, re.M)[0]]
    assert told == [ship.SHIPPING, tuple(map(str, ship.NFES))]


def test_what_does_not_ship_is_said() -> None:
    with pytest.raises(UserError, match=r"its plans are of NFE 3, 4, 5, 6, 8, 10: fit one, with --nfe 7 alone"):
        shipped_plan("edm-digits", 7)
    with pytest.raises(UserError, match="ships with edm-cifar10; it has none"):
        shipped_plan("edm-cifar10", 10)


def test_export_takes_a_shipped_plan(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export("--model", "edm-digits", "--nfe", "5", "--plan", "shipped", "--check", "0", "--out", str(out))
    assert Bundle.open(out).plan == shipped_plan("edm-digits", 5)
