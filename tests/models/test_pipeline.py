"""Pipelines of diffusers, against diffusers itself."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx_ir as ir
import pytest
import torch

from edge_sampler import models
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import base_step
from edge_sampler.export.assemble import export_graphs, write_graphs
from edge_sampler.models import pipeline, scheduler_settings
from edge_sampler.models.architecture import build, randomise
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.families import parts
from edge_sampler.models.precond import BETA_SCHEDULES, discrete_sigmas
from edge_sampler.models.published import HUB
from edge_sampler.models.zoo import DDPM_256, DDPM_CIFAR10, ZOO
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import sample
from tests.conftest import Parity, relative

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}


def made(folder: Path, scheduler: Any = None, safe: bool = True, **changes: Any) -> Any:
    """A small pipeline with lively weights in ``folder``, written by diffusers; its network."""
    unet = diffusers.UNet2DModel(**(SMALL | changes))
    randomise(unet, 0)
    whole = diffusers.DDPMPipeline(unet, scheduler or diffusers.DDPMScheduler())
    whole.save_pretrained(folder, safe_serialization=safe)
    return unet.eval().requires_grad_(False)


def denoised(unet: Any, x: torch.Tensor, sigma: float, step: int, labels: torch.Tensor | None = None) -> torch.Tensor:
    """By definition, of a network that predicts the noise: x of σ, shrunk to unit variance, is what it sees."""
    return x - sigma * unet(x / np.sqrt(1 + sigma**2), step, labels).sample


@pytest.mark.parametrize(("architecture", "resolution"), [(DDPM_CIFAR10, 32), (DDPM_256, 64)], ids=["32", "64"])
def test_networks_of_full_depth_are_those_of_diffusers(
    architecture: dict[str, Any], resolution: int, parity: Parity
) -> None:
    model = build(architecture | {"img_resolution": resolution}, "deep")
    randomise(model, 0)
    model.eval().requires_grad_(False)
    x = 3 * torch.randn(1, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.DDPMScheduler()
    for step in (0, 400, 999):
        sigma = float(((1 - scheduler.alphas_cumprod[step].double()) / scheduler.alphas_cumprod[step].double()).sqrt())
        difference = relative(model(x, sigma), denoised(model.model.unet, x, sigma, step))
        parity("diffusers, DDPM", f"full depth, {resolution} pixels, denoised at step {step}", difference, 1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_ddim_is_that_of_diffusers(schedule: str, prediction: str, tmp_path: Path, parity: Parity) -> None:
    """At the same steps, from the same state."""
    scheduler = diffusers.DDIMScheduler(beta_schedule=schedule, prediction_type=prediction, clip_sample=False)
    unet = made(tmp_path, scheduler)
    model = models.load(str(tmp_path))
    scheduler.set_timesteps(10)
    levels = discrete_sigmas(BETA_SCHEDULES[schedule](1e-4, 0.02, 1000))
    sigmas = [*levels[scheduler.timesteps.numpy()].tolist(), 0.0]
    start = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = start
    for step in scheduler.timesteps:
        x = scheduler.step(unet(x, step).sample, step, x).prev_sample
    ours = find("ddim").run(Network(model), start.double() * np.sqrt(1 + sigmas[0] ** 2), sigmas, base_step, history=0)
    parity("diffusers, UNet2DModel", f"DDIM at NFE 10, {schedule}, {prediction}", relative(ours, x), 1e-4)


def test_sampling_starts_where_training_ended(tmp_path: Path) -> None:
    """At the noise level of the last of its own steps, where large images are all noise and their brightness is not."""
    scheduler = diffusers.DDPMScheduler()
    made(tmp_path, scheduler)
    kept = scheduler.alphas_cumprod[-1].double()
    assert calibrate(models.load(str(tmp_path)), Settings(4, "ddim")).sigmas[0] == pytest.approx(
        float(((1 - kept) / kept).sqrt()), rel=1e-5
    )


def test_flow_matching_is_that_of_diffusers(tmp_path: Path) -> None:
    """Its Euler step, in t, and ours, in σ, are one: both are exact where the clean image does not change."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    unet = made(tmp_path, scheduler)
    model = models.load(str(tmp_path))
    x, t = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), 0.6
    image = x - t * unet(x, 1000 * t).sample  # of x_t = (1 - t)·image + t·noise and the answer noise - image
    assert relative(model(x / (1 - t), t / (1 - t)), image) < 1e-5


def test_classes_are_those_of_diffusers(tmp_path: Path) -> None:
    unet = made(tmp_path, num_class_embeds=5)
    model = models.load(str(tmp_path))
    assert model.spec.classes == 5
    x, labels = torch.randn(3, 1, 8, 8), torch.tensor([4, 0, 2])
    sigma = model.spec.sigma_min
    assert relative(model(x, sigma, class_labels=labels), denoised(unet, x, sigma, 0, labels)) < 1e-5
    with pytest.raises(UserError, match="is missing, and has no value that means nothing"):
        model(x, sigma)
    known, none = (denoised(unet, x, sigma, 0, of) for of in (labels, torch.full((3,), 1)))
    guided = conditioned(model, guidance=3.0, null_class=1)
    assert relative(guided(x, sigma, class_labels=labels), 3 * known - 2 * none) < 1e-5
    assert relative(guided(x, sigma), none) < 1e-5


