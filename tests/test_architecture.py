"""The arrows between the rooms, as ARCHITECTURE.md draws them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = (".css", ".html", ".js", ".json", ".md", ".mjs", ".safetensors", ".txt")
MAY_IMPORT: dict[str, set[str]] = {
    "runtime": set(),
    "models": {"runtime"},
    "calibration": {"models", "runtime"},
    "export": {"calibration", "models", "runtime"},
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere in it, with what it takes from them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(path: Path) -> set[str]:
    """Top-level names that a file imports."""
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_stands_below_them(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("edge_sampler.")} - {room}
        assert ours <= MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {ours - MAY_IMPORT[room]}"


def test_there_is_one_import_name() -> None:
    """A user's project has folders of these names too, which come first on its path."""
    for folder in (*MAY_IMPORT, "edge_sampler", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not packages(path) & MAY_IMPORT.keys(), path


def test_every_folder_is_installed() -> None:
    """The wheel's list of packages is written out in pyproject.toml, since it gives folders other names."""
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py")}
    commands = {path.parent for path in (ROOT / "edge_sampler" / "commands").rglob("*.py")}
    names = {".".join(("edge_sampler", *folder.parts)) for folder in folders}
    assert sorted(setup["packages"]) == sorted({"edge_sampler", *names, *(path.name for path in commands)})
    places = {f"edge_sampler.{room}": room for room in MAY_IMPORT}
    assert setup["package-dir"] == places | {path.name: str(path.relative_to(ROOT)) for path in commands}
    listed = {
        path
        for package, patterns in setup["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")[1:]).glob(pattern)
    }
    data = {path for room in MAY_IMPORT for path in (ROOT / room).rglob("*") if path.suffix in DATA}
    assert data <= listed
    assert not [path for path in listed if path.suffix == ".py"]


def test_the_runtime_names_no_heavy_library() -> None:
    for path in (ROOT / "runtime").rglob("*.py"):
        assert not packages(path) & {"torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "rich"}, path


STARTS = ["calibration.__main__", "export.__main__", "models.__main__", "models.train", "runtime.__main__"]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("edge_sampler", set()),
        ("edge_sampler.runtime", set()),
        ("edge_sampler.runtime.sampler", {"numpy"}),
        *((f"edge_sampler.{start}", set()) for start in STARTS),  # else Ctrl-C in an import would be a traceback
    ],
)
def test_what_importing_loads(module: str, heavy: set[str]) -> None:
    program = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    foreign = set(loaded.stdout.split()) - sys.stdlib_module_names - {"edge_sampler"}
    foreign = {name for name in foreign if not name.startswith(("_", "sitecustomize", "usercustomize"))}
    assert foreign == heavy


def test_no_test_replaces_a_constant() -> None:
    """What a test needs smaller is a parameter: a user may need it too. Registries take another item."""
    constants = {
        name.id
        for room in MAY_IMPORT
        for path in (ROOT / room).rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for name in ast.walk(node)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store) and name.id.isupper()
    }
    assert len(constants) > 100
    for path in (ROOT / "tests").rglob("*.py"):
        for call in (
            node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        ):
            if getattr(call.func, "attr", getattr(call.func, "id", "")) == "setattr":
                told = [str(one.value).split(".")[-1] for one in call.args[:2] if isinstance(one, ast.Constant)]
                assert not constants & set(told), f"{path.relative_to(ROOT)}:{call.lineno} replaces {told[0]}"


def test_files_stay_short() -> None:
    for room in MAY_IMPORT:
        for path in (ROOT / room).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 300, path
