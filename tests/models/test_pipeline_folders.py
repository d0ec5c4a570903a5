"""Folders that diffusers wrote, and the hub's: in every form, and one line where they cannot be used."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from edge_sampler import models
from edge_sampler.models import pipeline, scheduler_settings
from edge_sampler.models.families import parts
from edge_sampler.runtime.errors import UserError
from tests import warm
from tests.models.families import tiny


def test_weights_in_every_form_that_diffusers_wrote(tmp_path: Path) -> None:
    """Pickled ones, files side by side without folders, and attention as it was called before version 0.12."""
    unet = tiny.ddpm(tmp_path / "new")
    tiny.ddpm(tmp_path / "pickled", safe=False)
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
    tiny.ddpm(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not read")
    assert models.load(str(tmp_path)).spec.shape == (1, 8, 8)


@pytest.mark.parametrize("safe", [True, False])
def test_variants_and_parts(safe: bool, tmp_path: Path) -> None:
    """As diffusers saves them."""
    unet = tiny.ddpm(tmp_path / "whole")
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
    tiny.ddpm(tmp_path)
    edit(tmp_path / file, **changes)
    with pytest.raises(UserError, match=message):
        models.load(str(tmp_path))


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that is told prompts."""
    tiny.stable_diffusion(folder := tmp_path_factory.mktemp("pipelines") / "pipeline")
    return folder


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"unet": "x"}, r"model_index.json: unet is 'x'; it must be \[library, class\]"),
        ("model_index.json", {"tokenizer": 5}, "model_index.json: tokenizer is 5; it must be"),
        ("model_index.json", {"scheduler": ["x"]}, r"model_index.json: scheduler is \['x'\]; it must be"),
        ("model_index.json", {"safety_checker": 5}, "model_index.json: safety_checker is 5; it must be"),
        ("unet/config.json", {"sample_size": "x"}, "sample_size is 'x'; it must be one whole number, or two"),
        ("unet/config.json", {"sample_size": [16]}, r"sample_size is \[16\]; it must be"),
        ("unet/config.json", {"layers_per_block": 10**6}, "config.json: layers_per_block is larger than 256, beyond"),
        (
            "unet/config.json",
            {"time_cond_proj_dim": 8},
            r"unet lacks weights .*: time_embedding.cond_proj.weight \(1 in",
        ),
        ("vae/config.json", {"scaling_factor": "x"}, "the VAE's scaling_factor is 'x'; it must be a finite number"),
        ("vae/config.json", {"shift_factor": [1]}, r"the VAE's shift_factor is \[1\]; it must be"),
        ("text_encoder/config.json", {"num_hidden_layers": 2}, r"text_encoder lacks weights .* \(16 in all\)"),
        ("vae/config.json", {"block_out_channels": [16, 32, 32]}, "vae cannot be loaded as Auto"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "x"}, "scheduler"),
        ("text_encoder/config.json", {"hidden_size": "x"}, "text_encoder cannot be loaded as CLIPTextModel"),
    ],
)
def test_settings_unlike_any_pipelines_are_one_line(
    file: str, changes: dict[str, Any], message: str, prompted: Path, tmp_path: Path
) -> None:
    shutil.copytree(prompted, tmp_path / "copy")
    edit(tmp_path / "copy" / file, **changes)
    with pytest.raises(UserError, match=message) as raised:
        models.load(str(tmp_path / "copy"))
    assert "\n" not in str(raised.value)


def test_what_a_family_trips_over_is_one_line(prompted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trip(*_: object) -> None:
        raise NotImplementedError("Cannot copy out of meta tensor\nno data!")

    monkeypatch.setattr(parts.Parts, "denoiser", trip)
    with pytest.raises(UserError, match=r"its files do not fit each other \(NotImpl.*: Cannot .* tensor no data"):
        models.load(str(prompted))


def test_other_schedulers_are_refused_and_the_supported_ones_named(tmp_path: Path) -> None:
    tiny.ddpm(tmp_path, diffusers.EulerDiscreteScheduler())
    with pytest.raises(UserError, match="EulerDiscreteScheduler is not supported; supported: DDPMScheduler, "):
        models.load(str(tmp_path))


def test_a_folder_that_is_not_whole(tmp_path: Path) -> None:
    tiny.ddpm(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"damaged or not a \.safetensors"):
        models.load(str(tmp_path))
    weights.unlink()
    with pytest.raises(UserError, match=r"has no diffusion_pytorch_model\.safetensors or"):
        models.load(str(tmp_path))
    tiny.ddpm(tmp_path / "again")
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
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
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
    run = subprocess.run([warm.python(), "-c", code, *names.split()], env=environment, capture_output=True, text=True)
    assert not run.returncode, run.stderr
    return run.stdout.splitlines()


def test_pipelines_of_the_hub(tmp_path: Path) -> None:
    """Downloaded once, from the address and to the place that Hugging Face's tools have; then there for good."""
    hub, home = tmp_path / "hub", tmp_path / "home"
    tiny.ddpm(hub / "us" / "new")
    old = hub / "us" / "old"
    tiny.ddpm(old, safe=False)
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
