"""docs/deploy.md, "What to copy": each command needs the files that are told there, and no others."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edge_sampler
from edge_sampler.export.engine_command import main as engine
from edge_sampler.runtime.__main__ import main as runtime
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.generate.command import main as generate
from tests.conftest import run_main

SAMPLE = ("manifest.json", "sampler.onnx")
PLAN = (*SAMPLE, "plan.json")
COMPARE = (*PLAN, "reference.npz", "denoiser.onnx")
NEEDS: tuple[tuple[Callable[[], int | None], tuple[str, ...], tuple[str, ...]], ...] = (
    (runtime, ("sample", "B", "--seeds", "1", "--out", "O.npz"), SAMPLE),
    (generate, ("B", "--seeds", "1", "--out", "O"), PLAN),
    (runtime, ("bench", "B", "--rounds", "1"), (*PLAN, "denoiser.onnx")),
    (runtime, ("compare", "B"), COMPARE),
    (engine, ("B", "--precision", "fp16"), PLAN),
)


def part(bundle: Path, folder: Path, names: tuple[str, ...]) -> Path:
    folder.mkdir()
    for name in names:
        shutil.copyfile(bundle / name, folder / name)
    return folder


@pytest.mark.parametrize(("main", "words", "needs"), NEEDS, ids=lambda value: value[0] if type(value) is tuple else "")
def test_a_command_needs_these_files_alone(
    main: Callable[[], int | None], words: tuple[str, ...], needs: tuple[str, ...], made: Path, tmp_path: Path
) -> None:
    def run(*names: str) -> object:
        there, out = part(made, tmp_path / f"without {len(names)}", names), str(tmp_path / f"out {len(names)}")
        return run_main(main, *(str(there) if word == "B" else word.replace("O", out) for word in words))

    assert not run(*needs)
    for place, name in enumerate(needs[1:], 1):
        shutil.rmtree(tmp_path / f"without {len(needs) - 1}", ignore_errors=True)
        with pytest.raises(UserError, match=f"{name} is missing, though the manifest lists it"):
            run(*needs[:place], *needs[place + 1 :])


def test_a_sample_in_16_bits_is_its_seeds_alone(made: Path, tmp_path: Path) -> None:
    """Whatever the batch: several threads would add in other orders."""
    there = part(made, tmp_path / "b", PLAN)
    run_main(engine, str(there), "--precision", "fp16")
    with edge_sampler.load(there, "onnxrt", "fp16") as sampler:
        together = sampler.sample(range(12))
        for seed in (0, 1, 11):
            np.testing.assert_array_equal(sampler.sample([seed])[0], together[seed])


def test_what_is_there_is_verified_before_anything_is_added(made: Path, tmp_path: Path) -> None:
    there = part(made, tmp_path / "b", (*PLAN, "denoiser.onnx"))
    (there / "denoiser.onnx").write_bytes(b"x" * (there / "denoiser.onnx").stat().st_size)
    with pytest.raises(UserError, match=r"denoiser.onnx is not the file the manifest describes"):
        run_main(engine, str(there), "--precision", "fp16")
    assert Bundle.open(there).precisions == ["fp32"]