def test_a_pipeline_becomes_a_graph(tmp_path: Path) -> None:
    made(tmp_path)
    model = models.load(str(tmp_path))
    plan = calibrate(model, Settings(4, "iia-ipndm", batch=8, heldout=4))
    write_graphs(export_graphs(model), plan, tmp_path)
    noise = np.random.default_rng(0).standard_normal((3, 1, 8, 8), np.float32)
    expected = sample(Network(model), torch.from_numpy(noise).double(), plan)
    with Session(tmp_path / "sampler.onnx") as session:
        assert relative(session.run({"noise": noise})["images"], expected) < 1e-4
    assert not {"Gemm", "Sin", "Cos"} & {node.op_type for node in ir.load(tmp_path / "sampler.onnx").graph}


def test_weights_in_every_form_that_diffusers_wrote(tmp_path: Path) -> None:
    """Pickled ones, files side by side without folders, and attention as it was called before version 0.12."""
    unet = made(tmp_path / "new")
    made(tmp_path / "pickled", safe=False)
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "config.json").write_bytes((tmp_path / "new/unet/config.json").read_bytes())
    (flat / "scheduler_config.json").write_bytes((tmp_path / "new/scheduler/scheduler_config.json").read_bytes())
    old = {new: old for old, new in pipeline.OLD_ATTENTION.items()}
    state = {}
    for name, tensor in unet.state_dict().items():
        for new, before in old.items():
            if "attentions" in name:
                name = name.replace(f".{new}.", f".{before}.")
        state[name] = tensor
    assert any(".proj_attn." in name for name in state)
    torch.save(state, flat / "diffusion_pytorch_model.bin")
    hashes = {models.load(str(tmp_path / kind)).spec.weights_sha256 for kind in ("new", "pickled", "flat")}
    assert len(hashes) == 1


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not read")
    assert models.load(str(tmp_path)).spec.shape == (1, 8, 8)


