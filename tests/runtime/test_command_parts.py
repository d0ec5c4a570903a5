"""What each verb of ``python -m runtime`` but ``sample`` prints and ends with, where nothing is computed."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_sampler.runtime import command, doctor
from edge_sampler.runtime.backends.base import Spans
from edge_sampler.runtime.bench import EAGER, UNROLLED, Timing
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command import ROOMS, main
from edge_sampler.runtime.compare import Difference
from edge_sampler.runtime.doctor import Finding
from edge_sampler.runtime.errors import UserError
from tests.conftest import run_main
from tests.runtime import small_bundles
from tests.runtime.small_bundles import HINT, LABELS, MEASURED, PICTURE, PLAN, REFITTED, inputs_of, keys_asked, pictures

KEYS = "--verify-key"

# ---- compare

D = Difference("images", "onnxrt", "PyTorch", 2e-5, 1e-6, 1e-5, True, 1e-4, 1e-6, math.inf, ("fp32", "fp32"))


def compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: list[Difference], *arguments: str
) -> tuple[object, list[str], Any]:
    """The status, the lines, and what ``compare`` was told."""
    told = list[Any]()
    monkeypatch.setattr(Bundle, "open", lambda *opened: opened)
    monkeypatch.setattr(command, "compare", lambda *given: told.append(given) or found)  # type: ignore[func-returns-value]
    status = run_main(main, "compare", "b", *arguments)
    return status, capsys.readouterr().out.splitlines(), told[0]


def test_differences_are_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    first = replace(D, stage="denoised 0", second="baseline loop")
    status, lines, told = compared(monkeypatch, capsys, [first, D])
    assert lines == [
        "stage        of             against               max       RMS  relative",
        "denoised 0   onnxrt         baseline loop     2.0e-05   1.0e-06   1.0e-05",
        "images       onnxrt         PyTorch           2.0e-05   1.0e-06   1.0e-05",
        "within the tolerance of 1.0e-04",
    ]
    assert (status, told) == (0, ((Path("b"), None), None, ["auto"], None))
    asked = ("--seeds", "1,5", "--backends", "onnxrt,tensorrt", "--precision", "fp16", KEYS, "k")
    *_, told = compared(monkeypatch, capsys, [D], *asked)
    assert told == ((Path("b"), Path("k")), [1, 5], ["onnxrt", "tensorrt"], "fp16")


def test_what_is_beyond_is_marked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [D, replace(D, relative=1e-3), replace(D, relative=math.nan, finite=False)]
    status, lines, _ = compared(monkeypatch, capsys, wrong)
    assert [line.partition("  <-")[2] for line in lines[1:4]] == ["", " beyond", " not finite"]
    assert (status, lines[-1]) == (1, "BEYOND the tolerance of 1.0e-04")


@pytest.mark.parametrize("tolerance", ["nan", "-1", "inf", "-1e-9"])
def test_a_tolerance_that_nothing_is_measured_by_is_refused(
    tolerance: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"--tolerance is .*; it must be a number, 0 or above"):
        compared(monkeypatch, capsys, [], f"--tolerance={tolerance}")


@pytest.mark.parametrize(("tolerance", "status"), [("9e-6", 1), ("1e-5", 0), ("0.5", 0)])
def test_a_tolerance_is_the_users(
    tolerance: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With it, the median sample has no bound of its own."""
    one = replace(D, expected_median=1e-9, median=1e-6)
    found, lines, _ = compared(monkeypatch, capsys, [one], "--tolerance", tolerance)
    assert found == status
    assert lines[-1] == f"{'BEYOND' if status else 'within'} the tolerance of {float(tolerance):.1e}"


def test_a_lower_precision_is_told_with_its_bounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    low = replace(D, expected=0.5, expected_median=0.02, precisions=("fp16", "fp32"))
    most = replace(D, first="baseline loop", expected=0.3, expected_median=0.01)
    status, lines, _ = compared(monkeypatch, capsys, [low, most])
    assert lines[-2] == "onnxrt in fp16; PyTorch in fp32; baseline loop in fp32"
    assert lines[-1] == "within the tolerance of 2.0e-02 for the RMS of the median sample, and of 5.0e-01"
    assert status == 0


# ---- bench


def timed(
    monkeypatch: pytest.MonkeyPatch, timings: list[Timing], *arguments: str, left_out: Sequence[str] = ()
) -> list[Any]:
    """What ``bench`` was told."""
    told = list[Any]()
    opened = SimpleNamespace(plan=SimpleNamespace(nfe=4))
    monkeypatch.setattr(Bundle, "open", lambda *given: told.append(given) or opened)  # type: ignore[func-returns-value]
    found = ("by hand", timings, list(left_out))
    monkeypatch.setattr(command, "bench", lambda bundle, *given: told.append(given) or found)  # type: ignore[func-returns-value]
    assert run_main(main, "bench", "b", *arguments) == 0
    return told


