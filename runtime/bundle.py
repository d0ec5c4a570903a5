"""A bundle: the folder that carries one sampler from the exporter to a device. Arrays, graphs and JSON; no pickles.

manifest.json   what the bundle is, and the SHA-256 and size of every other file
manifest.json.minisig   minisign's signature of the manifest, if the bundle is signed
plan.json       the sampler's table (runtime.plan)
sampler.onnx    noise [batch, *shape] float32, unit normal, and each condition [batch, …] → samples
denoiser.onnx   x [batch, *shape], sigma [], conditions → denoised: the baseline path
encoder.onnx, decoder.onnx   the stages before and after the loop, if the model has them
weights.data    the weights of all these graphs, if they have more than 2 GB
tokenizer-….json   makes token ids from text, for a condition that is a text
reference.npz   PyTorch's results for a few seeds: seeds, each condition as input_NAME, denoised [nfe, …], made;
                and more examples of conditions, as example_NAME
reference.json  ``made`` in Polygraphy's format
samples.png     some samples
report.html     a report on all of this for people; look at it first

and, if the user asked for them,

sampler-fp16.onnx, sampler-int8.onnx, …   the same graph in mixed precision, or in eight bits
plan-int8.json, …                         the plan of such a graph, if a refit gave it its own
engines/                                  TensorRT engines, and the log of each build
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edge_sampler.runtime.engine_record import Engine
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import FLOAT_IMAGES, Inputs, Output
from edge_sampler.runtime.json_file import ODD
from edge_sampler.runtime.manifest import MANIFEST, read_manifest
from edge_sampler.runtime.output import restore
from edge_sampler.runtime.plan import Plan, mean_shapes
from edge_sampler.runtime.recorded import draw_examples, read_reference
from edge_sampler.runtime.text import tokenized
from edge_sampler.runtime.verified import Verified

FP32_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Bundle(Verified):
    """An open bundle.

    Args:
        folder: where it is.
        manifest: the content of manifest.json, checked.

    Examples:
        >>> bundle = edge_sampler.Bundle.open("shrink")
        >>> bundle.plan.nfe, bundle.plan_of("fp32") == bundle.plan, bundle.plan_name("int8"), bundle.precisions
        (3, True, 'plan-int8.json', ['fp32'])
        >>> bundle.inputs.shape, bundle.loop_inputs.shape, bundle.output.name, bundle.inner_output, bundle.dtype
        ((1, 8, 8), (1, 8, 8), 'images', 'images', 'float32')
        >>> bundle.temperature, bundle.makes
        (1.0, 'images: float32 [1, 8, 8], about [-1, 1]')
        >>> bundle.graph_name("fp16"), bundle.tolerance(), bundle.rms_tolerance(), bundle.random_weights
        ('sampler-fp16.onnx', 0.0001, inf, False)
        >>> bundle.reference()["made"].shape, bundle.examples(2), bundle.tokenized({}), bundle.engines
        ((4, 1, 8, 8), {}, {}, ())
    """

    @classmethod
    def open(cls, folder: str | Path, verify_key: str | Path | None = None) -> "Bundle":
        """Opens a folder.

        Args:
            folder: of the bundle.
            verify_key: the file of minisign's public key that must have signed it; None: no signature is asked for.

        Returns:
            The bundle. Its manifest is checked; its other files are when they are asked for.

        Raises:
            UserError: when there is no bundle, that key has not signed it, its manifest is damaged, or of another
                schema.
        """
        with suppress(OSError):  # which reading tells
            restore(Path(folder))
        bundle = cls(Path(folder), read_manifest(Path(folder), None if verify_key is None else Path(verify_key)))
        try:
            bundle._check()
        except (UserError, *ODD) as error:
            raise UserError(f"{bundle.folder / MANIFEST} is damaged: {error}") from error
        return bundle

    def _check(self) -> None:
        """Raises UserError, or one of ``ODD``, where the manifest contradicts itself."""
        told, conditions = self.manifest, self.inputs.conditions
        if not self.inputs.shape:
            raise UserError("a sample's shape is empty")
        if not self.temperature > 0:
            raise UserError(f"its temperature is {self.temperature}")
        self.inputs.check_output(self.output)
        if self.dtype == "uint8" and not self.output.is_image:
            raise UserError(f"{self.output.name} {list(self.output.shape)} are no pictures, and {self.dtype}")
        needed = [f"{stage}.onnx" for stage in told["stages"]]
        needed += [self.graph_name(precision) for precision in told.get("precisions", {})]
        needed += [engine.file for engine in self.engines]
        needed += [condition.text.file for condition in conditions.values() if condition.text]
        if lacking := [name for name in needed if name not in told["files"]]:
            raise UserError(f"it names {lacking[0]}, which is not among its files")
        if "encoder" in told["stages"] and not set(told["model"]["raw"]) <= set(conditions):
            raise UserError(f"its encoder takes {', '.join(told['model']['raw'])}, which the sampler is not given")

    def graph_name(self, precision: str | None = None) -> str:
        """The file of the sampler's graph in a precision.

        Args:
            precision: its name; None: fp32.

        Returns:
            The file's name, whether the bundle has it or not.
        """
        return "sampler.onnx" if precision in (None, "fp32") else f"sampler-{precision}.onnx"

    def tolerance(self, precision: str = "fp32", inside: bool = False) -> float:
        """How far images may be off from the same plan's in fp32: three times the error that was measured.

        Args:
            precision: one that the bundle has.
            inside: whether evaluations' answers are meant, not what the sampler makes.

        Returns:
            The largest difference over the largest magnitude.
        """
        if precision == "fp32":
            return FP32_TOLERANCE
        told = self._measured(precision)
        return max(FP32_TOLERANCE, 3 * told["relative_error"], 3 * told.get("relative_error_inside", 0) * inside)

    def rms_tolerance(self, precision: str = "fp32") -> float:
        """The same of the median sample, RMS. One sample whose path parts from the exact one does not move a median.

        Args:
            precision: one that the bundle has.

        Returns:
            In the samples' units; infinity for fp32, and where nothing was off or nothing tells.
        """
        return np.inf if precision == "fp32" else 3 * float(self._measured(precision).get("rms_error", 0)) or np.inf

    def _measured(self, precision: str) -> dict[str, Any]:
        return (told := self.manifest["precisions"][precision]).get("of_same_plan", told)

    @cached_property
    def engines(self) -> tuple[Engine, ...]:
        """Those that were built, in the order of the manifest."""
        return tuple(Engine.read(recorded) for recorded in self.manifest.get("engines", []))

    @property
    def precisions(self) -> list[str]:
        """Those of its graphs and its engines."""
        told = ("fp32", *self.manifest.get("precisions", {}), *(engine.precision for engine in self.engines))
        return list(dict.fromkeys(told))

    @cached_property
    def plan(self) -> Plan:
        """What sampler.onnx computes. Raises UserError as ``plan_of`` does."""
        return self._plan("plan.json", self.manifest["plan_sha256"], None)

    def plan_name(self, precision: str) -> str:
        """The file of a plan that was refitted for a precision.

        Args:
            precision: its name.

        Returns:
            The file's name, whether the bundle has it or not.
        """
        return f"plan-{precision}.json"

    def plan_of(self, precision: str | None) -> Plan:
        """What the sampler's graph in a precision computes: plan.json, or where that was refitted, its own.

        Args:
            precision: its name; None: fp32.

        Returns:
            The plan.

        Raises:
            UserError: where the manifest tells of another plan than its file holds.
        """
        recorded = self.manifest.get("precisions", {}).get(precision or "fp32", {})
        if "plan_sha256" not in recorded:
            return self.plan
        return self._plan(self.plan_name(str(precision)), recorded["plan_sha256"], precision)

    def _plan(self, name: str, sha256: str, precision: str | None) -> Plan:
        plan = Plan.load(self.file(name))
        if (plan.sha256, plan.nfe) != (sha256, self.manifest["nfe"]):
            raise UserError(f"{self.folder}/{name} is not the plan of {self.graph_name(precision)}: export it again")
        if plan.afs and np.shape(plan.mean) not in mean_shapes(self.loop_inputs):
            raise UserError(
                f"{self.folder}/{name} is damaged: its mean is {list(np.shape(plan.mean))}, of data "
                f"{list(self.loop_inputs.shape)}"
            )
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
    def temperature(self) -> float:
        """What scales the noise that the plan was fitted to, usually 1."""
        return float(self.manifest.get("temperature", 1.0))

    @property
    def dtype(self) -> str:
        """``float32``, shaped as ``output`` says, or ``uint8`` [batch, H, W, C]."""
        return str(self.manifest["dtype"])

    @property
    def makes(self) -> str:
        """What sampler.onnx makes of a seed, for people."""
        shape, units = self.output.shape, self.output.units
        if self.dtype == "uint8":
            shape, units = (*shape[1:], shape[0]), "0 to 255"
        return f"{self.output.name}: {self.dtype} {list(shape)}, {units}"

    @property
    def inner_output(self) -> str:
        """The name of the graph's last float value: of its output, or of what is rounded to uint8."""
        return FLOAT_IMAGES if self.dtype == "uint8" else self.output.name

    def reference(self) -> dict[str, np.ndarray]:
        """What PyTorch computed at the export.

        Returns:
            Arrays by name, which are ``seeds`` int64 [n], each condition as ``input_NAME`` [n, …], ``denoised`` float32
            [nfe, n, …] and ``made`` float32 [n, …]; and more examples of conditions, ``example_NAME`` [rows, …].

        Raises:
            UserError: when the file is damaged or holds anything else.
        """
        return read_reference(self)

    def examples(self, count: int, held: bool | None = None) -> dict[str, np.ndarray]:
        """Conditions to try the sampler with: classes in turn, of others those recorded, in turn.

        Args:
            count: of samples.
            held: which of those recorded: three quarters to measure on (False), the others (True), or all (None).

        Returns:
            By name, [count, …].

        Raises:
            UserError: as ``reference``.
        """
        return draw_examples(self, count, held)

    @cached_property
    def _tokenizer(self) -> Callable[[str], str]:
        return cache(lambda file: self.read(file).decode())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.manifest)  # to another process goes nothing that it has read

    def tokenized(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Conditions as they are given, token ids in place of text.

        Args:
            given: by name; of a text, one or a list of them.

        Returns:
            The same by name, of a text int64 [length] or [n, length]; texts that are not given are their defaults.

        Raises:
            UserError: for a text of too many tokens, and where the library `tokenizers` is not installed.
        """
        return tokenized(self.inputs.conditions, given, self._tokenizer)

    @property
    def random_weights(self) -> bool:
        """Whether what it makes means nothing."""
        return bool(self.manifest["model"]["random_weights"])
