"""What a command says, and how it ends, where the world is not as it should be: one line, and no traceback."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sampler.runtime.cache_folder import cache_folder
from edge_sampler.runtime.command_line import run_command
from edge_sampler.runtime.errors import UserError

ROOT = Path(__file__).parent.parent
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and descriptors of POSIX")
PROGRAM = """
import os, signal, sys
from pathlib import Path
from edge_sampler.runtime.command_line import run_command
from edge_sampler.runtime.output import writable

def main():
    with writable(Path(sys.argv[1])) as path:
        path.write_text("whole")
        {body}

run_command(main)
"""


def hear() -> None:
    """Ctrl-C: a job in the background, which these tests may be, and its children are deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(body: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM.format(body=body), str(out)]
    return subprocess.run(command, cwd=ROOT, preexec_fn=hear, capture_output=True, text=True, check=False)


@posix
@pytest.mark.parametrize(
    "body",
    [
        "os.kill(os.getpid(), signal.SIGINT)",
        "exec('try: os.kill(os.getpid(), signal.SIGINT)\\nexcept KeyboardInterrupt: pass')",  # as a callback from C may
        "exec('try: os.kill(os.getpid(), signal.SIGINT)\\nexcept KeyboardInterrupt: raise ImportError()')",
    ],
)
def test_an_interruption_is_one_word_and_writes_nothing(body: str, tmp_path: Path) -> None:
    done = run(body, tmp_path / "out")
    assert (done.returncode, done.stderr.split()) == (130, ["interrupted"])
    assert not list(tmp_path.iterdir())
    assert run("pass", tmp_path / "out").returncode == 0


@posix
@pytest.mark.parametrize("room", ["runtime", "export", "models", "calibration"])
def test_an_interruption_during_imports_is_one_word(room: str, tmp_path: Path) -> None:
    """Each room's first library ends it as Ctrl-C would."""
    for name in ("numpy", "torch", "rich"):
        (tmp_path / f"{name}.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", room, "list" if room == "models" else "--help"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, preexec_fn=hear, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.split()) == (130, ["interrupted"])


@posix
def test_a_job_in_the_background_stays_deaf_to_ctrl_c(tmp_path: Path) -> None:
    program = PROGRAM.format(body="os.kill(os.getpid(), signal.SIGINT)")
    program = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{program}"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], cwd=ROOT, check=True)
    assert (tmp_path / "out").read_text() == "whole"


@posix
@pytest.mark.parametrize(
    ("redirected", "status", "said"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 2, "error: cannot write "),
    ],
)
def test_an_output_that_is_closed_or_full(redirected: str, status: int, said: str, tmp_path: Path) -> None:
    """What is closed leads nowhere, and is never another file."""
    if "full" in redirected and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    body = "print('note', file=sys.stderr); print('γ' * 9); os.write(1, b'raw')"
    (tmp_path / "p.py").write_text(PROGRAM.format(body=body))
    line = f"{sys.executable} {tmp_path}/p.py {tmp_path}/out {redirected}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    notes = "note\n" * ("2>" not in redirected)
    assert done.stderr.startswith(notes + said)
    assert done.stderr.count("\n") == bool(notes) + bool(said)
    assert not (tmp_path / "out").exists() or (tmp_path / "out").read_text() == "whole"


def test_a_file_that_cannot_be_read_is_not_said_to_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("")
    readable = [True]
    monkeypatch.setattr(os, "access", lambda path, mode: readable[0] or mode == os.F_OK)

    def main() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "secret"))

    for readable[0], word in ((False, "read"), (True, "open")):
        with pytest.raises(SystemExit) as stopped:
            run_command(main)
        assert stopped.value.code == 2
        assert capsys.readouterr().err == f"error: cannot {word} {tmp_path}/secret: Permission denied\n"


def test_the_cache_is_never_in_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGE_SAMPLER_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for told in ("", "relative", "./here"):
        monkeypatch.setenv("XDG_CACHE_HOME", told)
        assert cache_folder() == tmp_path / ".cache" / "edge-sampler"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "edge-sampler"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("EDGE_SAMPLER_CACHE", raising=False)
    with pytest.raises(UserError, match="no home folder: set EDGE_SAMPLER_CACHE"):
        cache_folder()
    monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
