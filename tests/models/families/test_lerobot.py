"""Policies of lerobot, against lerobot itself: its processors, its encoder and its sampling loop."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

import edge_sampler
from edge_sampler.calibration.own_steps import library_ddim
from edge_sampler.export.assemble import export_graphs
from edge_sampler.models import families
from edge_sampler.models.families.base import Options
from edge_sampler.models.families.lerobot import imported
from edge_sampler.models.loading import load
from edge_sampler.models.own import with_examples
from edge_sampler.models.precond import cosine_betas, discrete_sigmas
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.plan import Plan, sample
from tests.conftest import Parity, relative

pytest.importorskip("lerobot", reason="lerobot is not installed: pip install --no-deps -r .ci/lerobot.txt")
try:
    import torchvision  # noqa: F401
except RuntimeError:  # PyPI's is compiled for CUDA, and beside a PyTorch for CPUs it misses the names of its operators
    OPERATORS = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        signature = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        OPERATORS.define(signature)  # type: ignore[no-untyped-call]
finally:
    imported()  # here, since lerobot cannot be imported just so beside transformers 5

from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy, _make_noise_scheduler
from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors

STATE, ENVIRONMENT, CAMERAS = (
    "observation.state",
    "observation.environment_state",
    ("observation.images.top", "observation.images.wrist"),
)
SIGMAS = discrete_sigmas(cosine_betas(100))
SMALL: dict[str, Any] = {"device": "cpu", "down_dims": (8, 16), "n_groups": 4, "diffusion_step_embed_dim": 8}
CAMERA: dict[str, Any] = {"crop_shape": (28, 30), "spatial_softmax_num_keypoints": 4}


class Saved:
    """A small policy with random weights in ``folder``, written by lerobot, and how lerobot runs it."""

    def __init__(self, folder: Path, images: bool = False, **changes: Any) -> None:
        features = {STATE: PolicyFeature(FeatureType.STATE, (3,)), ENVIRONMENT: PolicyFeature(FeatureType.ENV, (2,))}
        if images:
            features |= {name: PolicyFeature(FeatureType.VISUAL, (3, 32, 36)) for name in CAMERAS}
        outputs = {"action": PolicyFeature(FeatureType.ACTION, (2,))}
        config = DiffusionConfig(input_features=features, output_features=outputs, **(SMALL | changes))
        torch.manual_seed(0)
        self.folder, self.policy, self.features = folder, DiffusionPolicy(config).eval(), features
        self.policy.save_pretrained(folder)
        self.processors = make_diffusion_pre_post_processors(config, self.statistics(features | outputs))
        for processor in self.processors:
            processor.save_pretrained(folder)

    def statistics(self, features: dict[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
        """The first number of a vector never changes in this data set: lerobot divides by a small number then."""
        rng, found = np.random.default_rng(0), {}
        for name, feature in features.items():
            shape = (3, 1, 1) if len(feature.shape) == 3 else feature.shape
            least, width = (torch.tensor(rng.uniform(0.5, 1, shape), dtype=torch.float32) for _ in range(2))
            width[0] = 0 if len(shape) == 1 and name != "action" else width[0]
            found[name] = {"min": least, "max": least + width, "q01": least + 0.1, "q99": least + 0.7 + width}
            found[name] |= {"mean": least + 0.3, "std": 0.1 + width}
        return found

    def observations(self, count: int) -> dict[str, Any]:
        rng, steps = np.random.default_rng(1), self.policy.config.n_obs_steps
        seen = {name: rng.uniform(size=(count, steps, *one.shape)) for name, one in self.features.items()}
        for name in (STATE, ENVIRONMENT):
            seen[name][..., 0] = self.statistics(self.features)[name]["min"][0]
        return {name: value.astype(np.float32) for name, value in seen.items()}

    def run(self, nfe: int, observed: dict[str, np.ndarray], noise: np.ndarray) -> torch.Tensor:
        """Actions of lerobot's own loop with its DDIM, whatever scheduler the policy was saved with."""
        diffusion, config = self.policy.diffusion, self.policy.config
        names = ("num_train_timesteps", "beta_schedule", "clip_sample", "clip_sample_range", "prediction_type")
        diffusion.noise_scheduler = _make_noise_scheduler("DDIM", **{name: getattr(config, name) for name in names})
        diffusion.num_inference_steps = nfe
        before, behind = self.processors
        batch = before({name: torch.from_numpy(value) for name, value in observed.items()})
        if config.image_features:
            batch["observation.images"] = torch.stack([batch[name] for name in config.image_features], dim=-4)
        with torch.inference_mode():
            return behind(diffusion.generate_actions(batch, noise=torch.from_numpy(noise)))