PLAIN = Timing(UNROLLED, 2, (0.001, 0.002, 0.003))


def test_timings_are_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    limit = Timing("limit", 2, (0.001,) * 9 + (0.101,), over_limit=1.0)
    told = timed(monkeypatch, [limit, PLAIN], left_out=["PyTorch: absent"])
    assert told == [(Path("b"), None), (1, 20, "auto", None, None)]
    assert capsys.readouterr().out.splitlines() == [
        "",
        "batch 1, nfe 4, 20 rounds; by hand",
        "                      images/s  median ms      p90      p95      p99  of limit",
        "limit                    181.8       1.00    11.00    56.00    92.00     1.000",
        "unrolled graph          1000.0       2.00     2.80     2.90     2.98          ",
        "limit: 4 calls of denoiser.onnx and nothing else; of limit: a path's time over that",
        "left out: PyTorch: absent",
    ]


def test_what_is_known_of_a_run_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spans = Spans(*[0.001 * (place + 1) for place in range(len(Spans.__dataclass_fields__))])
    unrolled = replace(PLAIN, spans=spans, memory=12_600_000, latencies=(0.001, 0.002, 0.1))
    eager = Timing(EAGER, 2, (0.001, 0.007, 0.2))  # medians are 2 and 7 ms
    timed(monkeypatch, [unrolled, eager, Timing("baseline host loop", 2, (0.009,))])
    *_, inside, memory, faster = capsys.readouterr().out.splitlines()
    names = [name.replace("_", " ") for name in Spans.__dataclass_fields__]
    assert inside == "inside: " + ", ".join(f"{name} {place + 1}.000 ms" for place, name in enumerate(names))
    assert memory == "memory: 13 MB"
    assert faster == "the unrolled graph is 3.5 times as fast as PyTorch's eager loop"


def test_figures_go_into_a_file_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    asked = ("--batch", "1,16", "--rounds", "3", "--backend", "x", "--weights", "w", "--precision", "fp16", KEYS, "k")
    told = timed(monkeypatch, [PLAIN, PLAIN], *asked, "--json", str(path))
    assert told == [(Path("b"), Path("k")), (1, 3, "x", "w", "fp16"), (16, 3, "x", "w", "fp16")]
    written = json.loads(path.read_text())
    assert written == [{"what": "by hand", "nfe": 4, **PLAIN.summary()}] * 4
    before = path.read_text()
    with pytest.raises(UserError, match="--force"):  # before hours of timing
        timed(monkeypatch, [], "--json", str(path))
    assert path.read_text() == before
    timed(monkeypatch, [PLAIN], "--json", str(path), "--force")
    assert len(json.loads(path.read_text())) == 1


# ---- inspect, doctor, and the whole


def test_inspect_tells_what_a_bundle_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {
        **inputs_of(1, "T", 3, hint={**HINT, "description": "which way"}, label=LABELS),
        "axes": {"T": [2, 4, 8]},
    }
    precisions = {"int8": MEASURED | {"plan_sha256": REFITTED.sha256}, "fp16": MEASURED}
    (tmp_path / "small").mkdir()
    REFITTED.save(tmp_path / "small" / "plan-int8.json")
    files = ["sampler-int8.onnx", "sampler-fp16.onnx"]
    changed = {"built_in": {"style": 3}, "random_weights": True}
    path = tmp_path / "small"
    small_bundles.bundle(
        path, inputs, files=files, output={**PICTURE, "shape": [1, "T", 3]}, precisions=precisions, model=changed
    )
    keys = keys_asked(monkeypatch)
    assert run_main(main, "inspect", str(path), KEYS, "k.pub") == 0
    assert keys == [Path("k.pub")]
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "model: arms, style = 3, RANDOM WEIGHTS; licence none"
    assert told[1] == "makes images: float32 [1, 'T', 3], in [-1, 1]"
    assert told[2:4] == ["takes hint: float32 [2]; which way", "takes label: int64 [], 0 to 9"]
    assert told[4] == "axis T: 2 to 8, usually 4"
    levels = "ddim, 2 evaluations at noise levels 2, 1; SHA-256 of its numbers"
    assert told[5:7] == [f"plan: {levels} {PLAN.sha256}", f"plan of int8, refitted: {levels} {REFITTED.sha256}"]
    assert told[7:9] == [f"precision: {name}, 1.0e-02 RMS from fp32's images" for name in precisions]
    sizes = {name: f"{(path / name).stat().st_size:,}" for name in sorted(Bundle.open(path).manifest["files"])}
    assert sorted(told[9:]) == sorted(f"{size:>12} bytes  {name}  verified" for name, size in sizes.items())


