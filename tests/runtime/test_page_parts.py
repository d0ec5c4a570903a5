"""What a page is told of a bundle, on bundles that no exporter made: each field, and where a bundle has no page."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import denoised_name
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.page import command, folder
from edge_sampler.runtime.page.folder import MOST_BYTES, MOST_NUMBERS, facts_of
from tests.conftest import run_main
from tests.runtime.small_bundles import bundle, inputs_of

PICTURE = {"name": "images", "shape": [1, 2, 3], "units": ""}


def condition(shape: list[int], dtype: str = "float32", **others: Any) -> dict[str, Any]:
    return {"shape": shape, "dtype": dtype, "null": None, "choices": 0, "description": "", **others}


def pictures(tmp_path: Path, files: tuple[str, ...] = (), **conditions: Any) -> Bundle:
    (tmp_path / "a b").mkdir()
    return bundle(tmp_path / "a b", inputs_of(1, 2, 3, **conditions), files=files, output=PICTURE)


def field(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: dict[str, Any], example: Any) -> dict[str, Any]:
    """Of a bundle whose one condition has this example."""
    monkeypatch.setattr(Bundle, "examples", lambda self, count: {"c": np.array([example] * count, told["dtype"])})
    (found,) = facts_of(pictures(tmp_path, c=told))["conditions"]
    return dict(found)


@pytest.mark.parametrize(
    ("told", "example", "expected"),
    [
        (
            condition([], "int64", choices=5, null=-1, description="a b"),
            0,
            {"kind": "choice", "choices": 5, "null": -1},
        ),
        (condition([], "int64", choices=5), 0, {"kind": "choice", "choices": 5, "null": None}),
        (condition([], "bool"), True, {"kind": "choice", "choices": 2, "null": None}),
        (condition([], "bool", null=True), True, {"kind": "choice", "null": None}),  # of numbers alone
        (condition([], "int64"), 7, {"kind": "numbers", "default": [7], "choices": 0}),
        (condition([]), 0.1, {"kind": "numbers", "default": [0.1], "null": None}),
        (condition([], null=0.5), 0.1, {"kind": "numbers", "default": [0.1], "null": None}),
        (condition([3]), [0.1, 2, 3], {"kind": "numbers", "default": [0.1, 2.0, 3.0], "shape": [3]}),
        (condition([3]), 0.5, {"kind": "numbers", "default": [0.5] * 3}),  # an example broadcasts
        (condition([2], "bool"), [True, False], {"kind": "numbers", "default": [1, 0]}),
        (condition([], "int64", choices=5, ids=5), 0, {"kind": "choice", "choices": 5, "null": None}),
        (condition([], "int64", ids=5), 0, {"kind": "numbers", "default": [0], "choices": 5}),
        (condition([2], "int64", choices=9), [3, 4], {"kind": "numbers", "default": [3, 4], "choices": 9}),
        (condition([MOST_NUMBERS]), [0.25] * MOST_NUMBERS, {"kind": "numbers", "default": [0.25] * MOST_NUMBERS}),
    ],
)
def test_a_condition_is_a_field(
    told: dict[str, Any], example: Any, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = field(monkeypatch, tmp_path, told, example)
    assert found.items() >= {"name": "c", "dtype": told["dtype"], "about": told["description"], **expected}.items()
    assert repr(found.get("default")) == repr(expected.get("default"))  # 7 is not 7.0 for a person


@pytest.mark.parametrize("shape", [[2, 3], [1, 1], [1, 2, 3], [MOST_NUMBERS + 1]])
def test_what_no_field_holds_is_refused(shape: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ", ".join(map(str, shape))
    told = rf"it is told c float32 \[{wanted}\], and a page has fields of {MOST_NUMBERS} numbers"
    with pytest.raises(UserError, match=told):
        field(monkeypatch, tmp_path, condition(shape), np.zeros(shape))


def test_a_text_is_a_field_with_its_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page asks of its own tokenizer what ours says; a text of too few tokens for it is left out."""

    def tokens(text: str, content: str, name: str, length: int) -> np.ndarray:
        assert (json.loads(content), name, length) == (tokenizer, "c", 4)
        if "heart" in text or side == "neither":
            raise UserError("it has five tokens")
        return np.full(4, len(text))

    monkeypatch.setattr(folder, "tokens", tokens)
    for side in ("Left", "Right"):
        tokenizer = {"model": {"type": "BPE"}, "padding": {"pad_id": 3, "direction": side}}
        monkeypatch.setattr(Bundle, "read", lambda self, name, told=tokenizer: json.dumps(told).encode())
        text = {"file": "t.json", "default": "none", "follows": ""}
        (tmp_path / side).mkdir()
        (tmp_path / side / "t.json").touch()
        inputs = inputs_of(1, 2, 3, c=condition([4], "int64", text=text))
        monkeypatch.setattr(Bundle, "examples", lambda *_: {"c": np.zeros((1, 4), np.int64)})
        (found,) = facts_of(bundle(tmp_path / side, inputs, output=PICTURE))["conditions"]
        assert (found["kind"], found["file"], found["default"], found["follows"]) == ("text", "t.json", "none", "")
        assert (found["pad"], found["pad_left"]) == (3, side == "Left")
        probed = [text for text in folder.PROBES if "heart" not in text]
        assert found["probes"] == [[text, [len(text)] * 4] for text in probed]
    side, made = "neither", bundle(tmp_path / side, inputs, output=PICTURE)
    with pytest.raises(UserError, match="five tokens"):  # none at all is left
        facts_of(made)