def ours(folder: Path, plan: Plan, observed: dict[str, np.ndarray], noise: np.ndarray) -> torch.Tensor:
    model = load(str(folder))
    told = model.encode(observed)
    with torch.inference_mode():
        x = sample(lambda x, sigma: model(x.float(), sigma, **told).double(), torch.from_numpy(noise).double(), plan)
    return model.decode(x.float())


def library_plan(saved: Saved, nfe: int) -> Plan:
    config = saved.policy.config
    return library_ddim(SIGMAS, nfe, config.clip_sample_range if config.clip_sample else 0.0)


@pytest.mark.parametrize("nfe", [4, 10])
@pytest.mark.parametrize(
    "changes",
    [
        {"noise_scheduler_type": "DDIM", "clip_sample": False},
        {"noise_scheduler_type": "DDIM", "clip_sample": True, "n_obs_steps": 3, "n_action_steps": 5},
        {"noise_scheduler_type": "DDPM", "clip_sample": True, "clip_sample_range": 0.6},
        {"noise_scheduler_type": "DDPM", "clip_sample": False, "prediction_type": "sample"},
    ],
    ids=["ddim", "ddim-clip", "ddpm-clip", "ddpm-sample"],
)
def test_actions_are_those_of_lerobot(
    changes: dict[str, Any], nfe: int, tmp_path: Path, request: pytest.FixtureRequest, parity: Parity
) -> None:
    """From the observation in the robot's units to the actions in its units, at lerobot's own steps."""
    saved = Saved(tmp_path, **changes)
    observed, noise = saved.observations(5), unit_noise(range(5), (16, 2))
    expected = saved.run(nfe, observed, noise)
    found = ours(tmp_path, library_plan(saved, nfe), observed, noise)
    assert found.shape == (5, saved.policy.config.n_action_steps, 2)
    parity("lerobot, DiffusionPolicy", f"actions, {request.node.callspec.id}", relative(found, expected), 1e-4)
    other = saved.run(nfe, {name: value[::-1].copy() for name, value in observed.items()}, noise)
    assert relative(other, expected) > 1e-2  # the observation counts


@pytest.mark.parametrize("separate", [False, True])
def test_pictures_are_encoded_as_lerobot_encodes_them(separate: bool, tmp_path: Path) -> None:
    saved = Saved(tmp_path, images=True, use_separate_rgb_encoder_per_camera=separate, **CAMERA)
    observed, noise = saved.observations(2), unit_noise(range(2), (16, 2))
    found = ours(tmp_path, library_plan(saved, 4), observed, noise)
    assert relative(found, saved.run(4, observed, noise)) < 1e-4


@pytest.mark.parametrize("mode", ["MEAN_STD", "QUANTILES", "IDENTITY"])
def test_every_way_to_normalise(mode: str, tmp_path: Path) -> None:
    modes = {kind: NormalizationMode(mode) for kind in ("STATE", "ENV", "ACTION")}
    saved = Saved(tmp_path, normalization_mapping=modes)
    observed, noise = saved.observations(3), unit_noise(range(3), (16, 2))
    found = ours(tmp_path, library_plan(saved, 4), observed, noise)
    assert relative(found, saved.run(4, observed, noise)) < 1e-4


