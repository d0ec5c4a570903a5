"""Every mistake gets one line and status 2, and leaves nothing behind."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from edge_sampler import console
from edge_sampler.calibration.arguments import file_name
from edge_sampler.calibration.judge import error_against_converged
from edge_sampler.models import load
from edge_sampler.runtime.command_line import Parser, run_command
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan
from tests import warm

ROOT = Path(__file__).parent.parent
FAST = ("--solver", "ddim", "--check", "0")


def run(folder: Path, room: str, *arguments: str, python: str | None = None) -> subprocess.CompletedProcess[str]:
    """``python -m ROOM …`` in that folder, in a process of its own, which imports all that is ours."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EDGE_SAMPLER_CACHE": str(folder / "cache"), "no_proxy": "*"}
    return subprocess.run(
        [python or warm.python(), "-m", room, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def run_here(folder: Path, room: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has imported it all. A warning, which would be a line more, fails."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        patch.chdir(folder)
        patch.setenv("EDGE_SAMPLER_CACHE", str(folder / "cache"))
        patch.setenv("no_proxy", "*")
        patch.setattr(sys, "argv", ["edge-sampler", room, *arguments])
        signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with pytest.raises(SystemExit) as ended:
            console.main()
        for number, handler in signals.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, cast(int, ended.value.code), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def bundle(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("work") / "bundle"))


EXPORT_MISTAKES = [
    (("--model", "edm-digit", "--nfe", "2"), "did you mean edm-digits"),
    (("--model", "edm-digits", "--nfe", "0"), "nfe is 0"),
    (("--model", "edm-digits", "--nfe", "2.5"), "invalid int value: '2.5'"),
    (("--model", "edm-digits", "--nfe", "2", "--solver", "ipmdn"), "did you mean"),
    (("--model", "edm-digits"), "--nfe"),
    (("--nfe", "2"), "--model"),
    (("--model", "absent.pkl", "--nfe", "2"), "no weights file at absent.pkl"),
    (("--model", "edm-digits", "--nfe", "2", "--weights", "corrupt.safetensors"), "corrupt.safetensors"),
    (("--model", "edm-cifar10", "--nfe", "2", "--weights", "digits.safetensors"), "do not fit the architecture"),
    (("--model", "edm-digits", "--plan", "corrupt.json"), "not a valid plan"),
    (("--model", "edm-digits", "--nfe", "2", *FAST, "--out", "taken"), "taken exists"),
    (("--model", "edm-digits", "--nfe", "2", *FAST, "--out", "taken", "--force"), "no bundle"),
    (("--model", "edm-digits", "--nfe", "2", *FAST, "--out", "corrupt.json/b"), "cannot write"),
    (("--model", "edm-digits", "--nfe", "2", "--device", "abacus"), "abacus"),
    (("--model", "edm-digits", "--nfe", "2", "--output", "int4"), "invalid choice"),
    (("--model", "edm-digits", "--nfe", "2", "--guidance", "2"), "guidance 2 needs a condition with a null"),
    (("--model", "edm-digits", "--nfe", "2", "--class-label", "0"), "class-label is 0; edm-digits has no classes"),
    (("--model", "edm-fashion-cond", "--nfe", "2", "--class-label", "10"), "classes 0 to 9"),
    (("--model", "absent.py:make", "--nfe", "2"), "no file absent.py"),
    (("--model", "absent.onnx", "--nfe", "2"), "no ONNX file at absent.onnx"),
    (("--model", "edm-digits", "--plan", "corrupt.json", "--towards", "edm-digits"), "--towards is for a fit"),
    (("--model", "edm-digits", "--plan", "shipped"), "or --plan shipped with --nfe"),
    (("--model", "edm-digits", "--plan", "shipped", "--nfe", "7"), "no plan of 7 evaluations ships with edm-digits"),
    (("--model", "edm-cifar10", "--plan", "shipped", "--nfe", "10"), "it has none: fit one, with --nfe 10"),
    (("--model", ".", "--nfe", "2"), "the folder is no pipeline, or not whole"),
    (("--model", "taken/absent", "--nfe", "2"), "there is no file or folder taken/absent"),
    (("--model", "mine.py", "--nfe", "2"), "names no function: FILE.py:FUNCTION makes a model, as in mine.py:make"),
    (("--model", "edm-digits", "--nfe", "2", "--plan", "absent.json"), "--nfe 2 is for a fit: --plan absent.json has"),
    (("--model", "edm-digits", "--nfe", "2", "--samples", "0"), "samples 0; allowed"),
    (("--model", "edm-digits", "--nfe", "2", "--check", "-3"), "--check is -3; it must be at least 0"),
    (("--model", "edm-digits", "--nfe", "2", "--check", "4", "--random-weights"), "--random-weights make none: leave"),
    (("--model", "edm-digits", "--nfe", "2", "--size", f"{'9' * 5000}x8"), "expected HEIGHTxWIDTH in pixels"),
    (("--model", "edm-digits", "--nfe", "2", "--check", "10000000000"), "at least 0 and at most 1,048,576"),
    (
        ("--model", "edm-digits", "--nfe", "2", "--samples", "4097"),
        "samples 4097; allowed: float32, uint8, and 1 to 4096",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "message"), EXPORT_MISTAKES, ids=lambda value: value if type(value) is str else ""
)
def test_export_mistakes(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "corrupt.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "digits.safetensors").symlink_to(ROOT / "models" / "weights" / "edm-digits.safetensors")
    (tmp_path / "corrupt.json").write_text("{")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "precious").touch()
    before = sorted(tmp_path.rglob("*"))
    failed = run_here(tmp_path, "export", *arguments)
    assert_one_line(failed, message)
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "artifacts"] == before


def test_a_condition_without_examples_is_refused_before_the_graph(tmp_path: Path) -> None:
    """Which takes long. It is asked for even where nothing is fitted: the bundle records what PyTorch makes of some."""
    (tmp_path / "mine.py").write_text(
        "import edge_sampler, torch\n\n\nclass Told(torch.nn.Module):\n    def forward(self, x, sigma, hint):\n"
        "        return x * hint.mean(1)[:, None, None, None]\n\n\n"
        "def make():\n    hint = {'hint': edge_sampler.Condition((3,))}\n"
        "    return edge_sampler.adapt(Told(), (1, 8, 8), conditions=hint)\n"
    )
    failed = run_here(tmp_path, "export", "--model", "mine.py:make", "--nfe", "2", *FAST)
    assert_one_line(failed, "mine has no examples of its condition hint")
    assert not [*tmp_path.rglob("*.onnx")]


def assert_one_line(failed: subprocess.CompletedProcess[str], message: str) -> None:
    assert failed.returncode == 2, failed.stdout + failed.stderr
    lines = failed.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export --model edm-digit --nfe 2", "did you mean edm-digits"),
        ("calibration --model edm-digits --nfe 0", "nfe is 0"),
        ("models verify edm-digit", "did you mean edm-digits"),
        ("runtime sample nowhere --out g.png", "no bundle at nowhere"),
    ],
)
def test_each_room_says_it_in_a_line_of_its_process(command: str, message: str, tmp_path: Path) -> None:
    assert_one_line(run(tmp_path, *command.split()), message)
    assert not list(tmp_path.iterdir())


