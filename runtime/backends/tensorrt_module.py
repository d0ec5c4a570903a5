"""The Python module of TensorRT or TensorRT-RTX, whichever flavour is asked for, and its logger."""

import importlib
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edge_sampler.runtime.engine_record import INSTALL, LIBRARIES
from edge_sampler.runtime.errors import UserError

if TYPE_CHECKING:
    import tensorrt

DEBIAN = Path("/usr/lib")  # where JetPack installs it
LOGGED_LINES = 10_000


class Library(Protocol):
    """What we use of both flavours' modules; typed by TensorRT's stubs."""

    ILogger: "type[tensorrt.ILogger]"
    Runtime: "type[tensorrt.Runtime]"
    Dims: "type[tensorrt.Dims]"
    Builder: "type[tensorrt.Builder]"
    BuilderFlag: "type[tensorrt.BuilderFlag]"
    LayerType: "type[tensorrt.LayerType]"
    NetworkDefinitionCreationFlag: "type[tensorrt.NetworkDefinitionCreationFlag]"
    OnnxParser: "type[tensorrt.OnnxParser]"
    TensorIOMode: "type[tensorrt.TensorIOMode]"
    nptype: Callable[[Any], Any]


def library(flavour: str, system: Path = DEBIAN) -> Library:
    """The Python module of that flavour. Raises UserError when it is not installed or cannot be loaded."""
    name = LIBRARIES[flavour]
    try:
        module: Any = importlib.import_module(name)
        _ = module.Builder  # stubs alone, for a type checker, look like a package without content
    except (ModuleNotFoundError, AttributeError) as error:
        if name == "tensorrt" and any(system.glob("python3*/dist-packages/tensorrt")):
            raise UserError(
                "tensorrt is installed for the system's Python, and this environment hides it: make the environment "
                "anew with python3 -m venv --system-site-packages, by the Python that the system has"
            ) from error
        raise UserError(f"{name} is not installed: {INSTALL[flavour]}") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(f"{name} cannot be loaded ({error}): install it again") from error
    return cast(Library, module)


def version(flavour: str) -> str:
    module: Any = library(flavour)
    return str(module.__version__)


@cache
def logger(flavour: str) -> Any:
    """The library's one logger (it keeps the first it is given): ``lines`` is what it has said, newest last."""
    lib = library(flavour)

    class Logger(lib.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: deque[str] = deque(maxlen=LOGGED_LINES)

        def log(self, severity: Any, message: str) -> None:
            if severity != lib.ILogger.Severity.VERBOSE:
                self.lines.append(f"{getattr(severity, 'name', severity)}: {message}")

        def last_error(self) -> str:
            errors = (line for line in reversed(self.lines) if line.startswith(("ERROR", "INTERNAL_ERROR")))
            return next(errors, "it gave no reason")

    return Logger()
