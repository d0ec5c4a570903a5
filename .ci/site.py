"""Hooks of mkdocs. A page of the site has the path that it has in the repository, so that links hold in both."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
BESIDE = ("*.md", "examples/**/*.py", "models/weights/*.md")  # outside of docs/, to be linked to
ROOMS = ("calibration", "export", "models", "runtime")
links = TemporaryDirectory()


@event_priority(100)  # before mkdocstrings reads it
def on_config(config: MkDocsConfig, **_: Any) -> None:
    """mkdocstrings runs nothing, so it does not see the rooms beside edge_sampler: here they are inside."""
    package = Path(links.name, "edge_sampler")
    package.mkdir(exist_ok=True)
    for path in (*(ROOT / room for room in ROOMS), *(ROOT / "edge_sampler").glob("*.py")):
        (package / path.name).unlink(missing_ok=True)
        (package / path.name).symlink_to(path)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [links.name]


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    ours = [file for file in files if Path(file.abs_src_path or "").is_relative_to(config.docs_dir)]
    for file in ours:
        files.remove(file)
    beside = [path for pattern in BESIDE for path in sorted(ROOT.glob(pattern))]
    for path in (*(Path(str(file.abs_src_path)) for file in ours), *beside):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files
