"""What all command lines share: how they read arguments, and how they report an error."""

import argparse
import difflib
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from edge_sampler.runtime import interrupt
from edge_sampler.runtime.errors import UserError, one_line
from edge_sampler.runtime.install import install_command
from edge_sampler.runtime.json_file import parse_json
from edge_sampler.runtime.output import FULL

if TYPE_CHECKING:
    from edge_sampler.runtime.condition import Condition  # at run time it would bring NumPy

COMMANDS = ("export", "calibration", "models", "runtime")  # of `python -m` and edge-sampler
MOST_NUMBERS = 1_000_000
UNUSABLE = (*FULL, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EIO, errno.ELOOP, errno.EMFILE, errno.EBADF)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are UserErrors: one line, like all others. -1,0 is a value, as -1 is.

    Descriptions keep their lines.

    A command with more than six options names those that are ``common``, six at most: --help shows them first, and the
    others under "more".
    """

    def __init__(self, *arguments: Any, common: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": argparse.RawDescriptionHelpFormatter} | settings)
        self.common = common
        self._negative_number_matcher = re.compile(r"-\.?\d[-\d.,:e]*$")  # argparse knows single numbers alone

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for word in sys.argv[1:] if args is None else args:
            if re.fullmatch("--[a-z-]+=--", word):  # which argparse takes for no value, and so for a list of none
                self.error(f"{word}: -- is no value")
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        if not self.common:
            return super().format_help()
        first = [self._option_string_actions[name] for name in self.common]
        positionals, options, *others = self._action_groups
        sections = [(positionals.title, positionals._group_actions), (options.title, first)]
        for group in (*others, options):
            title = "more" if group is options else f"more: {group.title}"
            sections.append((title, [action for action in group._group_actions if action not in first]))
        shown = self._get_formatter()
        shown.add_usage(self.usage, [*first, *positionals._group_actions], self._mutually_exclusive_groups)
        shown.add_text(self.description)
        for heading, actions in sections:
            shown.start_section(heading)
            shown.add_arguments(actions)
            shown.end_section()
        return shown.format_help()


def add_verify_key(parser: argparse.ArgumentParser) -> None:
    """The option of commands that read a bundle: who must have signed it."""
    key_help = "minisign's public key; refuse a bundle that this key has not signed"
    parser.add_argument("--verify-key", type=Path, metavar="FILE", help=key_help)


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command line's ``main`` and exits: with its status, or with an error's and one line on standard error."""
    leave_name()
    open_streams()
    with signals(), unwritten_forgotten():
        try:
            status, message = outcome(main)
        except BaseException:
            if not interrupt.status():
                raise
        if came := interrupt.status():  # even where a library swallowed it, or made another error of it
            status, message = came, "interrupted" if came == interrupt.CTRL_C else ""
        if message:
            with suppress(OSError):  # the status tells it where nothing can be printed
                print(message, file=sys.stderr)
        sys.exit(status)


@contextmanager
def signals() -> Iterator[None]:
    """SIGTERM exits, so that temporary files go, and both are remembered. The caller's own handlers come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, interrupt.handle)
    interrupt.forget()
    if before[signal.SIGINT] is signal.default_int_handler:  # a job in the background does without
        signal.signal(signal.SIGINT, interrupt.handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None is one that Python did not make
                signal.signal(number, handler)


def outcome(main: Callable[[], int | None]) -> tuple[int, str]:
    """The status and the line that a command line ends with."""
    try:
        try:
            status = main() or 0
        except SystemExit:  # of --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return status, ""
    except UserError as error:
        status, message = error.status, str(error)
    except ModuleNotFoundError as error:
        fits, engines = install_command("cpu"), install_command("engine")
        needed = f"calibration and export need: {fits}, engines of finished bundles: {engines}"
        status, message = 2, f"{error.name} is not installed; {needed}"
    except BrokenPipeError:  # whoever reads the output, such as head, has enough
        return 141, ""  # as a shell has it
    except KeyboardInterrupt:
        return interrupt.CTRL_C, "interrupted"
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("not enough memory|out of memory", str(error)):
            raise  # PyTorch has no error of its own for it, on a CPU
        status, message = 2, f"there is not enough memory ({error}); ask for less at once"
    except OSError as error:
        if not in_a_folder():
            return 2, "error: the current folder is not there any more: change to one that is"
        if "No usable temporary directory" in str(error):  # as tempfile says it
            return 2, "error: no temporary folder can be written to: make room, or name another one in TMPDIR"
        if error.errno not in UNUSABLE:
            raise
        target = error.filename2 or error.filename or "the output"
        status, message = 2, f"cannot {verb(error)} {target}: {error.strerror}"
    return status, f"error: {one_line(message)}"


def in_a_folder() -> bool:
    """Whether the current folder is still there."""
    with suppress(FileNotFoundError):
        return bool(os.getcwd())
    return False


def verb(error: OSError) -> str:
    """What could not be done to a file."""
    if error.errno in FULL or error.filename is None:
        return "write"
    path = error.filename if isinstance(error.filename, str | bytes) else ""
    return "read" if os.access(path, os.F_OK) and not os.access(path, os.R_OK) else "open"


def open_streams() -> None:
    """Standard streams that are closed lead nowhere: else the next file that is opened would be one of them."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):  # pipes of Windows write neither γ nor σ
            stream.reconfigure(errors="replace")
    sys.stderr = Forgiving(sys.stderr)


