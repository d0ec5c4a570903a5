"""What an export refuses before its work, and what it does not."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from edge_sampler.export.command import main
from edge_sampler.runtime.errors import UserError
from tests.conftest import run_main


class LoadedError(Exception):
    """The options were accepted, and the model is wanted."""


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ((), "edm-digits-auto-nfe3"),
        (("--refine",), "edm-digits-iia-ddim-afs-refined-nfe3"),
        (("--solver", "iia-ipndm", "--afs"), "edm-digits-iia-ipndm-afs-nfe3"),
        (("--plan", "shipped"), "edm-digits-iia-ddim-afs-refined-nfe3"),
        (("--budget", "4000"), "edm-digits-iia-ddim-afs-nfe3"),
    ],
    ids=str,
)
def test_a_folder_that_is_there_is_refused_before_the_fit(
    options: tuple[str, ...], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts" / folder).mkdir(parents=True)
    monkeypatch.setattr("edge_sampler.export.command.export_graphs", lambda model: pytest.fail("it began"))
    with pytest.raises(UserError, match=f"{folder} exists"):
        run_main(main, "--model", "edm-digits", "--nfe", "3", *options)


def test_a_refit_has_a_view_whatever_the_plan_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(arguments: object) -> None:
        raise LoadedError

    monkeypatch.setattr("edge_sampler.export.command.load_model", loaded)
    command = ("--model", "edm-digits", "--nfe", "3", "--refine-on", "features", "--precision", "int8")
    for plan in (("--plan", "shipped"), ("--solver", "ddim")):
        with pytest.raises(LoadedError):
            run_main(main, *command, *plan, "--refit")
    with pytest.raises(UserError, match="--refine-on is for a fit, and --plan is fitted already"):
        run_main(main, *command, "--plan", "shipped")
