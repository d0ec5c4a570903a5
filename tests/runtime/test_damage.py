"""Bundles that are damaged, or made by somebody else: one clear line, whatever their files say. Hashes are made right
again where that is how a reader would meet it.
"""

import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime.__main__ import main
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import compare
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.manifest import MANIFEST, hash_of
from edge_sampler.runtime.plan import Plan
from edge_sampler.runtime.sampler import load
from tests.bundles import remake_manifest
from tests.conftest import run_main

OTHERS: tuple[Any, ...] = (
    None, True, 0, -1, 2**70, 10**400, 1.5, 1e300, float("inf"),
    "", "x", "../x", "/etc/passwd", "\ud800", [], ["x"], {}, {"x": 1},
)  # fmt: skip
GONE = object()


@pytest.fixture
def light(made: Path, tmp_path: Path) -> Path:
    """A bundle whose large files are links, so that a copy costs nothing."""
    folder = tmp_path / "light"
    folder.mkdir()
    for path in made.iterdir():
        if path.suffix == ".onnx":
            os.link(path, folder / path.name)
        else:
            shutil.copy(path, folder / path.name)
    return folder


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value of nested JSON."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in members:
        yield (*before, name)
        yield from places(one, (*before, name))


def changed(value: Any, place: tuple[Any, ...], to: Any) -> Any:
    """A copy in which something else stands at that place."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for name in place[:-1]:
        inner = inner[name]
    if to is GONE:
        del inner[place[-1]]
    else:
        inner[place[-1]] = to
    return copy


def write(folder: Path, manifest: Any) -> None:
    text = json.dumps({**manifest, "manifest_sha256": hash_of(manifest)})
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def refusal(use: Callable[[], object]) -> str:
    """The one line that a user gets, where it is refused. Anything but that is a traceback, and raised."""
    try:
        use()
    except UserError as error:
        return str(error)
    return ""


def use(folder: Path) -> None:
    """All that reads a bundle without PyTorch. Raises UserError, or what a user would see as a traceback."""
    run_main(main, "inspect", str(folder))
    run_main(main, "sample", str(folder), "--seeds", "0-1", "--out", str(folder / "a.npz"), "--force")
    run_main(main, "compare", str(folder))
    run_main(main, "doctor", str(folder))


def test_whatever_a_manifest_says_is_used_or_refused(light: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every value of it is replaced by every other kind of value, and left out."""
    manifest = json.loads((light / MANIFEST).read_text())
    chance, taken = random.Random(0), []
    changes = [(place, to) for place in places(manifest) for to in (*OTHERS, GONE)]
    for place, to in chance.sample(changes, 250):
        write(light, changed(manifest, place, to))
        refused = refusal(lambda: Bundle.open(light))
        assert "is damaged" in refused or "has schema" in refused or not refused, (place, to)
        if not refused:
            taken.append((place, to))
    for place, to in taken[:10]:
        write(light, changed(manifest, place, to))
        refusal(lambda: use(light))


def test_every_flipped_bit_of_a_manifest_is_noticed(light: Path) -> None:
    """But where it changes nothing that the manifest says."""
    content = (light / MANIFEST).read_bytes()
    manifest, noticed = json.loads(content), 0
    for bit in random.Random(0).sample(range(8 * len(content)), 300):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (light / MANIFEST).write_bytes(damaged)
        try:
            assert Bundle.open(light).manifest == manifest
        except UserError:
            noticed += 1
    assert noticed > 200


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../plan.json", "engines/../../x", "a//b", "./a", "C:\\a", "a\\b", "", ".", "..", "\x00", "é"],
)
def test_names_of_files_stay_inside(name: str, light: Path) -> None:
    manifest = json.loads((light / MANIFEST).read_text())
    manifest["files"][name] = manifest["files"]["plan.json"]
    write(light, manifest)
    told = r"files has the name '\\x00'" if name == "\x00" else "no file's name in a bundle"
    with pytest.raises(UserError, match=told):
        Bundle.open(light)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs devices")
@pytest.mark.parametrize("name", ["plan.json", MANIFEST])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_file_that_is_none_is_refused(name: str, kind: str, light: Path) -> None:
    (light / name).unlink()
    {"pipe": os.mkfifo, "device": lambda p: os.symlink("/dev/zero", p), "folder": os.mkdir}[kind](light / name)
    with pytest.raises(UserError, match=r"is missing|it is no file"):
        _ = Bundle.open(light).plan


def test_whatever_a_plan_says_is_used_or_refused(light: Path) -> None:
    path = light / "plan.json"
    plan = json.loads(path.read_text())
    changes = [(place, to) for place in places(plan) for to in (*OTHERS, GONE)]
    for place, to in random.Random(0).sample(changes, 400):
        path.write_text(json.dumps(changed(plan, place, to)))
        refused = refusal(lambda: Plan.load(path))
        assert "is damaged" in refused or "plan schema" in refused or not refused, (place, to)
    for text in ("[" * 100_000, '{"schema": 3, "sigmas": [1' + "0" * 400 + "]}", "[]", '"a"', "1", ""):
        path.write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            Plan.load(path)


