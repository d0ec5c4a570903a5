"""python -m runtime page: what it writes and refuses, its noise, and what a browser makes of it."""

import base64
import gzip
import hashlib
import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime import UserError
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.manifest import facts_of, write_manifest
from edge_sampler.runtime.page import folder, npm
from edge_sampler.runtime.page.command import main
from edge_sampler.runtime.page.folder import FACTS, MOST_BYTES, ONNX_RUNTIME, STATIC, TOKENIZERS
from tests.conftest import run_main

PAGE = Path(folder.__file__).parent
ZIGGURAT_R = 3.6541529  # larger values come from its tail
MADE = "/ in .* s:/.test(document.getElementById('status').textContent)"
BAD = "document.getElementById('status').classList.contains('bad')"


def package(where: Path, of: npm.Package, version: str = "", leave: str = "") -> tuple[Path, bytes]:
    """A folder that looks like that package, with tiny files, and the same as a tarball."""
    contents = {name: f"// {name}".encode() for name in of.files if name != leave}
    contents["package.json"] = json.dumps({"name": of.name, "version": version or of.version}).encode()
    tarball = io.BytesIO()
    with tarfile.open(fileobj=tarball, mode="w:gz") as archive:
        for name, content in contents.items():
            (where / name).parent.mkdir(parents=True, exist_ok=True)
            (where / name).write_bytes(content)
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return where, tarball.getvalue()


@pytest.fixture
def ort(tmp_path: Path) -> Path:
    """A folder that looks like onnxruntime-web."""
    return package(tmp_path / "node_modules" / "onnxruntime-web", ONNX_RUNTIME)[0]


def page(bundle: Path, out: Path, *arguments: str | Path) -> dict[str, Any]:
    """What the page that the command wrote is told."""
    run_main(main, str(bundle), "--out", str(out), *map(str, arguments))
    facts: dict[str, Any] = json.loads((out / FACTS).read_text(encoding="utf-8"))
    return facts