def test_inspect_tells_of_engines_and_of_a_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SimpleNamespace(flavour="tensorrt", version="10", precision="fp16", batch="1:4:8", targets=("sm8", "sm9"))
    bundle = pictures(tmp_path)
    vars(bundle).update(engines=(engine,), plan=SimpleNamespace(**asdict(bundle.plan), nfe=2, afs=True, sha256="5"))
    monkeypatch.setattr(command, "Bundle", SimpleNamespace(open=lambda *_: bundle))
    assert run_main(main, "inspect", str(bundle.folder)) == 0
    told = capsys.readouterr().out.splitlines()
    assert "at noise levels 2, 1, analytical first step; SHA-256 of its numbers" in told[2]
    assert told[3] == "engine: tensorrt 10, fp16, batch 1:4:8, for sm8, sm9"


def test_inspect_reads_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = pictures(tmp_path)
    assert run_main(main, "inspect", str(bundle.folder), "--json") == 0
    assert json.loads(capsys.readouterr().out) == bundle.manifest
    (bundle.folder / "denoiser.onnx").write_text("another")
    for form in ((), ("--json",)):
        with pytest.raises(UserError, match=r"denoiser\.onnx"):
            run_main(main, "inspect", str(bundle.folder), *form)
    assert capsys.readouterr().out == ""


def test_doctor_tells_of_each_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, folder, keys = list[Any](), pictures(tmp_path).folder, keys_asked(monkeypatch)
    found = [Finding("tensorrt", "no GPU"), Finding("onnxrt", None)]
    monkeypatch.setattr(doctor, "machine", lambda: [("GPU", "none"), ("ONNX Runtime", "1.23")])
    monkeypatch.setattr(doctor, "findings", lambda bundle: asked.append(bundle) or found)  # type: ignore[func-returns-value]
    monkeypatch.setattr(doctor, "status", lambda told: 40 + len(told))
    assert run_main(main, "doctor") == 42
    told = ["GPU          none", "ONNX Runtime 1.23", "", "backend              runs here"]
    backends = ["tensorrt             no: no GPU", "onnxrt               yes"]
    assert capsys.readouterr().out.splitlines() == [*told, *backends]
    run_main(main, "doctor", str(folder), KEYS, "k.pub")
    assert capsys.readouterr().out.splitlines()[3] == f"backend              runs {folder}"
    assert (asked[0], asked[1].folder, keys) == (None, folder, [Path("k.pub")])
    with pytest.raises(UserError, match=r"--verify-key k\.pub is for a bundle: name it"):
        run_main(main, "doctor", KEYS, "k.pub")


def test_a_verb_with_a_room_has_its_own_command(monkeypatch: pytest.MonkeyPatch) -> None:
    called = list[Any]()

    def room(module: str) -> Any:
        return SimpleNamespace(main=lambda: called.append((module, sys.argv[1:])) or 3)  # type: ignore[func-returns-value]

    monkeypatch.setattr(command, "import_module", room)
    for verb in ROOMS:
        assert run_main(main, verb, "b", "--out", "o") == 3
        assert called.pop() == (f"edge_sampler.runtime.{verb}.command", ["b", "--out", "o"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "the following arguments are required: verb"),
        (("dance",), "invalid choice: 'dance'"),
        (("sample", "b"), "the following arguments are required: --out"),
        (("sample", "--out", "a.png"), "the following arguments are required: bundle"),
        (("inspect",), "the following arguments are required: bundle"),
        (("inspect", "b", "--backend", "onnxrt"), "unrecognized arguments"),
        (("compare", "b", "--backend", "onnxrt", "x"), "unrecognized arguments"),
        (("sample", "b", "--out", "a.png", "--seeds", "x"), "is not a list of whole numbers"),
    ],
)
def test_what_no_verb_takes(arguments: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run_main(main, *arguments)


def test_each_verb_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "300")

    def help_of(*verb: str) -> str:
        with pytest.raises(SystemExit):
            run_main(main, *verb, "--help")
        return capsys.readouterr().out

    of_all = help_of()
    for verb in ("sample", "compare", "bench", "inspect", "doctor"):
        told = help_of(verb).split("\n\n")[1]
        assert told[0].isupper()
        assert f"{verb:<19} {told[0].lower()}{told[1:].removesuffix('.')}\n" in of_all
    assert [told for told in ROOMS.values() if f"{told}\n" not in of_all] == []
