"""The code of a user's network is part of its fingerprint, and so is all that it uses."""

import importlib.util
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edge_sampler
from edge_sampler import models
from edge_sampler.models.source_code import bytecode_of, code_of, told, words_of
from edge_sampler.models.unchanged import check_unchanged

MIDDLING = """
import functools, os, types
import torch, edge_sampler
import helper_of_middling
from helper_of_middling import turned

SHARE = float(os.environ.get("SHARE", 2))
started = float(os.environ.get("SECONDS_NOW", 0))
inner = act = half = started  # as attributes are called
shares, words, kinds, told = {"middle": 1.0, 7: 1.0}, ("a", 1), torch.ones(2), "as it is"
late, least = torch.nn.Softplus(beta=1), 0.0

def unused(x):
    return x

def decorated(function):
    @functools.wraps(function)
    def called(*given):
        return function(*given) / 1
    return called

@decorated
@torch.no_grad()
def checked(x):
    return x * 1.0

@functools.lru_cache
def share():
    return SHARE

class Settings:
    power = 1.0

    def __init__(self):
        self.extra = 0.0

settings = Settings()

class Base(torch.nn.Module):
    factor = 1.0

    def times(self, value, by=1.0, above=least):
        value = (value - above + settings.extra) * settings.power * helper_of_middling.itself.factor
        return value * by * self.factor * helper_of_middling.WEIGHT

class Middling(Base):
    def __init__(self, inner=lambda x: x * 1.0):
        super().__init__()
        self.inner, self.act, self.half = inner, torch.nn.Tanh(), functools.partial(torch.mul, other=0.5)
        self.config = types.SimpleNamespace(scale=1.0)
        self.register_forward_hook(lambda module, given, made: made * 1.0)

    def forward(self, x, t):
        middle = self.times(shares["middle"] * kinds.sum() * len(words) * len(told))
        from helper_of_middling import found_late

        middle = late(found_late(middle))
        middle = self.half(self.act(checked(self.inner(middle)))) * self.config.scale
        return 0.3 * turned(x) * torch.where((t > 0.4) & (t < 0.6), middle, share())[:, None]

def made(factor):
    def inner(x):
        return x * factor
    return inner

def make():
    return edge_sampler.adapt(Middling(made(1.0)), (4,), "EDMPrecond")
"""
HELPER = """
import sys

itself, factor = sys.modules[__name__], 1.0
WEIGHT, unseen = 1.0, 1.0

def turned(x):
    return again(-x)

def again(x):
    return x * 1.0

def found_late(x):
    return x - 0.0
"""
SAME = {
    "a comment": ("    return x * factor", "    # as before\n\n        return x  *  factor"),
    "what nothing uses": ("    return x\n\ndef", "    return -x\n\ndef"),
    "what nothing reads": ("WEIGHT, unseen = 1.0, 1.0", "WEIGHT, unseen = 1.0, 2.0"),
    "a text of a run": ('"as it is"', "os.urandom(4).hex()"),
    "letters of another encoding": ("import functools", "# \xe9\nimport functools"),
}
OTHER = {
    "a constant": ("1.0, 7", "3.0, 7"),
    "a constant of a number's": ("7: 1.0", "7: 3.0"),
    "a decorator": ("(*given) / 1", "(*given) / 2"),
    "a part that is no attribute": ("beta=1", "beta=2"),
    "what is imported late": ("x - 0.0", "x - 0.1"),
    "a tuple": ('("a", 1)', '("a", 2)'),
    "a tensor": ("torch.ones(2)", "torch.zeros(2)"),
    "a decorated function": ("    return x * 1.0\n\n@functools", "    return x * 1.1\n\n@functools"),
    "a kept function": ("    return SHARE", "    return SHARE + 1"),
    "a base": ("    factor = 1.0", "    factor = 1.1"),
    "a base's method": ("by * self", "by / self"),
    "a default from elsewhere": ("beta=1), 0.0", "beta=1), 0.1"),
    "a class of settings": ("power = 1.0", "power = 1.1"),
    "what such a one holds": ("extra = 0.0", "extra = 0.1"),
    "a module's module": ("__name__], 1.0", "__name__], 1.1"),
    "a default": ("by=1.0", "by=1.1"),
    "an attribute's function": ("torch.mul", "torch.div"),
    "its argument": ("other=0.5", "other=0.6"),
    "a part": ("torch.nn.Tanh()", "torch.nn.Sigmoid()"),
    "a configuration": ("scale=1.0", "scale=1.1"),
    "a hook": ("made * 1.0", "made * 1.00001"),
    "a closure": ("made(1.0)", "made(1.1)"),
    "what a closure does": ("return x * factor", "return x / factor"),
    "another file's function": ("again(-x)", "again(-1.00001 * x)"),
    "what that calls": ("def again(x):\n    return x * 1.0", "def again(x):\n    return x * 1.00001"),
    "another file's number": ("WEIGHT, unseen = 1.0, 1.0", "WEIGHT, unseen = 2.0, 1.0"),
}


