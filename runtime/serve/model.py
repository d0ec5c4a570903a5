"""One bundle as it is served: what it takes and makes, and its session, which lives in a thread of its own."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np

from edge_sampler.runtime.backends import choose
from edge_sampler.runtime.backends.base import Session
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.condition import Condition, sizes_of
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.noise import SEEDS, noise_of
from edge_sampler.runtime.sampler import hidden_floats, made_of, usual_batch
from edge_sampler.runtime.serve.batches import Batches, Row, Start
from edge_sampler.runtime.serve.metrics import Metrics
from edge_sampler.runtime.serve.protocol import BYTES, NAMES, Asked, Tensor

DEFAULT_BATCH = 16  # where no engine says how many images go in one run


class RunError(Exception):
    """A run failed, or made NaN or infinity."""


class Model:
    """A bundle that is loaded, warmed up, and asked. Files are read while it loads, and never after."""

    def __init__(self, bundle: Bundle, name: str, room: int, patience: float) -> None:
        self.bundle, self.name, self.metrics, self.ready = bundle, name, Metrics(), False
        self.description = ""
        self._room, self._patience = room, patience
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._session: Session

    async def start(self, backend: str, precision: str | None, batch: int | None) -> asyncio.Task[None]:
        """Loads, and makes the usual batch and one sample. Returns the task that answers from then on.

        Raises UserError for a bundle that is damaged or cannot run here, and a batch beyond the engine's.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._load, backend, precision)
        largest = self._session.largest_batch
        if batch is not None and largest is not None and batch > largest:
            raise UserError(f"--batch is {batch}, and the engine of {self.name} takes {largest} at most")
        batch = batch or largest or min(DEFAULT_BATCH, usual_batch(self.bundle.inputs.sized()))
        self.batches = Batches(self._run, self._thread, batch, self._room, self._patience, self.metrics)
        for count in dict.fromkeys((batch, 1)):
            try:
                await loop.run_in_executor(self._thread, self._run, [self._blank()] * count)
            except RunError as error:
                raise UserError(f"{self.name} cannot make {count} at once: {error}") from error
        self.ready = True
        return asyncio.create_task(self.batches.work())

    def _load(self, backend: str, precision: str | None) -> None:
        bundle = self.bundle
        texts = {name: "" for name, condition in bundle.inputs.conditions.items() if condition.text}
        if find_spec("tokenizers"):  # without it, text is refused, and token ids are taken
            bundle.tokenized(texts)
        chosen = choose(bundle, backend, precision)
        self._session = chosen.open(bundle, precision, hidden_floats(bundle, chosen))
        self.description = self._session.description

    async def close(self) -> None:
        if hasattr(self, "_session"):
            await asyncio.get_running_loop().run_in_executor(self._thread, self._session.__exit__, None, None, None)
        self._thread.shutdown()

    def _blank(self) -> Row:
        inputs = self.bundle.inputs
        values = {name: np.zeros(inputs.sized(one.shape), one.dtype) for name, one in inputs.conditions.items()}
        return Row(0, inputs.sized(), values)

    def _noise(self, row: Row) -> np.ndarray:
        if isinstance(row.start, int):
            return noise_of([row.start], row.shape, self.bundle.temperature)[0]
        return row.start

    def _run(self, rows: Sequence[Row]) -> list[np.ndarray | Exception]:
        starts = [self._noise(row) for row in rows]
        values = {name: np.stack([row.conditions[name] for row in rows]) for name in rows[0].conditions}
        try:
            feed = {"noise": np.stack(starts), **values}
            made = self._session.run(feed)
            images = made_of(self.bundle, feed, made)
        except UserError as error:  # as the session calls it; here it is not the client's fault, as far as is known
            raise RunError(str(error)) from error
        floats = made.get(self.bundle.inner_output, images)
        return [
            image if np.isfinite(seen).all() else RunError(f"the model made NaN or infinity of {row.told}")
            for image, seen, row in zip(images, floats, rows, strict=True)
        ]

    def rows_of(self, asked: Asked) -> list[Row]:
        """What an inference request asks for, checked. Raises UserError."""
        inputs, given = dict(asked.inputs), dict[str, Any]()
        starts: list[Start]
        if ("seeds" in inputs) == ("noise" in inputs):
            raise UserError("give seeds (INT64 [n]) or noise (FP32 [n, …]), one of the two")
        if "seeds" in inputs:
            starts = [int(seed) for seed in _taken("seeds", inputs.pop("seeds"), "INT64", ())]
        else:
            shape = self.bundle.inputs.shape
            noise = _taken("noise", inputs.pop("noise"), "FP32", shape)
            if not np.isfinite(noise).all():
                raise UserError("noise holds NaN or infinity")
            starts, given = list(noise), sizes_of(shape, noise.shape[1:])
        for name, tensor in inputs.items():
            condition = self.bundle.inputs.conditions.get(name)
            if condition is None:
                raise UserError(f"unknown input {name!r:.60}; this model takes {', '.join(self.takes())}")
            given[name] = self._condition(name, condition, tensor, len(starts))
        for name, value in asked.parameters.items():
            if name not in self.bundle.inputs.axes:
                known = ", ".join(("binary_data_output", *self.bundle.inputs.axes))
                raise UserError(f"unknown parameter {name!r:.60}; this model takes {known}")
            if given.setdefault(name, value) != value:
                raise UserError(f"the parameter {name} is {value!r:.60}, and noise has {given[name]}")
        return self._rows(starts, given)

    def _condition(self, name: str, condition: Condition, tensor: Tensor, count: int) -> Any:
        if condition.text and tensor.datatype == BYTES:
            return _taken(name, tensor, BYTES, (), count).tolist()
        return _taken(name, tensor, NAMES[np.dtype(condition.dtype).name], condition.shape, count)

    def rows_of_query(self, items: Sequence[tuple[str, str]]) -> list[Row]:
        """One row, of a URL's query: ``seed``, and conditions as text or numbers such as 0,0.5,1. Raises UserError."""
        given: dict[str, Any] = {}
        for name, text in items:
            if name in given:
                raise UserError(f"{name!r:.60} is given twice")
            condition = self.bundle.inputs.conditions.get(name)
            given[name] = text if name == "seed" or (condition and condition.text) else _numbers(name, text)
        seed = given.pop("seed", "")
        if not re.fullmatch(r"-?\d{1,20}", seed, re.ASCII):
            raise UserError(f"seed is {f'{seed!r:.60}' if seed else 'missing'}; give a whole number: ?seed=7")
        return self._rows([int(seed)], given)

    def _rows(self, starts: Sequence[Start], given: Mapping[str, Any]) -> list[Row]:
        if not 1 <= len(starts) <= self.batches.room:
            raise UserError(f"{len(starts)} images are asked for; one request takes 1 to {self.batches.room}")
        for seed in starts:
            if isinstance(seed, int) and not 0 <= seed < SEEDS:
                raise UserError(f"seed {seed} is out of range; seeds are 0 to {SEEDS - 1}")
        values, sizes = self.bundle.inputs.check(self.bundle.tokenized(given), len(starts))
        shape = self.bundle.inputs.sized(sizes=sizes)
        return [
            Row(start, shape, {name: value[place] for name, value in values.items()})
            for place, start in enumerate(starts)
        ]

    def takes(self) -> list[str]:
        return ["seeds or noise", *self.bundle.inputs.conditions]

    def metadata(self) -> dict[str, Any]:
        """As the protocol has it, and of each input in ``parameters`` what a person is to know."""
        bundle = self.bundle
        told: list[dict[str, Any]] = [{"name": "seeds", "datatype": "INT64", "shape": [-1]}]
        for name, one in bundle.inputs.conditions.items():
            facts: dict[str, Any] = {
                "description": one.description,
                "choices": one.choices or None,
                "optional": bool(one.text and not one.text.must_be_given) or None,
                "default": one.text.default if one.text else None,
            }
            told.append(
                {
                    "name": name,
                    "datatype": BYTES if one.text else NAMES[np.dtype(one.dtype).name],
                    "shape": [-1] if one.text else _open(one.shape),
                    "parameters": {key: value for key, value in facts.items() if value is not None},
                }
            )
        shape = bundle.output.shape
        shape = shape if bundle.dtype == "float32" else (*shape[1:], shape[0])
        made = {"name": bundle.output.name, "datatype": NAMES[bundle.dtype], "shape": _open(shape)}
        return {
            "name": self.name,
            "versions": ["1"],
            "platform": "edge-sampler",
            "inputs": told,
            "outputs": [made],
            "parameters": {
                "image": bundle.output.is_image,
                "axes": {name: axis.record() for name, axis in bundle.inputs.axes.items()},
                "random_weights": bundle.random_weights,
                "session": self.description,
            },
        }