def test_a_plan_of_other_data_or_evaluations_is_refused(light: Path) -> None:
    plan = Plan.load(light / "plan.json")
    for other in (Plan("a", (1.0,), ((1.0,), (1.0, 1.0))), Plan("a", (1.0,), ((1.0,) * 2, (1.0,) * 3), mean=(1.0,))):
        other.save(light / "plan.json")
        for sha256 in (plan.sha256, other.sha256):
            remake_manifest(light, partial(dict.update, plan_sha256=sha256))
            with pytest.raises(UserError, match=r"is not the plan of|is damaged"):
                compare(Bundle.open(light))


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_manifest_of_other_evaluations_than_its_plan_is_no_sound_one(light: Path, form: tuple[str, ...]) -> None:
    remake_manifest(light, partial(dict.update, nfe=10**9))
    with pytest.raises(UserError, match=r"plan.json is not the plan of sampler.onnx: export it again"):
        run_main(main, "inspect", str(light), *form)


def arrays(of: Path) -> dict[str, Any]:
    with np.load(of / "reference.npz") as stored:
        return {name: stored[name] for name in stored.files}


def stored(named: dict[str, Any], store: Callable[..., None] = np.savez) -> bytes:
    file = io.BytesIO()
    store(file, **named)
    return file.getvalue()


def claiming(shape: str) -> bytes:
    """A .npz whose array says that it has that shape, in 8 bytes."""
    file, header = io.BytesIO(), f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(file, "w") as inner:
        inner.writestr(
            "seeds.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(8)
        )
    return file.getvalue()


def test_whatever_the_reference_holds_is_one_line(light: Path) -> None:
    sound = arrays(light)
    kinds = [
        np.array(7),
        np.zeros(0, np.int64),
        np.array(["a"] * 4),
        np.zeros((2, 3)),
        np.zeros(4, complex),
        np.array([-1] * 4),
    ]
    kinds += [np.zeros((4, 1, 9, 8), np.float32), np.array([{}], dtype=object), np.zeros(4, "M8[s]"), np.zeros(4, bool)]
    contents = [b"", b"PK", b"\x80\x04.", bytes(1000), stored(sound)[:-40], stored(sound, np.savez_compressed)]
    contents += [claiming(shape) for shape in ("(1000000000000,)", "(-1,)", "(" * 300, "('a',)", "(2.5,)", "9")]
    contents += [stored({name: array for name, array in sound.items() if name != lacking}) for lacking in sound]
    contents += [stored(sound | {name: kind}) for name in sound for kind in kinds]
    for content in contents:
        (light / "reference.npz").write_bytes(content)
        remake_manifest(light)
        with pytest.raises(UserError, match=r"reference\.npz is damaged"):
            compare(Bundle.open(light))


def test_another_plan_is_not_taken_for_a_damaged_reference(light: Path) -> None:
    (light / "plan.json").write_text("{}")
    with pytest.raises(UserError, match=r"plan\.json is not the file the manifest describes") as told:
        Bundle.open(light).reference()
    assert "reference.npz" not in str(told.value)


MADE, TAKEN = "float[b, 1, 8, 8]", "float[b, 1, 8, 8]"
GRAPHS = {  # what is taken, what is made, and how
    "other name": (f"{TAKEN} TAKEN", f"{MADE} other", "other = Identity(as)"),
    "other shape": (f"{TAKEN} TAKEN", "float[b, 1, 16, 8] MADE", "MADE = Concat<axis=2>(as, as)"),
    "other type": (f"{TAKEN} TAKEN", "double[b, 1, 8, 8] MADE", "MADE = Cast<to=11>(as)"),
    "other rank": (f"{TAKEN} TAKEN", "float[b, c] MADE", "MADE = Flatten(as)"),
    "no axes": (f"{TAKEN} TAKEN", "float MADE", "MADE = ReduceMean<keepdims=0>(as)"),
    "a sequence": (f"{TAKEN} TAKEN", "seq(float[b, 1, 8, 8]) MADE", "MADE = SequenceConstruct(as)"),
    "input's name": (f"{TAKEN} other", f"{MADE} MADE", "MADE = Identity(as)"),
    "input's type": ("float16[b, 1, 8, 8] TAKEN", f"{MADE} MADE", "MADE = Identity(as)"),
    "input's shape": ("float[b, 1, 9, 9] TAKEN", "float[b, 1, 9, 9] MADE", "MADE = Identity(as)"),
}


@pytest.mark.parametrize("graph", ["sampler.onnx", "denoiser.onnx"])
@pytest.mark.parametrize("kind", GRAPHS)
def test_another_graph_under_that_name_is_one_line(graph: str, kind: str, light: Path) -> None:
    onnx = pytest.importorskip("onnx")
    taken, made, last = GRAPHS[kind]
    steps = f"as = Cast<to=1>({taken.split()[-1]}) "
    if graph == "sampler.onnx":
        steps += "".join(f"denoised_{k} = Identity(as) " for k in range(4))
    else:
        taken += ", float sigma"
    text = f'<ir_version: 10, opset_import: ["" : 20]> g ({taken}) => ({made}) {{ {steps} {last} }}'
    names = ("noise", "images") if graph == "sampler.onnx" else ("x", "denoised")
    (light / graph).unlink()
    onnx.save(onnx.parser.parse_model(text.replace("TAKEN", names[0]).replace("MADE", names[1])), light / graph)
    remake_manifest(light)
    with pytest.raises(UserError, match=r"export (it|the bundle) again|takes"):
        compare(Bundle.open(light))
    if graph == "sampler.onnx":
        with pytest.raises(UserError, match=r"export (it|the bundle) again|takes"), load(light, "onnxrt") as sampler:
            sampler.sample([0])