def test_another_code_is_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though no answer that was asked for tells."""

    def fingerprint(old: str = "", new: str = "") -> str:
        folder = tmp_path / f"{len([*tmp_path.iterdir()])}"
        folder.mkdir()
        assert not old or (MIDDLING + HELPER).count(old) == 1, old
        for name, text in (("mine.py", MIDDLING), ("helper_of_middling.py", HELPER)):
            encoding = "# -*- coding: latin-1 -*-\n"
            (folder / name).write_text(encoding + text.replace(old, new) if old else encoding + text, "latin-1")
        monkeypatch.delitem(sys.modules, "helper_of_middling", raising=False)
        with monkeypatch.context() as within:
            within.syspath_prepend(str(folder))
            return models.load(f"{folder}/mine.py:make").spec.fingerprint

    first = fingerprint()
    assert {name: fingerprint(*change) for name, change in SAME.items()} == dict.fromkeys(SAME, first)
    found = {name: fingerprint(*change) for name, change in OTHER.items()}
    monkeypatch.setenv("SECONDS_NOW", "3.5")
    assert fingerprint() == first
    monkeypatch.setenv("SHARE", "2.0001")
    found["the environment"] = fingerprint()
    assert len({first, *found.values()}) == 1 + len(found), [name for name, one in found.items() if one == first]


def test_code_of_libraries_is_their_names() -> None:
    assert code_of(nn.Linear(1, 1)) == code_of(nn.Linear(1, 1)) != code_of(nn.Tanh())
    assert code_of(nn.Softmax(1)) != code_of(nn.Softmax(2))  # and what they were made with
    assert told(nn.Linear) == "torch.nn.modules.linear.Linear"
    assert told(edge_sampler.Denoiser) == "edge_sampler.models.denoiser.Denoiser"  # ours too: what it does is tested


def test_a_function_is_told_by_its_words_where_it_is_as_written(tmp_path: Path) -> None:
    """Which another version of Python finds, too."""
    path, found = tmp_path / "said.py", dict[str, Any]()
    text = "other = 1\n\ndef said(x):  # a comment\n    return (x +\n            1)\n"
    path.write_text(text)
    exec(compile(text, path, "exec"), found)
    words = ["def", "said", "(", "x", ")", ":", "NEWLINE", "INDENT", "return", "(", "x", "+", "1", ")", "NEWLINE"]
    assert words_of(found["said"].__code__)[: len(words)] == words
    made = bytecode_of(found["said"].__code__)
    for change in (text.replace("+", "-"), f"\n{text}", "other = (", ""):
        path.write_text(change)
        assert words_of(found["said"].__code__) == made


class Counts(nn.Module):
    """Has all that may change while it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.times, self.shares, self.calls, self.last = nn.ReLU(), 2, [0.5, 1], 0, torch.zeros(1)
        self.mean, self.table = nn.Buffer(torch.zeros(4)), nn.Buffer(torch.ones(1, 4), persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls, self.last = self.calls + 1, x
        return self.part(x - self.mean) * self.times * self.shares[0] * self.table[: len(x)]


CHANGES: dict[str, Callable[[Counts], object]] = {
    "a part": lambda network: setattr(network, "part", nn.GELU()),
    "a part that answers alike": lambda network: setattr(network, "part", nn.Threshold(0.0, 0.0)),
    "a buffer": lambda network: network.get_buffer("mean").add_(1),
    "a buffer that is not kept": lambda network: network.get_buffer("table").mul_(2),
    "a whole number": lambda network: setattr(network, "times", 3),
    "a number in a list": lambda network: network.shares.__setitem__(0, 0.5001),
    "its forward": lambda network: setattr(network, "forward", lambda x, t: x),
    "a hook": lambda network: network.register_forward_hook(lambda module, given, made: 2 * made),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_later_is_refused(change: str) -> None:
    network = Counts()
    model = edge_sampler.adapt(network, (4,))
    model(torch.zeros(3, 4), 1.0)
    check_unchanged(model)
    CHANGES[change](network)
    with pytest.raises(edge_sampler.UserError, match=r"Counts is not what edge_sampler.adapt saw"):
        check_unchanged(model)


def test_examples_that_came_later_are_no_change() -> None:
    class Told(nn.Module):
        def forward(self, x: Tensor, t: Tensor, hint: Tensor) -> Tensor:
            return x + hint

    model = edge_sampler.adapt(Told(), (4,), conditions={"hint": edge_sampler.Condition((4,))})
    edge_sampler.with_examples(model, {"hint": torch.arange(32.0).reshape(8, 4).numpy()})
    check_unchanged(model)


class Odd(nn.Module):
    """Holds what is hard to read."""

    def __init__(self) -> None:
        super().__init__()
        self.itself: list[object] = []
        self.itself.append(self.itself)
        self.made, self.slotted, self.lock = Makes(), Slotted(), threading.Lock()
        self.elapsed = 0.0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.elapsed += 0.1
        setattr(type(self), "calls", getattr(self, "calls", 0) + 1)  # noqa: B010
        return ASKED.scale * x


class Makes(dict):  # type: ignore[type-arg]
    """Has whatever is asked for, as some configurations do."""

    def __getattr__(self, name: str) -> Any:
        if name == "scale":
            return 0.5
        if name.startswith("__"):
            raise KeyError(name)
        return Makes()

    __call__ = None


@dataclass(slots=True)
class Slotted:
    number: float = 1.0


ASKED = Makes()


def test_a_network_may_hold_anything_and_count() -> None:
    model = edge_sampler.adapt(Odd(), (4,))
    check_unchanged(model)
    model(torch.zeros(3, 4), 1.0)
    check_unchanged(model)


LATER = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.act = None, Act()

    def forward(self, x, t):
        if self.scale is None:
            self.scale = 0.5  # a first call settles it
        return self.act(x) * self.scale * (1 + 0 * t[:, None])

class Act:
    def __call__(self, x):
        return 1.0 * x
"""


def imported(path: Path, name: str) -> nn.Module:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Net()


def test_code_is_what_was_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its file was imported as, had run, and holds by now."""

    def fingerprint(network: nn.Module) -> str:
        return edge_sampler.adapt(network, (4,)).spec.fingerprint

    for name in ("first_name", "second_name", "third_name"):
        monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "net.py"
    path.write_text(LATER)
    network = imported(path, "first_name")
    network(torch.zeros(1, 4), torch.zeros(1))
    first = fingerprint(network)
    assert first == fingerprint(network) == fingerprint(imported(path, "second_name"))
    path.write_text(LATER.replace("return 1.0 * x", "return 1.00001 * x"))
    edited = fingerprint(imported(path, "third_name"))
    assert edited not in (first, fingerprint(network))  # which is as before, though its file is not
