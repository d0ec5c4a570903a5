"""PyTorch's results for a few seeds, with which every path is compared."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.images import to_uint8
from edge_sampler.runtime.inputs import Output
from edge_sampler.runtime.noise import noise_of
from edge_sampler.runtime.plan import Plan, sample
from edge_sampler.runtime.recorded import EXAMPLE, INPUT, in_turn

REFERENCE_SEEDS = (0, 1, 2, 3)
MORE, MORE_BYTES = 60, 2**20  # examples of conditions, and what they may take


def write_reference(model: Denoiser, plan: Plan, folder: Path, dtype: str, stages: list[str], output: Output) -> None:
    """PyTorch's own results for a few seeds: float64 states, the network in float32."""
    seeds = list(REFERENCE_SEEDS)
    raw, sizes = model.spec.called_with.check(reference_conditions(model, seeds), len(seeds))
    conditions = model.encode(raw)
    network = Network(model, conditions)
    denoised: list[np.ndarray] = []

    def record(x: torch.Tensor, sigma: float) -> torch.Tensor:
        result = network(x, sigma)
        denoised.append(result.float().cpu().numpy())
        return result

    noise = torch.from_numpy(noise_of(seeds, model.spec.inputs.sized(sizes=sizes), plan.temperature))
    last = sample(record, noise.double().to(model.device), plan, network.labels).float()
    made = (model.decode(last) if "decoder" in stages else last).cpu().numpy()
    expected = (len(seeds), *model.spec.inputs.sized(output.shape, sizes))
    if made.shape != expected:
        raise UserError(f"{output.name} are {list(made.shape)}, and should be {list(expected)}")
    given = raw if "encoder" in stages else {name: value.cpu().numpy() for name, value in conditions.items()}
    told = {f"{INPUT}{name}": value for name, value in given.items()}
    if raw and (model.encoder is None or "encoder" in stages):
        told |= {f"{EXAMPLE}{name}": rows for name, rows in more_examples(model, given).items()}
    arrays = {"seeds": np.array(seeds), **told, "denoised": np.stack(denoised), "made": made}
    np.savez(folder / "reference.npz", **arrays)  # type: ignore[arg-type]  # its stub takes them for options
    _save_polygraphy(to_uint8(made) if dtype == "uint8" else made, output.name, folder / "reference.json")


def reference_conditions(model: Denoiser, seeds: list[int]) -> dict[str, np.ndarray]:
    """As a caller gives them: examples by seed, but choices in turn."""
    drawn = model.draw_raw(seeds)
    for name, condition in model.spec.called_with.conditions.items():
        if condition.choices:
            drawn[name] = in_turn(model.spec.called_with, name, seeds)
    return drawn


def more_examples(model: Denoiser, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of conditions, as a caller gives them, beside those ``given``: a precision is measured on them.

    They are as many as ``MORE`` and ``MORE_BYTES`` allow.
    """
    called = model.spec.called_with
    rows = int(min(MORE, MORE_BYTES // max(1, sum(value[0].nbytes for value in given.values()))))
    if rows < 1 or all(condition.choices for condition in called.conditions.values()):
        return {}
    seeds = range(len(REFERENCE_SEEDS), len(REFERENCE_SEEDS) + rows)
    drawn, _ = called.check(model.draw_raw(seeds), rows)
    alike = {name: value for name, value in drawn.items() if value.shape[1:] == given[name].shape[1:]}
    return {name: value for name, value in alike.items() if not called.conditions[name].choices}


def _save_polygraphy(made: np.ndarray, name: str, path: Path) -> None:
    """As ``polygraphy run --load-outputs`` reads it."""
    from polygraphy.comparator import IterationResult, RunResults
    from polygraphy.logger import G_LOGGER

    results = RunResults()
    results.append(("pytorch", [IterationResult(outputs={name: made}, runner_name="pytorch")]))
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        results.save(str(path))