def change(bundle: Path, **facts: Any) -> None:
    """Makes a bundle one of other facts: its samples and its loop are shaped as its inputs are."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    files = facts.pop("files", manifest["files"])
    told = facts_of(manifest) | facts
    shaped = facts.get("output") or told["inputs"]
    for one in (told["inputs"], told["output"]):
        one |= {"shape": shaped["shape"]}
    told["model"] |= {"inputs": told["inputs"]}
    write_manifest(bundle / "manifest.json", told, files)


# ---- What is written


@pytest.mark.parametrize("kind", ["folder", "tarball"])
def test_a_page_holds_what_it_needs_and_no_more(
    made: Path, tmp_path: Path, ort: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ort
    if kind == "tarball":
        given = tmp_path / "ort.tgz"
        given.write_bytes(package(tmp_path / "elsewhere", ONNX_RUNTIME)[1])
    site = tmp_path / "site"
    facts = page(made, site, "--onnxruntime-web", given)
    assert f"python -m http.server -d {site}" in capsys.readouterr().out
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    names = {f"onnxruntime-web/{Path(name).name}{'.gz' * name.endswith('.wasm')}" for name in ONNX_RUNTIME.files}
    assert files == {FACTS, "sampler.onnx", "onnxruntime-web/LICENSE", *STATIC, *names}
    assert (site / "sampler.onnx").read_bytes() == (made / "sampler.onnx").read_bytes()
    assert "Microsoft" in (site / "onnxruntime-web" / "LICENSE").read_text()
    bundle = Bundle.open(made)
    assert facts["licence"] == bundle.manifest["model"]["licence"]
    assert (facts["nfe"], facts["image"], facts["conditions"]) == (bundle.plan.nfe, list(bundle.output.shape), [])
    for name, recorded in facts["files"].items():
        packed = site / f"{name}.gz"
        content = gzip.decompress(packed.read_bytes()) if packed.exists() else (site / name).read_bytes()
        assert recorded == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert set(facts["files"]) == {"sampler.onnx", *(n.removesuffix(".gz") for n in names if n.endswith(".wasm.gz"))}


def test_the_page_is_told_how_to_see_every_evaluation(made: Path, tmp_path: Path, ort: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    facts = page(made, tmp_path / "site", "--onnxruntime-web", ort)
    graph = (tmp_path / "site" / "sampler.onnx").read_bytes() + base64.b64decode(facts["declare"])
    outputs = [output.name for output in onnxruntime.InferenceSession(graph).get_outputs()]
    assert outputs == [facts["output"], *facts["stages"]]
    assert len(facts["stages"]) == facts["nfe"]


def test_latents_are_not_shown_as_pictures(copy: Path, tmp_path: Path, ort: Path) -> None:
    shutil.copyfile(copy / "denoiser.onnx", copy / "decoder.onnx")  # a page does not run it
    add(copy, "decoder.onnx")
    change(copy, stages=["decoder"])
    facts = page(copy, tmp_path / "site", "--onnxruntime-web", ort)
    assert (facts["stages"], facts["declare"]) == ([], base64.b64encode(b"\x3a\0").decode())


def add(bundle: Path, name: str) -> None:
    """Takes a file of the bundle, or another content of it, into its manifest."""
    content = (bundle / name).read_bytes()
    recorded = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    change(bundle, files={**json.loads((bundle / "manifest.json").read_text())["files"], name: recorded})


def condition(shape: list[int], dtype: str = "float32", **others: Any) -> dict[str, Any]:
    return {"shape": shape, "dtype": dtype, "null": None, "choices": 0, "description": "", **others}


def test_conditions_become_fields(conditional: Path, copy: Path, tmp_path: Path, ort: Path) -> None:
    (classes,) = page(conditional, tmp_path / "classes", "--onnxruntime-web", ort)["conditions"]
    known = Bundle.open(conditional).inputs.conditions["class_labels"]
    assert (classes["kind"], classes["choices"], classes["null"]) == ("choice", known.choices, known.null)
    told = {"wind": condition([2]), "night": condition([], "bool"), "pair": condition([2], "int64", choices=5)}
    change(copy, inputs={"shape": [1, 8, 8], "axes": {}, "conditions": told})
    examples = {"wind": [[0.1, 2]], "night": [True], "pair": [[3, 4]]}
    with np.load(copy / "reference.npz") as stored:
        arrays = dict(stored) | {
            f"input_{name}": np.array(rows, told[name]["dtype"]) for name, rows in examples.items()
        }
    np.savez(copy / "reference.npz", **arrays)
    add(copy, "reference.npz")
    wind, night, pair = page(copy, tmp_path / "numbers", "--onnxruntime-web", ort)["conditions"]
    assert (wind["kind"], wind["default"]) == ("numbers", [0.1, 2])
    assert (night["kind"], night["choices"]) == ("choice", 2)
    assert (pair["kind"], pair["choices"], pair["default"]) == ("numbers", 5, [0, 0])


def test_texts_are_told_with_how_they_are_read(copy: Path, tmp_path: Path, ort: Path) -> None:
    """A page checks by its probes that its tokenizer is ours; one that it cannot read is refused before."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "[UNK]": 1}, [], unk_token="[UNK]"))
    made.enable_padding(direction="left", pad_id=1, length=3)
    web = package(tmp_path / "tokenizers", TOKENIZERS)[0]

    def told(tokenizer: str, out: str) -> Any:
        (copy / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        told = {"file": "tokenizer.json", "default": None, "follows": ""}
        given = {"prompt": condition([3], "int64", text=told)}
        change(copy, inputs={"shape": [1, 8, 8], "axes": {}, "conditions": given})
        add(copy, "tokenizer.json")
        return page(copy, tmp_path / out, "--onnxruntime-web", ort, "--tokenizers", web)

    with np.load(copy / "reference.npz") as stored:
        np.savez(copy / "reference.npz", **dict(stored), input_prompt=np.zeros((1, 3), np.int64))
    add(copy, "reference.npz")
    (prompt,) = told(made.to_str(), "site")["conditions"]
    assert (prompt["kind"], prompt["pad"], prompt["pad_left"]) == ("text", 1, True)
    assert prompt["probes"] == [["", [1, 1, 1]]]
    assert {path.name for path in (tmp_path / "site" / "tokenizers").iterdir()} == {"tokenizers.min.mjs", "LICENSE"}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    words.enable_padding()
    with pytest.raises(UserError, match="WordLevel"):
        told(words.to_str(), "refused")


def test_random_weights_are_told(copy: Path, tmp_path: Path, ort: Path) -> None:
    change(copy, model=Bundle.open(copy).manifest["model"] | {"random_weights": True})
    assert page(copy, tmp_path / "site", "--onnxruntime-web", ort)["random_weights"] is True


def test_weights_beside_the_graph_come_along(copy: Path, tmp_path: Path, ort: Path) -> None:
    (copy / "weights.data").write_bytes(b"weights")
    add(copy, "weights.data")
    facts = page(copy, tmp_path / "site", "--onnxruntime-web", ort)
    assert (facts["data"], facts["files"]["weights.data"]) == (
        ["weights.data"],
        Bundle.open(copy).manifest["files"]["weights.data"],
    )
    assert (tmp_path / "site" / "weights.data").read_bytes() == b"weights"


def test_a_page_is_replaced_by_force_alone_and_nothing_else_is(made: Path, tmp_path: Path, ort: Path) -> None:
    site, other = tmp_path / "site", tmp_path / "other"
    page(made, site, "--onnxruntime-web", ort)
    (site / "old").touch()
    with pytest.raises(UserError, match="--force"):
        page(made, site, "--onnxruntime-web", ort)
    page(made, site, "--onnxruntime-web", ort, "--force")
    assert not (site / "old").exists()
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(UserError, match="a folder but no page"):
        page(made, other, "--onnxruntime-web", ort, "--force")
    assert list(other.iterdir()) == [other / "thesis.tex"]


# ---- What is refused


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"output": {"name": "actions", "shape": [16, 2], "units": ""}}, r"actions \[16, 2\].*pictures"),
        ({"inputs": {"shape": [1, "tall", 8], "axes": {"tall": [8, 8, 16]}, "conditions": {}}}, "axis tall"),
        (
            {"inputs": {"shape": [1, 8, 8], "axes": {}, "conditions": {"image": condition([3, 8, 8])}}},
            r"image float32 \[3, 8, 8\]",
        ),
    ],
)
def test_what_no_page_can_show_is_refused(
    copy: Path, tmp_path: Path, ort: Path, facts: dict[str, Any], words: str
) -> None:
    with np.load(copy / "reference.npz") as stored:
        np.savez(copy / "reference.npz", **dict(stored), input_image=np.zeros((1, 3, 8, 8), np.float32))
    change(copy, **facts)
    add(copy, "reference.npz")
    with pytest.raises(UserError, match=words):
        page(copy, tmp_path / "site", "--onnxruntime-web", ort)
    assert not (tmp_path / "site").exists()


