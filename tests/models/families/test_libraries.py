"""What diffusers and transformers load, and what they are never asked to."""

import json
from pathlib import Path

import pytest

from edge_sampler.models.families.libraries import load
from edge_sampler.runtime.errors import UserError

CODE = """
from pathlib import Path
Path(__file__).with_name("it-ran").touch()
class Mine:
    pass
"""


def test_code_in_a_folder_is_not_run_and_nobody_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, transformers asks on the terminal, and takes a yes."""
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    (tmp_path / "mine.py").write_text(CODE)
    told = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine"}))
    with pytest.raises(UserError, match=r"cannot be loaded as AutoTokenizer: .* contains custom code"):
        load(tmp_path, "transformers", "AutoTokenizer")
    assert not list(tmp_path.rglob("it-ran"))
