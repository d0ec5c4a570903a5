"""EDM2's checkpoints: their own code's answers, snapshots read without executing them, latents decoded or named so."""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import safetensors.torch
import torch

from edge_sampler import models
from edge_sampler.export.assemble import export_graphs
from edge_sampler.export.precision import lower_precision
from edge_sampler.export.unroll import unroll
from edge_sampler.models import checkpoint, edm2
from edge_sampler.models.architecture import build
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.families.base import Options
from edge_sampler.models.published import EDM2_URL, LATENTS
from edge_sampler.models.zoo import ZOO
from edge_sampler.runtime.errors import UserError
from tests.conftest import DATA, Parity, relative
from tests.export.networks import euler
from tests.models.families import tiny
from tests.models.test_guided_diffusion import values

SNAPSHOT = DATA / "official-format-tiny-edm2.pkl"
LARGER = {"freqs": 63.0, "phases": 63.0, "emb_gain": 34.0, "out_gain": 10.0}  # by the last part of a tensor's name
RAW_MEAN, RAW_STD, FINAL_STD = np.array([5.81, 3.25, 0.12, -2.15]), np.array([4.17, 4.62, 3.71, 3.28]), 0.5


@pytest.fixture(scope="module")
def golden() -> Any:
    return np.load(DATA / "edm2.npz")


def state(golden: Any, key: str) -> dict[str, torch.Tensor]:
    """The tensors that tests/data/README.md gives to the names, as the golden file's maker did."""
    named = [line.split(" ", 1) for line in golden[f"{key}/names"]]
    return {
        name: torch.from_numpy(np.asarray(values(name, json.loads(shape)))) * LARGER.get(name.split(".")[-1], 1.0)
        for name, shape in named
    }


def architecture(golden: Any, key: str, tmp_path: Path, **changes: Any) -> str:
    arguments = {"precond": "EDMPrecond", "model_type": "EDM2UNet", **json.loads(str(golden[f"{key}/kwargs"]))}
    (tmp_path / f"{key}.json").write_text(json.dumps(arguments | changes))
    return str(tmp_path / f"{key}.json")


def differences(model: Denoiser, golden: Any, key: str) -> list[float]:
    """From their clean images, by noise level."""
    x, sigma, y = (torch.from_numpy(golden[f"{key}/{name}"]) for name in ("x", "sigma", "y"))
    found = model(x, sigma, **({"class_labels": y} if model.spec.classes else {}))
    return [relative(ours, theirs) for ours, theirs in zip(found, golden[f"{key}/denoised"], strict=True)]


@pytest.mark.parametrize("key", ["uncond", "cond"])
def test_networks_denoise_as_their_own_code_does(key: str, golden: Any, tmp_path: Path, parity: Parity) -> None:
    torch.save(state(golden, key), tmp_path / "weights.pt")
    model = models.load(architecture(golden, key, tmp_path), tmp_path / "weights.pt")
    for sigma, difference in zip(golden[f"{key}/sigma"], differences(model, golden, key), strict=True):
        parity("EDM2's code", f"{key}, clean images at σ = {sigma:g}", difference, 1e-5)


def test_a_snapshot_is_its_network_and_says_that_it_makes_latents(
    golden: Any, parity: Parity, capsys: pytest.CaptureFixture[str]
) -> None:
    model = models.load(str(SNAPSHOT))
    parity("EDM2's code", "a snapshot in half precision", max(differences(model, golden, "snapshot")), 1e-5)
    assert capsys.readouterr().err.count("\n") == 1
    assert (model.spec.output.name, model.spec.output.is_image) == ("latents", False)
    assert model.spec.classes == 3
    with pytest.raises(UserError, match="null-class"):  # a row of zeros was never trained
        conditioned(model, guidance=2.0)


def test_a_snapshot_tells_how_its_latents_were_whitened() -> None:
    latents = (checkpoint.read(SNAPSHOT).architecture or {})["latents"]
    np.testing.assert_allclose(latents["mean"], RAW_MEAN, rtol=1e-6)
    np.testing.assert_allclose(latents["std"], RAW_STD / FINAL_STD, rtol=1e-6)
    assert edm2.alike(latents, LATENTS)


def test_latents_are_whitened_as_their_own_snapshot_says(tmp_path: Path) -> None:
    content, scale = SNAPSHOT.read_bytes(), np.float32(FINAL_STD) / np.float32(RAW_STD)
    assert content.count(scale.tobytes()) == 1
    (tmp_path / "other.pkl").write_bytes(content.replace(scale.tobytes(), (2 * scale).tobytes()))
    latents = (checkpoint.read(tmp_path / "other.pkl").architecture or {})["latents"]
    np.testing.assert_allclose(latents["std"], RAW_STD / FINAL_STD / 2, rtol=1e-6)