def test_more_than_a_browser_holds_is_refused(copy: Path, tmp_path: Path, ort: Path) -> None:
    """By what the manifest says, before anything is read."""
    files = json.loads((copy / "manifest.json").read_text())["files"]
    files["sampler.onnx"]["bytes"] = MOST_BYTES + 1
    change(copy, files=files)
    with pytest.raises(UserError, match="graph and weights"):
        page(copy, tmp_path / "site", "--onnxruntime-web", ort)


def test_a_damaged_graph_leaves_nothing(copy: Path, tmp_path: Path, ort: Path) -> None:
    content = bytearray((copy / "sampler.onnx").read_bytes())
    content[-1] ^= 1
    (copy / "sampler.onnx").write_bytes(content)
    with pytest.raises(UserError, match="SHA-256 differs"):
        page(copy, tmp_path / "site", "--onnxruntime-web", ort)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "node_modules"]


@pytest.mark.parametrize("kind", ["missing", "no tarball", "onnxruntime-node", "onnxruntime-webgpu", "incomplete"])
def test_what_is_no_such_package_is_refused(made: Path, tmp_path: Path, kind: str) -> None:
    given = tmp_path / "given"
    lacking = ONNX_RUNTIME.files[2]
    if kind == "no tarball":
        given.write_text("{}")
    elif kind in ("onnxruntime-node", "onnxruntime-webgpu"):
        package(given, replace(ONNX_RUNTIME, name=kind))
    elif kind == "incomplete":
        given.write_bytes(package(tmp_path / "unpacked", ONNX_RUNTIME, leave=lacking)[1])
    words = (
        f"holds the npm package {kind}" if "-" in kind else lacking if kind == "incomplete" else "no folder or tarball"
    )
    with pytest.raises(UserError, match=words):
        page(made, tmp_path / "site", "--onnxruntime-web", given)
    assert not (tmp_path / "site").exists()


def test_another_version_is_taken_and_told(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, _ = package(tmp_path / "ort", ONNX_RUNTIME, version="9.9.9")
    facts = page(made, tmp_path / "site", "--onnxruntime-web", given)
    assert facts["versions"] == {"onnxruntime-web": "9.9.9"}
    assert "9.9.9" in capsys.readouterr().err
