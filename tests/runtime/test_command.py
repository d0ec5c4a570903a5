"""What the commands of a bundle print."""

import json
from pathlib import Path

import pytest

from edge_sampler.runtime.command import labels_of, main, spans
from edge_sampler.runtime.command_line import whole_numbers
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.manifest import MANIFEST
from tests.bundles import remake_manifest
from tests.conftest import run_main


def inspected(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    run_main(main, "inspect", *arguments)
    return capsys.readouterr().out


def test_inspect_begins_with_what_a_person_asks(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = {"samples": 4, "rms_error": 0.0123, "largest_error": 0.2, "relative_error": 0.1}

    def change(facts: dict) -> None:  # type: ignore[type-arg]
        facts["model"] |= {"guidance": 2.0, "built_in": {"class_labels": 7}, "random_weights": True}
        facts["precisions"] = {"int8": error}

    (copy / "sampler-int8.onnx").write_bytes((copy / "sampler.onnx").read_bytes())
    remake_manifest(copy, change)
    lines = inspected(capsys, str(copy)).splitlines()
    assert lines[0].startswith("model: edm-digits, class_labels = 7, guidance 2, RANDOM WEIGHTS; licence Apache-2.0")
    assert [line.partition(" ")[0] for line in lines[:4]] == ["model:", "makes", "plan:", "precision:"]
    assert lines[3] == "precision: int8, 1.2e-02 RMS from fp32's images"
    assert all(line.endswith("verified") for line in lines[4:])


def test_inspect_has_the_manifest_for_programs(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only of a bundle that is whole."""
    assert json.loads(inspected(capsys, str(copy), "--json")) == json.loads((copy / MANIFEST).read_text())
    (copy / "samples.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"samples\.png"):
        inspected(capsys, str(copy), "--json")


def test_classes_that_do_not_match_the_seeds_are_spelt_out() -> None:
    assert labels_of(range(40), [3]) == [3]
    assert labels_of([5, 7], [0, 9]) == [0, 9]
    with pytest.raises(UserError, match=r"10 classes for 40 seeds; .*: --class-labels (.*) takes these") as refused:
        labels_of(range(40), [*range(10)])
    typed = str(refused.value).partition(": --class-labels ")[2].partition(" ")[0]
    assert typed == "0-9,0-9,0-9,0-9"
    assert labels_of(range(40), whole_numbers(typed)) == [*range(10)] * 4
    with pytest.raises(UserError, match=r"for 2 seeds; .*: --class-labels 0-1 takes"):
        labels_of(range(2), [*range(10)])
    with pytest.raises(UserError, match=r"for each seed; `python -m runtime generate` takes"):
        labels_of(range(1000), [*range(10)])


@pytest.mark.parametrize("numbers", [[0], [1, 2, 3, 7], [4, 3, 3, 4], [-1, 0, -1]])
def test_spans_are_read_as_they_are_written(numbers: list[int]) -> None:
    assert whole_numbers(spans(numbers)) == numbers


def test_compare_says_what_each_path_runs_in(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And holds the median sample, which the manifest says is far nearer, against PyTorch's."""
    (copy / "sampler-fp16.onnx").write_bytes((copy / "sampler.onnx").read_bytes())
    told = {"samples": 4, "rms_error": 1e-9, "largest_error": 0.3, "relative_error": 0.3}
    remake_manifest(copy, lambda facts: facts.update(precisions={"fp16": told}))
    assert run_main(main, "compare", str(copy), "--precision", "fp16") == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "onnxrt in fp16; baseline loop in fp32; PyTorch in fp32",
        "BEYOND the tolerance of 3.0e-09 for the RMS of the median sample, and of 9.0e-01",
    ]