class Forgiving:
    """A stream that loses what cannot be written: nobody loses work for want of a line on standard error."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.stream.flush()


@contextmanager
def unwritten_forgotten() -> Iterator[None]:
    """What a standard stream does not take is not tried again by Python's last flush, which ends with status 120."""
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def leave_name() -> None:
    """Forgets the package that `python -m` took ``main`` from: a user's file may import one of its own of that name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.parent in COMMANDS:
        sys.modules.pop(spec.parent, None)


def whole_numbers(text: str) -> list[int]:
    """``0-63`` or ``1,5,9`` or both, as on a command line."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(-?\d{1,99})(?:-(\d{1,99}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 0-63 or 1,5,9")
        if len(numbers) + last - first >= MOST_NUMBERS:
            raise argparse.ArgumentTypeError(f"{text!r} names more than {MOST_NUMBERS} numbers")
        numbers += range(first, last + 1)
    return numbers


def conditions_of(arguments: argparse.Namespace, known: "Mapping[str, Condition]") -> dict[str, Any]:
    """What ``--condition`` says.

    Raises UserError as ``given``, for a name that no condition has, and where ``--class-labels`` says one again.
    """
    from edge_sampler.runtime.inputs import is_taken  # late, since it brings NumPy

    conditions = given(arguments.condition, [name for name in known if known[name].text])
    if taken := sorted(filter(is_taken, conditions)):  # by an argument of ``Sampler.sample``, for one
        raise UserError(f"unknown condition {taken[0]!r}: this sampler takes {', '.join(known) or 'no conditions'}")
    if arguments.class_labels is not None and "class_labels" in conditions:
        raise UserError("class_labels is given twice, by --condition and by --class-labels: give it once")
    return conditions


def number_of(text: str) -> Any:
    """Of one of NAME=NUMBERS. Raises ValueError for anything else."""
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{text!r:.40} is no finite number") from error


def given(texts: Sequence[str], of_text: Sequence[str] = ()) -> dict[str, Any]:
    """Conditions by name, of ``NAME=VALUE`` and ``FILE.npz``. Raises UserError for what is neither, and for one twice.

    The values of conditions that are ``of_text`` are taken as they are, but for FILE.npy.
    """
    from edge_sampler.runtime.npz import given_arrays  # late, since it brings NumPy

    conditions: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=") if text.partition("=")[0] in of_text else text.rpartition("=")
        path = Path(value)
        try:
            if path.suffix == (".npy" if name else ".npz"):
                found: dict[str, Any] = {name or key: array for key, array in given_arrays(path).items()}
            elif name in of_text:
                found = {name: value}
            elif name:
                numbers = [number_of(text) for text in value.split(",")]
                found = {name: numbers if len(numbers) > 1 else numbers[0]}
            else:
                raise ValueError("it has no name")
        except ValueError as error:
            near = difflib.get_close_matches(name, of_text, 1)
            hint = f"; did you mean the text {near[0]!r}?" if near else ""
            raise UserError(f"{text}: not NAME=NUMBERS, NAME=FILE.npy or FILE.npz ({error}){hint}") from error
        if twice := sorted(found.keys() & conditions.keys()):
            raise UserError(f"{twice[0]} is given twice: give it once")
        conditions |= found
    return conditions