def test_a_normaliser_of_some_observations(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    saved.processors[0].steps[3].normalize_observation_keys = {STATE}
    saved.processors[0].save_pretrained(tmp_path)
    observed, noise = saved.observations(3), unit_noise(range(3), (16, 2))
    found = ours(tmp_path, library_plan(saved, 4), observed, noise)
    assert relative(found, saved.run(4, observed, noise)) < 1e-4


def test_the_graph_makes_lerobots_actions(tmp_path: Path) -> None:
    """Encoder, DDIM with clip_sample at lerobot's steps and decoder in one graph, without PyTorch."""
    saved = Saved(tmp_path / "policy")
    model, observed = load(str(tmp_path / "policy")), saved.observations(6)
    assert model.spec.sigma_max == SIGMAS[90]  # and not the cosine's last, 2029
    with_examples(model, observed)
    graphs = export_graphs(model)
    for nfe in (4, 10):
        out = tmp_path / f"nfe{nfe}"
        edge_sampler.export_bundle(model, library_plan(saved, nfe), out, graphs=graphs)
        bundle = edge_sampler.Bundle.open(out)
        assert (bundle.output.name, list(bundle.inputs.conditions)) == ("actions", [STATE, ENVIRONMENT])
        expected = saved.run(nfe, observed, unit_noise(range(6), (16, 2)))
        with edge_sampler.load(out) as sampler:
            assert relative(sampler.sample(range(6), **observed), expected) < 1e-4
        kinds = [node.op_type for node in ir.load(out / "sampler.onnx").graph]
        assert not {"Sin", "Cos"} & set(kinds)  # the step's embedding is a constant of each evaluation
        assert sum(kind in ("Gemm", "MatMul") for kind in kinds) == 8  # the features' part in each block, once


def test_statistics_among_the_weights_as_before_version_0_4(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    weights, observed, noise = (
        load_file(tmp_path / "model.safetensors"),
        saved.observations(2),
        unit_noise([0, 1], (16, 2)),
    )
    for name, values in saved.statistics(saved.features | saved.policy.config.output_features).items():
        for part in ("unnormalize_outputs",) if name == "action" else ("normalize_inputs",):
            for key in ("min", "max"):
                weights[f"{part}.buffer_{name.replace('.', '_')}.{key}"] = values[key]
    save_file(weights, tmp_path / "model.safetensors")
    for file in tmp_path.glob("policy_*"):
        file.unlink()
    found = ours(tmp_path, library_plan(saved, 4), observed, noise)
    assert relative(found, saved.run(4, observed, noise)) < 1e-4


def edit(file: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        record = json.loads((folder / file).read_text())
        change(record)
        (folder / file).write_text(json.dumps(record))

    return apply


def without(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def with_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, folder / "model.safetensors")


PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
STATISTICS = "policy_preprocessor_step_3_normalizer_processor.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit("config.json", lambda c: c.update(type="smolvla")), "policy 'smolvla'; supported: 'diffusion'"),
        (edit("config.json", lambda c: c.update(colour=1)), "damaged, or of another version .*colour"),
        (edit("config.json", lambda c: c.update(horizon="x")), "damaged, or of another version .*horizon"),
        (
            edit("config.json", lambda c: c.update(beta_schedule="sigmoid")),
            "beta_schedule is 'sigmoid'; supported: linear",
        ),
        (edit("config.json", lambda c: c.update(down_dims=[8, 32])), r"model\.safetensors does not fit config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not a readable JSON object"),
        (without("config.json"), "config.json: not a readable JSON object"),
        (without("model.safetensors"), "no weights file at .*model.safetensors"),
        (with_nan, "holds NaN or infinity in "),
        (without(POST), f"no {POST}, which holds the statistics"),
        (without(STATISTICS), "no weights file at .*normalizer_processor"),
        (lambda folder: save_file({}, folder / STATISTICS), r"no observation\.state\.min: save its processors"),
        (
            edit(PRE, lambda c: c["steps"][0]["config"].update(rename_map={"a": "b"})),
            "rename_observations_processor ch",
        ),
        (edit(PRE, lambda c: c["steps"].insert(0, {"class": "os.system"})), "the step os.system changes data"),
        (edit(PRE, lambda c: c["steps"].pop()), "has no step normalizer_processor"),
        (edit(PRE, lambda c: c.update(steps=[1])), "not a processor as lerobot writes it"),
        (edit(PRE, lambda c: c["steps"][3]["config"]["norm_map"].update(STATE="RANK")), "normalised by 'RANK'; supp"),
    ],
)
def test_what_is_refused(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    Saved(tmp_path)
    damage(tmp_path)
    assert families.find(tmp_path).name == "robot policies of lerobot"  # type: ignore[union-attr]
    with pytest.raises(UserError, match=message):
        load(str(tmp_path))


def test_options_of_images_and_pipelines_are_none_of_it(tmp_path: Path) -> None:
    Saved(tmp_path / "policy")
    with pytest.raises(UserError, match="--size does not apply"):
        load(str(tmp_path / "policy"), options=Options(size=(8, 8)))
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    found = families.find(tmp_path)
    assert found is None or "lerobot" not in found.name
