"""The arrows between the rooms, as ARCHITECTURE.md draws them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "runtime": set(),
    "models": {"runtime"},
    "calibration": {"models", "runtime"},
    "export": {"calibration", "models", "runtime"},
}


def imports(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_stands_below_them(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        ours = imports(path) & MAY_IMPORT.keys() - {room}
        assert ours <= MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {ours - MAY_IMPORT[room]}"


def test_the_runtime_names_no_heavy_library() -> None:
    for path in (ROOT / "runtime").rglob("*.py"):
        assert not imports(path) & {"torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "rich"}, path


def test_importing_the_runtime_loads_numpy_alone() -> None:
    program = "import sys, runtime; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    foreign = set(loaded.stdout.split()) - sys.stdlib_module_names - {"runtime", "numpy"}
    foreign = {name for name in foreign if not name.startswith(("_", "sitecustomize", "usercustomize"))}
    assert not foreign


def test_files_stay_short() -> None:
    for room in MAY_IMPORT:
        for path in (ROOT / room).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 300, path
