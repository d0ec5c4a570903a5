"""A bundle: the folder that carries one sampler from the exporter to a device. Arrays, graphs and JSON; no pickles.

manifest.json   what the bundle is, and the SHA-256 and size of every other file
plan.json       the sampler's table (runtime.plan)
sampler.onnx    noise [batch, *shape] float32, unit normal, and each condition [batch, …] → what the sampler makes
denoiser.onnx   x [batch, *shape], sigma [], conditions → denoised: the baseline path
encoder.onnx, decoder.onnx   the stages before and behind the loop, where the model has them
weights.data    the weights of all these graphs, where there are more than 2 GB of them
tokenizer-….json   what makes token ids of text, where a condition is of text
reference.npz   what PyTorch computed for a few seeds: seeds, each condition as input_NAME, denoised [nfe, …], made
reference.json  the last of those in Polygraphy's format
samples.png     what it makes
report.html     all of this for people; look at it first

and, where they were asked for,

sampler-fp16.onnx, sampler-int8.onnx, …   the same graph in mixed precision, or in eight bits
plan-int8.json, …                         the plan of such a graph, where it was refitted and is not plan.json's
engines/                                  TensorRT engines, and the log of each build
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edge_sampler.runtime.engine_record import Engine
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Inputs, Output
from edge_sampler.runtime.json_file import read_json
from edge_sampler.runtime.plan import Plan
from edge_sampler.runtime.text import tokenized

SCHEMA = 2
REFERENCE_INPUT = "input_"  # begins the names of conditions in reference.npz
FLOAT_IMAGES = "images_float32"  # what sampler.onnx calls its float images where its output is uint8
MANIFEST = "manifest.json"
WEIGHTS = "weights.data"
FP32_TOLERANCE = 1e-4
PIECE = 2**20  # bytes of a file that are hashed at a time


def weights_beside(graph: Path) -> tuple[Path, Path]:
    """Where a graph's weights are, if they are not in it: in a file of its own, or in one with those of the others."""
    return graph.with_name(f"{graph.name}.data"), graph.with_name(WEIGHTS)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file below ``folder``, the manifest left out."""
    return {
        path.relative_to(folder).as_posix(): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def write_manifest(path: Path, facts: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Closes a bundle: ``facts`` are what it is, ``files`` of ``describe_files``."""
    path.write_text(json.dumps({"schema": SCHEMA, **facts, "files": files}, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Files are verified when they are asked for, before anything reads them."""

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "Bundle":
        """Raises UserError when there is no bundle, its manifest is damaged, or of another schema."""
        path = Path(folder) / MANIFEST
        try:
            manifest = read_json(path)
        except OSError as error:
            raise UserError(f"no bundle at {folder}: cannot read {MANIFEST} ({error.strerror})") from error
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from error
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            found = manifest.get("schema") if isinstance(manifest, dict) else None
            raise UserError(f"{path} has schema {found!r}; this version reads {SCHEMA}: {again(manifest)}")
        try:
            bundle = cls(Path(folder), manifest)
            _ = manifest["files"]["sampler.onnx"]["sha256"], bundle.inputs, bundle.output, bundle.dtype, bundle.engines
            _ = bundle.random_weights, bundle.loop_inputs
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged: {type(error).__name__}: {error}") from error
        return bundle

    def file(self, name: str) -> Path:
        """The path of one of the bundle's files, its size and SHA-256 verified. Raises UserError when they differ."""
        path, recorded = self._listed(name)
        if path.stat().st_size != recorded["bytes"] or file_sha256(path) != recorded["sha256"]:
            raise _other_file(path)
        return path

    def read(self, name: str) -> bytes:
        """As ``file``, for its content: these very bytes are verified, whatever happens to the file meanwhile."""
        path, recorded = self._listed(name)
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != recorded["sha256"]:
            raise _other_file(path)
        return content

    def _listed(self, name: str) -> tuple[Path, Mapping[str, Any]]:
        path, recorded = self.folder / name, self.manifest["files"].get(name)
        if recorded is None:
            raise UserError(f"{self.folder} holds no {name}")
        if not path.is_file():
            raise UserError(f"{path} is missing, though the manifest lists it: copy the whole bundle again")
        return path, recorded

    def graph(self, name: str) -> Path:
        """As ``file``, for an ONNX graph: its external data, where it has some, is verified as well."""
        beside = [file.name for file in weights_beside(Path(name)) if file.name in self.manifest["files"]]
        for data in beside[:1]:
            self.file(data)
        return self.file(name)

    def graph_name(self, precision: str | None = None) -> str:
        """The file of the sampler's graph in that precision; None is fp32."""
        return "sampler.onnx" if precision in (None, "fp32") else f"sampler-{precision}.onnx"

    def tolerance(self, precision: str = "fp32") -> float:
        """How far images may be off, relative to the largest, from those of the same plan in fp32: the precision's
        error when it was measured, three times.

        Three, since other noises meet other extremes.
        """
        if precision == "fp32":
            return FP32_TOLERANCE
        recorded = self.manifest["precisions"][precision]
        return 3 * float(recorded.get("of_same_plan", recorded)["relative_error"])

    @cached_property
    def engines(self) -> tuple[Engine, ...]:
        return tuple(Engine.read(recorded) for recorded in self.manifest.get("engines", []))

    @cached_property
    def plan(self) -> Plan:
        return Plan.load(self.file("plan.json"))

    def plan_name(self, precision: str) -> str:
        """The file of a plan that was refitted for that precision."""
        return f"plan-{precision}.json"

    def plan_of(self, precision: str | None) -> Plan:
        """What the sampler's graph in that precision computes: plan.json, or where that was refitted, its own.

        Raises UserError where the manifest tells of another plan than its file holds.
        """
        recorded = self.manifest.get("precisions", {}).get(precision or "fp32", {})
        if "plan_sha256" not in recorded:
            return self.plan
        name = self.plan_name(str(precision))
        plan = Plan.load(self.file(name))
        if plan.sha256 != recorded["plan_sha256"]:
            raise UserError(f"{self.folder}/{name} is not the plan of {self.graph_name(precision)}: export it again")
        return plan

    @cached_property
    def inputs(self) -> Inputs:
        """What sampler.onnx takes: noise of ``inputs.shape``, and conditions."""
        return Inputs.read(self.manifest["inputs"])

    @cached_property
    def loop_inputs(self) -> Inputs:
        """What denoiser.onnx takes: those of the loop, behind the encoder where there is one."""
        return Inputs.read(self.manifest["model"]["inputs"])

    @cached_property
    def output(self) -> Output:
        """What sampler.onnx makes."""
        recorded = self.manifest["output"]
        return Output(str(recorded["name"]), tuple(recorded["shape"]), str(recorded["units"]))

    @property
    def dtype(self) -> str:
        """``float32``, shaped as ``output`` says, or ``uint8`` [batch, H, W, C]."""
        return str(self.manifest["dtype"])

    @property
    def inner_output(self) -> str:
        """The name of the graph's last float value: of its output, or of what is rounded to uint8."""
        return FLOAT_IMAGES if self.dtype == "uint8" else self.output.name

    def reference(self) -> dict[str, np.ndarray]:
        """What PyTorch computed, by name. Raises UserError when the file is damaged."""
        try:
            with np.load(self.file("reference.npz"), allow_pickle=False) as stored:
                found = {name: stored[name] for name in stored.files}
            _ = found["seeds"].tolist(), found["denoised"].shape, found["made"].shape
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.folder}/reference.npz is damaged: {error}: export the bundle again") from error
        return found

    def examples(self, count: int) -> dict[str, np.ndarray]:
        """Conditions to try the sampler with: classes in turn, of others those recorded, in turn."""
        examples, recorded = dict[str, np.ndarray](), dict[str, np.ndarray]()
        for name, condition in self.inputs.conditions.items():
            if condition.choices:
                examples[name] = np.arange(count, dtype=np.int64) % condition.choices
                continue
            recorded = recorded or self.reference()
            if f"{REFERENCE_INPUT}{name}" not in recorded:
                raise UserError(f"{self.folder}/reference.npz holds no {name}: export the bundle again")
            rows = recorded[f"{REFERENCE_INPUT}{name}"]
            examples[name] = rows[np.arange(count) % len(rows)]
        return examples

    @cached_property
    def _tokenizer(self) -> Callable[[str], str]:
        return cache(lambda file: self.read(file).decode())

    def tokenized(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Conditions as they are given, token ids in place of text. Raises UserError as ``runtime.text`` does."""
        return tokenized(self.inputs.conditions, given, self._tokenizer)

    @property
    def random_weights(self) -> bool:
        return bool(self.manifest["model"]["random_weights"])


def again(manifest: Any) -> str:
    """What to do about a bundle of another schema: of a later one, or the command that makes it anew."""
    found = manifest if isinstance(manifest, dict) else {}
    if isinstance(found.get("schema"), int) and found["schema"] > SCHEMA:
        return "a later version of edge-sampler made it, so install one"
    recorded = found.get("model")
    model = recorded.get("name", "MODEL") if isinstance(recorded, dict) else "MODEL"
    return f"export it again, with python -m export --model {model} --nfe {found.get('nfe', 'N')}"


def _other_file(path: Path) -> UserError:
    return UserError(f"{path} is not the file the manifest describes (its SHA-256 differs): copy or export again")
