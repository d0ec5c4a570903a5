"""report.html and the model card say what the bundle says, to a browser and to a hub."""

import json
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from edge_sampler.export import card, engine_command
from edge_sampler.export.facts import sample_command
from edge_sampler.export.report_page import REPORT, report_page
from edge_sampler.runtime.__main__ import main as runtime_main
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.manifest import MANIFEST
from tests.conftest import run_main

VOID = {"meta", "img", "rect", "line", "circle"}


class Page(HTMLParser):
    """What a browser sees: the text, the tables' rows, the drawings' titles, and what is not allowed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.addresses = list[str](), set[str](), list[str]()
        self.rows, self.titles, self.shown = list[list[str]](), list[str](), ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID or (tag in ("rect", "circle") and not self.get_starttag_text().endswith("/>")):  # type: ignore[union-attr]
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["title"]:
            self.titles.append(data)
        elif "style" not in self.open:
            self.shown += data
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        """The cells beside the first that begins so."""
        return next(cells[1:] for cells in self.rows if cells and cells[0].startswith(name))


def page(bundle: Bundle) -> Page:
    return Page(bundle.file(REPORT).read_text(encoding="utf-8"))


def test_a_report_has_what_the_manifest_and_the_plan_have(made: Path) -> None:
    bundle = Bundle.open(made)
    found, manifest, report = page(bundle), bundle.manifest, bundle.plan.report
    assert report
    assert found.row("licence") == [manifest["model"]["licence"]]
    assert found.row("weights") == [manifest["model"]["weights_sha256"]]
    errors = {bundle.plan.solver: manifest["judged"]["rms_error"], **manifest["judged"]["fixed_solvers"]}
    usual = [f"{solver} on edm levels" for solver in ("ddim", "dpmpp-2m", "ipndm")]
    assert [*errors][:4] == ["iia-ipndm", *usual]
    assert len(errors) == 5
    for solver, error in errors.items():
        assert found.row(solver)[0] == f"{error:.4g}"
    assert f"RMS error {report.heldout_rms_error:.4g}" in found.shown
    for evaluation, sigma in enumerate(bundle.plan.sigmas):
        assert found.row(f"denoised {evaluation}")[0] == f"{sigma:.4g}"
    assert found.row("images")[1] == f"{manifest['parity'][-1]['largest']:.1e}"
    assert f"result, D3: {bundle.plan.table[-1][-1]:.6g}" in found.titles
    assert len([title for title in found.titles if ", " in title]) == 1 + sum(map(len, bundle.plan.table))
    assert "RANDOM WEIGHTS" not in found.shown
    assert "precision" not in [cells[0] for cells in found.rows if cells]
    assert found.row("sampler.onnx")[0] == f"{manifest['files']['sampler.onnx']['bytes'] / 1e6:.2f}"


def test_the_errors_are_those_of_the_samplers(made: Path) -> None:
    judge = pytest.importorskip("edge_sampler.calibration.judge")
    from edge_sampler import models
    from edge_sampler.calibration.calibrate import calibrate
    from edge_sampler.calibration.evaluate.results import NO_CACHE
    from edge_sampler.calibration.settings import Settings
    from edge_sampler.models.progress import silent
    from edge_sampler.runtime.plan import sample

    bundle, model = Bundle.open(made), models.load("edm-digits")
    judged = bundle.manifest["judged"]
    plans = {"iia": bundle.plan, "dpmpp-2m": calibrate(model, Settings(4, "dpmpp-2m"))}
    found = {name: judge.error_against_converged(model, plan, judged["noises"]) for name, plan in plans.items()}
    assert judged["rms_error"] == pytest.approx(found["iia"], rel=1e-3)
    assert judged["fixed_solvers"]["dpmpp-2m on edm levels"] == pytest.approx(found["dpmpp-2m"], rel=1e-3)
    noises, goal = judge.converged(model, judged["noises"], silent, NO_CACHE)
    for name, told in (
        ("iia", judged["median_error"]),
        ("dpmpp-2m", judged["fixed_medians"]["dpmpp-2m on edm levels"]),
    ):
        wrong = (sample(noises.network, noises.noise, plans[name]) - goal).numpy()
        each = [float(np.sqrt(np.square(one).mean())) for one in wrong]
        assert told == pytest.approx(np.median(each), rel=1e-3)
    assert {*judged["fixed_medians"]} == {*judged["fixed_solvers"]}


def test_a_bundle_of_before_shows_no_medians(made: Path) -> None:
    manifest = json.loads((made / MANIFEST).read_text())
    rows = [cells[0] for cells in Page(report_page(Bundle(made, manifest), made)).rows if cells]
    assert rows.count("ipndm on edm levels") == 2
    del manifest["judged"]["median_error"], manifest["judged"]["fixed_medians"]
    rows = [cells[0] for cells in Page(report_page(Bundle(made, manifest), made)).rows if cells]
    assert rows.count("ipndm on edm levels") == 1


def test_nothing_is_run_or_fetched_whatever_a_model_is_called(made: Path) -> None:
    manifest = json.loads((made / MANIFEST).read_text())
    hostile = "<script>alert(1)</script><img src=http://example.org/x>"
    manifest["model"] |= {"name": hostile, "licence": hostile, "random_weights": True}
    found = Page(report_page(Bundle(made, manifest), made))
    assert "script" not in found.tags
    assert hostile in found.shown
    assert "RANDOM WEIGHTS" in found.shown
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    assert len(found.addresses) == 1


def test_what_joins_a_bundle_joins_its_report(copy: Path) -> None:
    run_main(engine_command.main, str(copy), "--precision", "fp16")
    bundle = Bundle.open(copy)
    told, files = bundle.manifest["precisions"]["fp16"], bundle.manifest["files"]
    size = files["sampler-fp16.onnx"]["bytes"] / 1e6
    assert page(bundle).row("fp16") == [f"{size:.2f}", f"{told['rms_error']:.1e}", f"{told['largest_error']:.1e}", ""]
    run_main(runtime_main, "inspect", str(copy))  # every hash, the report's too
    run_main(engine_command.main, str(copy), "--precision", "fp16")  # is there
    (copy / "sampler-fp16.onnx").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"sampler-fp16\.onnx is not the file the manifest describes"):
        run_main(engine_command.main, str(copy), "--precision", "fp16", "--force")


@pytest.mark.parametrize("fixture", ["made", "conditional"])
def test_the_command_that_is_shown_runs(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    bundle = Bundle.open(request.getfixturevalue(fixture))
    command = shlex.split(sample_command(bundle))
    assert command[:3] == ["python", "-m", "runtime"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        run_main(runtime_main, *command[3:])
    assert (tmp_path / "grid.png").is_file()


def test_a_hub_reads_the_card(copy: Path) -> None:
    run_main(card.main, str(copy))
    bundle, text = Bundle.open(copy), (copy / "README.md").read_text(encoding="utf-8")
    told = ModelCard(text).data
    assert told.get("license") == "apache-2.0"
    assert told.get("pipeline_tag") == "unconditional-image-generation"
    assert "onnx" in told.get("tags")
    for error in (bundle.manifest["judged"]["rms_error"], *bundle.manifest["judged"]["fixed_solvers"].values()):
        assert f"| {error:.4g} |" in text
    for error in (bundle.manifest["judged"]["median_error"], *bundle.manifest["judged"]["fixed_medians"].values()):
        assert f"| {error:.4g} |" in text
    run_main(runtime_main, "inspect", str(copy))  # the card is the user's to edit: no hash holds it
    with pytest.raises(Exception, match="exists; choose another place, or add --force"):
        run_main(card.main, str(copy))


@pytest.mark.parametrize(
    ("licence", "hub", "name"),
    [
        ("CC BY-NC-SA 4.0, NVIDIA", "cc-by-nc-sa-4.0", None),
        ('mine: "ask", \\ please\n- no', "other", 'mine: "ask", \\ please - no'),
    ],
)
def test_a_licence_is_told_as_the_hub_knows_it(licence: str, hub: str, name: str | None, made: Path) -> None:
    manifest = json.loads((made / MANIFEST).read_text())
    manifest["model"] |= {"licence": licence, "random_weights": True}
    text = card.card(Bundle(made, manifest))
    told = ModelCard(text).data
    assert (told.get("license"), told.get("license_name")) == (hub, name)
    assert "Random weights" in text
