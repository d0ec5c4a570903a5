"""What --help says of each command: the usual options first, and every command and option somewhere."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from edge_sampler.calibration.__main__ import OTHERS
from edge_sampler.export.__main__ import VERBS
from edge_sampler.runtime.command import ROOMS
from edge_sampler.runtime.command_line import Parser
from tests.conftest import run_main

ROOT = Path(__file__).parent.parent


def parsing(room: Path) -> list[str]:
    """The modules of a room that read a command line."""
    found = (path for path in room.rglob("*.py") if " = Parser(" in path.read_text("utf-8"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found]


def help_of(module: str, capsys: pytest.CaptureFixture[str], *verb: str) -> str:
    with pytest.raises(SystemExit) as ended:
        run_main(import_module(f"edge_sampler.{module}").main, *verb, "--help")
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("room", ["calibration", "export", "models", "runtime"])
def test_a_help_begins_with_six_options_at_most(room: str, capsys: pytest.CaptureFixture[str]) -> None:
    modules = parsing(ROOT / room)
    assert f"{room}.command" in modules
    helps = {module: help_of(module, capsys) for module in modules}
    if room == "runtime":
        helps |= {verb: help_of("runtime.command", capsys, verb) for verb in ("sample", "compare", "bench", "inspect")}
    for command, text in helps.items():
        first = text.partition("\nmore")[0]
        shown = re.findall(r"^  (?:-h, )?--?(\S+)", first, re.MULTILINE)
        assert len([name for name in shown if name.strip(",") not in ("h", "help")]) <= 6, command
        assert len(shown) == len(set(shown)), command
        for option in re.findall(r"^  (--[\w-]+)", text, re.MULTILINE):
            assert len(re.findall(rf"^  {option}\b(?!-)", text, re.MULTILINE)) == 1, (command, option)


def test_the_help_of_a_room_names_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for room, verbs in (("calibration", OTHERS), ("export", VERBS), ("runtime", ROOMS)):
        text = help_of(f"{room}.__main__", capsys)
        assert [verb for verb in verbs if f"python -m {room} {verb}" not in text] == []


def test_the_common_options_come_first_and_none_is_lost() -> None:
    parser = Parser("p", common=("--often", "--second"))
    parser.add_argument("--rarely", help="seldom")
    group = parser.add_argument_group("of a kind")
    group.add_argument("--second")
    group.add_argument("--third")
    parser.add_argument("--often", required=True)
    parser.add_argument("file")
    text = parser.format_help()
    places = [text.index(f"\n  {word}") for word in ("file", "--often", "--second", "--third", "-h", "--rarely")]
    assert places == sorted(places)
    heads = [text.index(head) for head in ("\noptions:", "\nmore: of a kind:", "\nmore:\n")]
    assert places[0] < heads[0] < places[1]
    assert places[2] < heads[1] < places[3] < heads[2] < places[4]
    assert text.count("\n  --second") == 1
    assert text.startswith("usage: p --often OFTEN [--second SECOND] file\n")