def test_without_a_network_the_url_and_the_cache_are_named(tmp_path: Path) -> None:
    failed = run_here(tmp_path, "export", "--model", "edm-cifar10", "--nfe", "2", *FAST)
    address = "nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-uncond-vp.pkl"
    assert_one_line(failed, f"https://{address}")
    place = re.search(r"put the file at (\S+),", failed.stderr)
    assert place
    assert Path(place[1]).is_relative_to(tmp_path / "cache")
    assert Path(place[1]).name == "edm-cifar10-32x32-uncond-vp.pkl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sample", "nowhere", "--out", "g.png"), "no bundle at nowhere"),
        (("sample", "bundle", "--out", "g.gif"), "'.gif'; allowed: .png, .npz"),
        (("sample", "bundle", "--out", "g.png", "--seeds", "9-1"), "not a list of whole numbers"),
        (("sample", "bundle", "--out", "g.png", "--seeds", "x"), "not a list of whole numbers"),
        (("sample", "bundle", "--out", "g.png", "--seeds", "0-999999999999"), "more than"),
        (("sample", "bundle", "--out", "g.png", "--seeds", "9223372036854775808"), "out of range"),
        (("sample", "bundle", "--out", "g.png", "--seeds", "-5"), "out of range"),
        (("sample", "bundle", "--out", "g.png", "--class-labels", "3"), "takes no conditions"),
        (("sample", "bundle", "--out", "bundle/manifest.json/g.png"), "cannot write"),
        (("sample", "bundle", "--out", "g.png", "--backend", "abacus"), "unknown backend 'abacus'"),
        (("bench", "bundle", "--rounds", "0"), "at least 1"),
        (("dance", "bundle"), "invalid choice"),
    ],
)
def test_runtime_mistakes(arguments: tuple[str, ...], message: str, bundle: Path) -> None:
    before = sorted(bundle.parent.rglob("*"))
    assert_one_line(run_here(bundle.parent, "runtime", *arguments), message)
    assert sorted(bundle.parent.rglob("*")) == before