def test_latents_are_decoded_as_their_own_code_does(tmp_path: Path) -> None:
    """Their latents are whitened ones of a VAE that sees images in [0, 1], without the VAE's own scale."""
    vae = tiny.autoencoder().eval()
    vae.save_pretrained(tmp_path / "vae")
    model = models.load(str(SNAPSHOT), options=Options(vae=tmp_path / "vae"))
    assert (model.spec.output.name, model.spec.output.shape) == ("images", (3, 32, 32))
    assert model.spec.fingerprint != models.load(str(SNAPSHOT)).spec.fingerprint
    x = torch.randn(2, 4, 16, 16)
    scale = torch.from_numpy(FINAL_STD / RAW_STD).float()[:, None, None]
    bias = -torch.from_numpy(RAW_MEAN).float()[:, None, None] * scale
    with torch.inference_mode():
        pictures = vae.decode((x - bias) / scale).sample  # in [0, 1]
    assert relative(model.decode(x), pictures * 2 - 1) < 1e-5


def test_only_a_vae_of_the_latents_is_taken(tmp_path: Path) -> None:
    tiny.autoencoder(latent_channels=8).save_pretrained(tmp_path / "vae")
    with pytest.raises(UserError, match="latents of 8 channels"):
        models.load(str(SNAPSHOT), options=Options(vae=tmp_path / "vae"))
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    with pytest.raises(UserError, match="is AutoencoderTiny"):
        models.load(str(SNAPSHOT), options=Options(vae=tmp_path / "vae"))
    with pytest.raises(UserError, match="--size does not apply"):
        models.load(str(SNAPSHOT), options=Options(size=(512, 512)))
    with pytest.raises(UserError, match="--vae does not apply to edm2-img64-s"):
        models.load("edm2-img64-s", options=Options(vae=tmp_path / "vae"))


def test_formats_agree(golden: Any, tmp_path: Path) -> None:
    """The same weights as pickle, as their state dict and as ours are the same model."""
    made, read = models.load(str(SNAPSHOT)), checkpoint.read(SNAPSHOT)
    torch.save(dict(read.tensors), tmp_path / "theirs.pt")
    safetensors.torch.save_file(made.state_dict(), tmp_path / "ours.safetensors")
    name = architecture(golden, "snapshot", tmp_path)
    for weights in (tmp_path / "theirs.pt", tmp_path / "ours.safetensors", SNAPSHOT):
        assert models.load(name, weights).spec.weights_sha256 == made.spec.weights_sha256


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("unet.enc.16x16_conv.weight"), r"model\.enc\.16x16_conv\.weight is missing"),
        (lambda state: state.pop("unet.enc.16x16_block0.emb_gain"), r"16x16_block0\.emb_linear\.weight is missing"),
        (lambda state: state.pop("unet.emb_fourier.phases"), r"emb_fourier\.phases is missing"),
        (lambda state: state.update({"unet.out_conv.weight": torch.zeros(4, 16, 1, 1)}), r"\[4, 16, 1, 1\] instead of"),
        (lambda state: state.update({"unet.out_conv.weight": torch.zeros(4)}), "out_conv.weight is missing"),
        (lambda state: state.update({"unet.out_gain": torch.zeros(2)}), "out_conv.weight is missing"),
        (
            lambda state: state.update({"unet.out_gain": torch.tensor(float("inf"))}),
            "NaN or infinity in model.out_conv",
        ),
        (lambda state: state.update({"unet.extra": torch.zeros(1)}), "unet.extra is surplus"),
    ],
)
def test_weights_of_another_architecture_are_refused(damage: Any, message: str, golden: Any, tmp_path: Path) -> None:
    state = dict(checkpoint.read(SNAPSHOT).tensors)
    damage(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message) as caught:
        models.load(architecture(golden, "snapshot", tmp_path), tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"channels_per_head": 8}, {"latents": 5}, {"latents": {"mean": [0.0] * 4, "std": [1.0] * 4}}]
)
def test_a_snapshot_of_another_network_of_the_same_shapes_is_refused(
    changes: dict[str, Any], golden: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"the snapshot's {next(iter(changes))} is"):
        models.load(architecture(golden, "snapshot", tmp_path, **changes), SNAPSHOT)


