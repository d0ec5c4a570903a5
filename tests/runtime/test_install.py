"""What is missing is named by the command that installs it, where it is run."""

from pathlib import Path

import pytest

from edge_sampler.runtime.install import install_command

ROOT = Path(__file__).parents[2]


def test_a_checkout_is_installed_from_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No index need have this project's version; and without -e a checkout's code would be copied."""
    monkeypatch.chdir(ROOT)
    assert install_command("sign") == "pip install -e '.[sign]'"
    monkeypatch.chdir(tmp_path)
    assert install_command("cpu", "text") == f"pip install -e '{ROOT}[cpu,text]'"


def test_a_package_is_installed_by_its_name(tmp_path: Path) -> None:
    assert install_command("sign", checkout=tmp_path) == "pip install 'edge-sampler[sign]'"