def test_the_verbs_work(bundle: Path, tmp_path: Path) -> None:
    for verb in (["compare"], ["inspect"], ["sample", "--out", str(tmp_path / "a.npz"), "--seeds", "0-2,7"]):
        done = run(tmp_path, "runtime", verb[0], str(bundle), *verb[1:])
        assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "a.npz") as stored:
        assert stored["seeds"].tolist() == [0, 1, 2, 7]
        assert stored["images"].shape == (4, 1, 8, 8)
    assert run(tmp_path, "runtime", "compare", str(bundle), "--tolerance", "1e-12").returncode == 1


def test_calibration_writes_a_plan_that_export_takes(tmp_path: Path) -> None:
    fit = ("--fit-batch", "8", "--heldout", "4", "--fine-steps", "2", "--afs")
    done = run(tmp_path, "calibration", "--model", "edm-digits", "--solver", "iia-ddim", "--nfe", "2", *fit)
    assert done.returncode == 0, done.stderr
    plan = "edm-digits-iia-ddim-afs-nfe2.json"
    done = run(tmp_path, "export", "--model", "edm-digits", "--plan", plan, "--samples", "1", "--check", "2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "artifacts" / "edm-digits-iia-ddim-afs-nfe2" / "manifest.json").exists()
    assert "RMS on the 4 samples" in done.stdout  # the fit's own
    error = error_against_converged(load("edm-digits"), Plan.load(tmp_path / plan), 2)
    assert f"{error:.4f} RMS on 2 new samples;" in done.stdout
    refused = run_here(tmp_path, "export", "--model", "edm-digits", "--plan", plan, "--random-weights")
    assert_one_line(refused, "the plan was fitted to edm-digits, fingerprint")
    replace(Plan.load(tmp_path / plan), mean=(((0.0, 0.0),),), report=None).save(tmp_path / "tall.json")
    refused = run_here(tmp_path, "export", "--model", "edm-digits", "--plan", "tall.json", "--out", "tall")
    assert_one_line(refused, "(1, 1, 2) for data of (1, 8, 8)")
    assert not (tmp_path / "tall").exists()


def test_reference_steps_that_nothing_takes_are_refused(tmp_path: Path) -> None:
    fit = ("--model", "edm-digits", "--nfe", "2", "--fit-batch", "2", "--heldout", "2", "--reference-steps", "12")
    for command in ("calibration", "export"):
        for schedule in ((), ("--solver", "iia-ddim", "--schedule", "chosen")):
            assert_one_line(run_here(tmp_path, command, *fit, *schedule), "chosen levels have fine steps of their own")
    assert not list(tmp_path.iterdir())
    edms = ("--solver", "iia-ddim", "--schedule", "edm", "--fit-target", "global", "--fine-steps", "2")
    assert run_here(tmp_path, "calibration", *fit, *edms, "--out", "plan.json").returncode == 0
    report = Plan.load(tmp_path / "plan.json").report
    assert report is not None
    assert report.settings["reference_steps"] == 12
    assert report.evaluations == 12 * 4 + 2 * 4  # the fine trajectory, then the fit


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--solver", "ddim", "--target", "global"), "target"),
        (("--solver", "ddim", "--batch", "8"), "batch"),
        (("study", "--batch", "8"), "batch"),
        (("ablation", "--batch", "8"), "batch"),
    ],
)
def test_a_fit_has_no_option_of_an_engine(arguments: tuple[str, ...], option: str, tmp_path: Path) -> None:
    """Such as it once had: the same word would mean another thing in ``export``."""
    failed = run_here(tmp_path, "calibration", *arguments, "--model", "edm-digits", "--nfe", "2")
    assert_one_line(failed, f"--{option} is an engine's: a fit has --fit-{option}")


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise OSError(28, "No space left on device", "sampler.onnx")

    with pytest.raises(SystemExit) as stopped:
        run_command(main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: cannot write sampler.onnx: No space left on device\n"


@pytest.mark.parametrize("end", [None, UserError("no"), KeyError("ours"), KeyboardInterrupt()], ids=repr)
def test_a_caller_has_his_own_signals_back(end: BaseException | None) -> None:
    """Its handlers are there while it runs, and gone however it ends."""
    numbers, seen = (signal.SIGTERM, signal.SIGINT), list[object]()
    before = [signal.getsignal(number) for number in numbers]

    def mine(*_: object) -> None:
        pass

    def main() -> None:
        seen.extend(signal.getsignal(number) for number in numbers)
        if end is not None:
            raise end

    try:
        signal.signal(signal.SIGTERM, mine)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises((SystemExit, KeyError)):
            run_command(main)
        assert [signal.getsignal(number) for number in numbers] == [mine, signal.default_int_handler]
        assert not {mine, signal.default_int_handler} & {*seen}
    finally:
        for number, earlier in zip(numbers, before, strict=True):
            signal.signal(number, earlier)


def test_a_bug_is_not_dressed_up_as_bad_input() -> None:
    def main() -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        run_command(main)


def test_a_missing_library_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError(\"No module named 'rich'\", name='rich')")
    for room in ("export", "calibration"):
        assert_one_line(run(tmp_path, room, "--help", python=sys.executable), "rich is not installed")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("edm-digits", "edm-digits"),
        ("us/ddpm-v1.5", "ddpm-v1.5"),
        ("https://there/edm.pkl", "edm"),
        ("mine.py:make", "mine"),
        ("us/mine.py:small", "mine-small"),
        (".", "ddpm-v1.5"),
    ],
)
def test_files_are_called_as_their_model(
    model: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ddpm-v1.5").mkdir()
    monkeypatch.chdir(tmp_path / "ddpm-v1.5")
    assert file_name(model) == name


TERMINATED = """
import os, signal, sys
from pathlib import Path
from edge_sampler.runtime.command_line import run_command
from edge_sampler.runtime.output import writable

def main():
    with writable(Path(sys.argv[1])) as path:
        path.mkdir()
        os.kill(os.getpid(), signal.SIGTERM)

run_command(main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_a_terminated_command_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TERMINATED, str(tmp_path / "bundle")]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 143
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("values", ["-1", "-1,0", "-1,-2", "-1-3"])
def test_values_may_begin_with_a_minus(values: str) -> None:
    parser = Parser()
    parser.add_argument("--class-labels")
    parser.add_argument("--force", action="store_true")
    found = parser.parse_args(["--class-labels", values, "--force"])
    assert (found.class_labels, found.force) == (values, True)