@pytest.mark.parametrize("safe", [True, False])
def test_variants_and_parts(safe: bool, tmp_path: Path) -> None:
    """As diffusers saves them."""
    unet = made(tmp_path / "whole")
    wanted = models.load(str(tmp_path / "whole")).spec.weights_sha256
    for name, options in {"parts": {"max_shard_size": "20KB"}, "fp32": {"variant": "fp32"}}.items():
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        for path in (tmp_path / name / "unet").iterdir():
            path.unlink()
        unet.save_pretrained(tmp_path / name / "unet", safe_serialization=safe, **options)
        whole = [tmp_path / name / "unet" / f"diffusion_pytorch_model{suffix}" for suffix in (".safetensors", ".bin")]
        assert not any(path.exists() for path in whole)
        assert models.load(str(tmp_path / name)).spec.weights_sha256 == wanted
    parts = sorted((tmp_path / "parts" / "unet").glob("*-of-*"))
    assert len(parts) > 2
    parts[1].unlink()
    with pytest.raises(UserError, match=f"has {len(parts) - 1} of {len(parts)} parts of diffusion_pytorch_model"):
        models.load(str(tmp_path / "parts"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "scheduler/scheduler_config.json",
            {"beta_schedule": "sigmoid"},
            "beta_schedule is 'sigmoid'; allowed: ",
        ),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "score"},
            "prediction_type is 'score'; allowed: ",
        ),
        (
            "scheduler/scheduler_config.json",
            {"rescale_betas_zero_snr": True},
            "rescale_betas_zero_snr = True is not supported",
        ),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding = True is not supported"),
        ("scheduler/scheduler_config.json", {"sigma_max": 20.0}, "sigma_max = 20.0 is not supported"),
        ("scheduler/scheduler_config.json", {"of_tomorrow": 1}, "of_tomorrow = 1 is not known to this version"),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "not a pipeline of a UNet2DModel"),
        ("unet/config.json", {"sample_size": None}, "sample_size is None"),
        (
            "unet/config.json",
            {"time_embedding_type": "fourier"},
            "time_embedding_type is 'fourier'; allowed: ",
        ),
        ("unet/config.json", {"layers_per_block": 2}, "is missing"),
        ("unet/config.json", {"block_out_channels": [8, 32]}, r"instead of \[32"),
        ("unet/config.json", {"colour": 1}, "unusable architecture .*colour"),
    ],
)
def test_what_cannot_be_used_is_named(file: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    made(tmp_path)
    edit(tmp_path / file, **changes)
    with pytest.raises(UserError, match=message):
        models.load(str(tmp_path))


def test_other_schedulers_are_refused_and_the_supported_ones_named(tmp_path: Path) -> None:
    made(tmp_path, diffusers.EulerDiscreteScheduler())
    with pytest.raises(UserError, match="EulerDiscreteScheduler is not supported; supported: DDPMScheduler, "):
        models.load(str(tmp_path))


def test_a_folder_that_is_not_whole(tmp_path: Path) -> None:
    made(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"damaged or not a \.safetensors"):
        models.load(str(tmp_path))
    weights.unlink()
    with pytest.raises(UserError, match=r"has no diffusion_pytorch_model\.safetensors or"):
        models.load(str(tmp_path))
    made(tmp_path / "again")
    (tmp_path / "again" / "unet" / "config.json").unlink()
    with pytest.raises(UserError, match=r"neither unet/config\.json nor config\.json"):
        models.load(str(tmp_path / "again"))


class Hub(SimpleHTTPRequestHandler):
    """Shows OWNER/NAME folders as the hub does: a list of a repository's files, and the files."""

    SHA = "0123456789" * 4

    def do_GET(self) -> None:
        if found := re.match(r"/api/models/(\w+/\w+)(/tree|/revision|$)", self.path):
            folder = Path(self.directory, found[1])
            paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            files = [{"rfilename": path, "path": path, "type": "file", "size": 1, "oid": self.SHA} for path in paths]
            if not paths:
                self.send_error(404)
                return
            about = files if found[2] == "/tree" else {"id": found[1], "sha": self.SHA, "siblings": files}
            body = json.dumps(about).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            super().do_GET()

    def translate_path(self, path: str) -> str:
        return super().translate_path(re.sub("/resolve/[^/]+", "", path))

    def end_headers(self) -> None:
        self.send_header("X-Repo-Commit", self.SHA)
        self.send_header("ETag", f'"{hashlib.sha256(self.path.encode()).hexdigest()}"')
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which ``folder`` is shown as the hub."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def loaded(names: str, endpoint: str, home: Path) -> list[str]:
    """What a fresh process prints of the hub's models: name and weights' hash, or the error."""
    code = (
        "import sys; from edge_sampler import models; from edge_sampler.runtime.errors import UserError\n"
        "for name in sys.argv[1:]:\n"
        "    try: spec = models.load(name).spec; print(spec.name, spec.weights_sha256)\n"
        "    except UserError as error: print(error)"
    )
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_ETAG_TIMEOUT": "2"}
    run = subprocess.run([sys.executable, "-c", code, *names.split()], env=environment, capture_output=True, text=True)
    assert not run.returncode, run.stderr
    return run.stdout.splitlines()


def test_pipelines_of_the_hub(tmp_path: Path) -> None:
    """Downloaded once, from the address and to the place that Hugging Face's tools have; then there for good."""
    hub, home = tmp_path / "hub", tmp_path / "home"
    made(hub / "us" / "new")
    old = hub / "us" / "old"
    made(old, safe=False)
    for path in (old / "unet").iterdir():
        path.rename(old / path.name)
    with served(hub) as endpoint:
        *first, missing = loaded("us/new us/old us/nothing", endpoint, home)
    assert "cannot get the pipeline us/nothing" in missing
    assert [line.split()[0] for line in first] == ["new", "old"]
    assert len({line.split()[1] for line in first}) == 1
    repository = home / "hub" / "models--us--new"
    assert loaded(f"us/old {repository}", "http://127.0.0.1:9", home)[0] == first[1]
    assert models.load(str(repository)).spec.weights_sha256 == first[0].split()[1]


@pytest.mark.parametrize("name", [name for name, row in ZOO.items() if row.source.startswith(HUB)])
def test_rows_have_the_published_size(name: str) -> None:
    """arXiv 2006.11239, appendix B: 35.7 million parameters at 32×32, 114 million at 256×256."""
    with torch.device("meta"):
        model: Denoiser = build(ZOO[name].architecture, name)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(35.7 if name == "ddim-cifar10" else 114, rel=0.005)


def test_every_setting_of_a_supported_scheduler_is_known() -> None:
    """Used, without effect on what the network answers, or refused: none is passed over."""
    known = {
        *scheduler_settings.UNSUPPORTED,
        *scheduler_settings.DISCRETE_ARGUMENTS,
        *scheduler_settings.FLOW_ARGUMENTS,
        *scheduler_settings.OF_SAMPLERS,
    }
    names = (
        *scheduler_settings.DISCRETE_SCHEDULERS,
        *parts.MORE_DISCRETE_SCHEDULERS,
        *scheduler_settings.FLOW_SCHEDULERS,
    )
    for name in names:
        settings = dict(getattr(diffusers, name)().config)
        scheduler_settings.check_scheduler(settings, Path("folder"))
        assert {setting for setting in settings if not setting.startswith("_")} <= known