@pytest.mark.parametrize("name", [b"dnnlib.util\ncall_func_by_name", b"os\nsystem", b"numpy\nfrombuffer"])
def test_a_snapshot_that_names_another_function_is_refused(name: bytes, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    (tmp_path / "hostile.pkl").write_bytes(b"c" + name + b"\n(S'touch " + str(mark).encode() + b"'\ntR.")
    with pytest.raises(UserError, match=rf"names '{name.decode().replace(chr(10), '.')}', .* nothing was executed"):
        models.load(str(tmp_path / "hostile.pkl"))
    assert not mark.exists()


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    """What official snapshots call, by the name of it; here it is only named, and never called."""


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class Persistent:
    """Pickles as an object of an official snapshot, of this class and state."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": "", "class_name": class_name, "state": state}

    def __reduce__(self) -> Any:
        return _reconstruct_persistent_obj, (self.meta,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": {"mean": [0.0] * 4}}, "latents have no std of 4 numbers"),
        ({"latents": {"mean": [0.0] * 3, "std": [1.0] * 4}}, "latents have no mean of 4 numbers"),
        ({"label_balance": "half"}, "unusable architecture"),
        ({"clip": 256}, "unusable architecture .*unexpected keyword argument 'clip'"),
    ],
)
def test_bad_architectures_are_refused(changes: dict[str, Any], message: str, golden: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        models.load(architecture(golden, "snapshot", tmp_path, **changes), random_weights=True)


@pytest.fixture
def pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch_utils", "torch_utils.persistence"):  # where the pickler looks the function up
        monkeypatch.setitem(sys.modules, name, sys.modules[__name__])


@pytest.mark.usefixtures("pickles")
@pytest.mark.parametrize("class_name", ["EDMPrecond", "VPPrecond"])
def test_a_snapshot_of_edm_names_its_preconditioning(class_name: str, tmp_path: Path) -> None:
    made: dict[str, Any] = {"_init_kwargs": {"img_resolution": 8}, "_parameters": {"weight": torch.ones(2)}}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"ema": Persistent(class_name, made)}))
    found = checkpoint.read(tmp_path / "w.pkl")
    assert found.architecture == {"precond": class_name, "img_resolution": 8}
    assert found.tensors["weight"].tolist() == [1.0, 1.0]
    made["_init_kwargs"]["odd"] = torch.ones(2)
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"ema": Persistent(class_name, made)}))
    with pytest.raises(UserError, match="the argument 'odd' of its network is no plain value"):
        checkpoint.read(tmp_path / "w.pkl")


@pytest.mark.usefixtures("pickles")
def test_a_snapshot_whose_tensors_are_not_its_networks_is_refused(tmp_path: Path) -> None:
    arguments = {"img_resolution": 16, "img_channels": 4, "label_dim": 0, "model_channels": 64, "num_blocks": 1}
    stem = Persistent("MPConv", {"_parameters": {"weight": torch.zeros(64, 4, 3, 3)}})
    layers = Persistent("UNet", {"_modules": {"16x16_conv": stem}})
    trunk = {"_parameters": {"out_gain": torch.zeros(())}, "_modules": {"enc": layers}}
    network = Persistent("Precond", {"_init_kwargs": arguments, "_modules": {"unet": Persistent("UNet", trunk)}})
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"ema": network}))
    with pytest.raises(UserError, match=r"do not fit the architecture of w: .* is missing") as caught:
        models.load(str(tmp_path / "w.pkl"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (("WaveletEncoder", {}), "its encoder is WaveletEncoder; supported"),
        (("StabilityVAEEncoder", {"scale": np.zeros((2, 2), np.float32)}), "no row of float32"),
        (("StabilityVAEEncoder", {"scale": np.zeros(4)}), "no row of float32"),
        (("StabilityVAEEncoder", {"scale": np.zeros(4, ">f4")}), "no row of float32"),
    ],
)
@pytest.mark.usefixtures("pickles")
def test_an_encoder_of_another_kind_is_refused(
    encoder: tuple[str, dict[str, Any]], message: str, tmp_path: Path
) -> None:
    network = Persistent("Precond", {"_init_kwargs": {"img_resolution": 16, "img_channels": 4, "label_dim": 0}})
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"ema": network, "encoder": Persistent(*encoder)}))
    with pytest.raises(UserError, match=message):
        checkpoint.read(tmp_path / "w.pkl")


PUBLISHED = {  # arXiv 2312.02696, tables 2 and 3: millions of parameters
    "edm2-img64-s": 280,
    "edm2-img64-l": 777,
    "edm2-img512-xs": 125,
    "edm2-img512-m": 498,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_have_the_published_size(name: str) -> None:
    row = ZOO[name]
    assert row.source.startswith(EDM2_URL + name + "-")
    with torch.device("meta"):
        network = build(row.architecture, name)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(PUBLISHED[name], abs=1)


def test_the_graph_holds_plain_layers_and_no_embedding(golden: Any, tmp_path: Path) -> None:
    """Of one class, what depends on noise level and class is computed beforehand, and no weight is normalised in it.

    In half precision the magnitudes that divide are taken in float32, as their own code takes them.
    """
    model = conditioned(models.load(str(SNAPSHOT)), class_label=1)
    graphs = export_graphs(model)
    sampler = unroll(graphs.denoiser, euler([2.0, 1.0]), output_name="latents")
    assert not {"Gemm", "Cos", "Sqrt", "ReduceMean"} & {node.op_type for node in sampler.graph}
    blocks = [node for node in sampler.graph if node.op_type == "ReduceL2"]
    assert len(blocks) == 2 * 7  # of each evaluation: three blocks of the encoder, four that attend
    lower_precision(sampler, "fp16")
    for node in blocks:
        assert node.inputs[0] is not None
        producer = node.inputs[0].producer()
        assert producer is not None
        assert (producer.op_type, producer.attributes["to"].as_int()) == ("Cast", ir.DataType.FLOAT)
