"""ONNX Runtime on the CPU: the baseline that every engine is compared with."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from runtime.errors import UserError
from runtime.protobuf import field_head


def missing() -> str | None:
    return None if importlib.util.find_spec("onnxruntime") else "install onnxruntime"


class Session:
    """One ONNX graph, loaded. ``outputs`` names intermediate values that ``run`` returns beside the graph's own."""

    def __init__(self, path: Path, outputs: Sequence[str] = ()) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        folder_key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(folder_key, str(path.parent.resolve()))
        source: str | bytes = str(path)
        if outputs:
            source = path.read_bytes() + _declare_outputs(outputs)
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class but this
            reason = str(error).split("\n", maxsplit=1)[0]
            raise UserError(f"ONNX Runtime cannot load {path}: {reason}") from error
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self._session.run(self.outputs, dict(feed)), strict=True))

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._session


def _declare_outputs(names: Sequence[str]) -> bytes:
    """Bytes that, behind a serialized ModelProto, declare more graph outputs.

    Protocol Buffers merges a message that is repeated: field 7 of ModelProto is its graph, field 12 of GraphProto an
    output, field 1 of ValueInfoProto its name (onnx/onnx.proto). So a device needs no ``onnx`` package for this.
    """

    def field(number: int, payload: bytes) -> bytes:
        return field_head(number, len(payload)) + payload

    return field(7, b"".join(field(12, field(1, name.encode())) for name in names))
