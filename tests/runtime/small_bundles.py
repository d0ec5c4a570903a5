"""Bundles that no exporter made, of files that say their names."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime import command
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.manifest import MANIFEST, write_manifest
from edge_sampler.runtime.plan import Plan
from edge_sampler.runtime.verified import describe_files
from tests.bundles import facts

PLAN = Plan("ddim", (2.0, 1.0), ((2.0,), (1.0, 0.5), (0.25, 0.25, 0.5)))
REFITTED = Plan("ddim", (2.0, 1.0), ((2.0,), (1.0, 0.6), (0.25, 0.25, 0.5)))
HINT = {"shape": [2], "dtype": "float32", "null": None, "choices": 0, "description": ""}
LABELS = {**HINT, "shape": [], "dtype": "int64", "choices": 10}
PICTURE = {"name": "images", "shape": [1, 2, 3], "units": "in [-1, 1]"}
MEASURED = {"samples": 4, "rms_error": 0.01, "largest_error": 0.3, "relative_error": 0.1}
SEEDS = [5, 3]


def inputs_of(*shape: int | str, **conditions: Any) -> dict[str, Any]:
    return {"shape": list(shape), "conditions": conditions, "axes": {}}


def bundle(
    folder: Path, inputs: dict[str, Any] | None = None, plan: Plan = PLAN, files: Sequence[str] = (), **change: Any
) -> Bundle:
    """Its files but the plan's and the reference's say their names; ``change`` of the manifest."""
    inputs = inputs or inputs_of(2, 3)
    plan.save(folder / "plan.json")
    for name in ("sampler.onnx", "denoiser.onnx", *files):
        (folder / name).write_text(name)
    output = change.pop("output", {"name": "samples", "shape": inputs["shape"], "units": ""})
    told = facts(inputs, output) | {"nfe": plan.nfe, "plan_sha256": plan.sha256}
    told["model"] |= change.pop("model", {})
    write_manifest(folder / MANIFEST, told | change, describe_files(folder))
    return Bundle.open(folder)


def pictures(parent: Path, **change: Any) -> Bundle:
    """One that makes pictures of 2×3, in the folder "small"."""
    (parent / "small").mkdir()
    return bundle(parent / "small", **{"inputs": inputs_of(1, 2, 3), "output": PICTURE, **change})


def keys_asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The keys by which the bundles of ``python -m runtime`` have to be signed, from now on."""
    asked = list[Any]()

    def opened(folder: Path, key: Path | None) -> Bundle:
        asked.append(key)
        return Bundle.open(folder)

    monkeypatch.setattr(command, "Bundle", SimpleNamespace(open=opened))
    return asked


def reference(**change: Any) -> dict[str, Any]:
    """Of two evaluations of two samples."""
    made = {"seeds": np.array(SEEDS), "denoised": np.zeros((2, 2, 2, 3), np.float32)}
    return {**made, "made": np.zeros((2, 2, 3), np.float32), **change}