def test_what_a_page_is_told(tmp_path: Path) -> None:
    made = pictures(tmp_path)
    facts = facts_of(made)
    assert (facts["name"], facts["bundle"], facts["nfe"], facts["solver"]) == ("arms", "'a b'", 2, "ddim")
    assert (facts["noise"], facts["image"], facts["output"]) == ([1, 2, 3], [1, 2, 3], "images")
    assert facts["stages"] == [denoised_name(0), denoised_name(1)]
    assert (facts["licence"], facts["random_weights"], facts["data"]) == ("none", False, [])


@pytest.mark.parametrize(
    ("files", "data"),
    [
        (("sampler.onnx.data", "denoiser.onnx.data"), ["sampler.onnx.data"]),
        (("weights.data",), ["weights.data"]),
        (("sampler.onnx.data", "weights.data"), ["sampler.onnx.data"]),  # the other is of other graphs
    ],
)
def test_its_graphs_weights_come_along(files: tuple[str, ...], data: list[str], tmp_path: Path) -> None:
    assert facts_of(pictures(tmp_path, files))["data"] == data


def test_graph_and_weights_have_a_bound_together(tmp_path: Path) -> None:
    made = pictures(tmp_path, ("weights.data",))
    files = made.manifest["files"]
    files["weights.data"]["bytes"] = MOST_BYTES - files["sampler.onnx"]["bytes"]
    assert facts_of(made)["data"] == ["weights.data"]
    files["weights.data"]["bytes"] = 1_500_000_000 - files["sampler.onnx"]["bytes"]
    with pytest.raises(UserError, match=r"its graph and weights are 1\.5 GB; a page takes 1\.1 GB"):
        facts_of(made)


def test_the_command_says_how_large_it_is_and_how_to_look_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, written = pictures(tmp_path), list[Any]()

    def write(found: Bundle, out: Path, given: Any, force: bool) -> None:
        written.append((found.folder, {package.name: path for package, path in given.items()}, force))
        (out / "ort").mkdir(parents=True)
        for name in ("a", "ort/b"):
            (out / name).write_bytes(bytes(875_000 if force else 825_000))

    monkeypatch.setattr(command, "write_site", write)
    site = tmp_path / "my site"
    for force in ((), ("--force",)):
        given = ("--onnxruntime-web", "ort.tgz", "--tokenizers", "t")
        assert run_main(command.main, str(made.folder), "--out", str(site), *given, *force) == 0
        (site / "ort" / "b").unlink()
        (site / "a").unlink()
        (site / "ort").rmdir()
    packages = {"onnxruntime-web": Path("ort.tgz"), "@huggingface/tokenizers": Path("t")}
    assert written == [(made.folder, packages, False), (made.folder, packages, True)]
    look = f"python -m http.server -d '{site}'"
    first, second = (f"{site}: {size} MB; look at it with" for size in ("1.6", "1.8"))  # of 1.65 and 1.75
    assert capsys.readouterr().out.splitlines() == [first, look, second, look]
    with pytest.raises(UserError, match="the following arguments are required: --out"):
        run_main(command.main, str(made.folder))