def _open(shape: Sequence[int | str]) -> list[int]:
    """A shape as the protocol has it: -1 is any size, as that of the batch is."""
    return [-1, *(-1 if isinstance(size, str) else size for size in shape)]


def _taken(
    name: str, tensor: Tensor, datatype: str, shape: Sequence[int | str], count: int | None = None
) -> np.ndarray:
    """The array, [n, *shape]. Raises UserError for another datatype or shape, and one that is not of ``count``."""
    wanted = f"{datatype} [{', '.join(map(str, ('n' if count is None else count, *shape)))}]"
    found = tensor.array.shape
    fits = len(found) == 1 + len(shape) and (count is None or found[0] == count)
    if not fits or any(axis != size for size, axis in zip(found[1:], shape, strict=True) if isinstance(axis, int)):
        raise UserError(f"{name} has shape {list(found)}; it must be {wanted}")
    if tensor.datatype != datatype:
        raise UserError(f"{name} is {tensor.datatype}; it must be {wanted}")
    return tensor.array


def _numbers(name: str, text: str) -> Any:
    """A number, true or false, or several with commas between them. Raises UserError for anything else."""
    try:
        found = [json.loads(part) for part in text.split(",")]
    except (ValueError, RecursionError):
        found = [None]
    if not all(isinstance(one, bool | int | float) for one in found):
        raise UserError(f"{name!r:.60} is {text!r:.60}; it must be a number, or several such as 0,0.5,1")
    return found if len(found) > 1 else found[0]
