"""LoRA weights, against PEFT's own layers and the paper's formula."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from edge_sampler import models
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.families.base import Lora, Options
from edge_sampler.runtime.errors import UserError
from tests.conftest import relative
from tests.models.families import tiny

RANK, ALPHA = 4, 2
MAKE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "stable-diffusion": (tiny.stable_diffusion, "unet"),
    "stable-diffusion-xl": (tiny.stable_diffusion_xl, "unet"),
    "stable-diffusion-3": (tiny.stable_diffusion_3, "transformer"),
    "flux": (tiny.flux, "transformer"),
}


def save_lora(pipeline: Any, part: str, folder: Path) -> Path:
    """A LoRA of that part, random, as diffusers saves it; the part keeps it as layers of PEFT's."""
    network = getattr(pipeline, part)
    torch.manual_seed(0)
    modules = ["to_q", "to_v", "conv1"]
    network.add_adapter(LoraConfig(r=RANK, target_modules=modules, lora_alpha=ALPHA, init_lora_weights=False))
    told = {f"{part}_lora_layers": get_peft_model_state_dict(network)}
    told[f"{part}_lora_adapter_metadata"] = network.peft_config["default"].to_dict()
    type(pipeline).save_lora_weights(folder, **told)
    return folder / "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with "pipeline" and "lora.safetensors", which changes its network."""
    folder = tmp_path_factory.mktemp("lora")
    save_lora(tiny.stable_diffusion(folder / "pipeline"), "unet", folder).rename(folder / "lora.safetensors")
    return folder


def load(folder: Path, *loras: Lora) -> Denoiser:
    return models.load(str(folder / "pipeline"), options=Options(loras=loras))


@pytest.mark.parametrize("kind", MAKE)
def test_a_merged_network_answers_as_one_with_layers_beside(kind: str, tmp_path: Path) -> None:
    make, part = MAKE[kind]
    pipeline = make(tmp_path / "pipeline")
    lora = save_lora(pipeline, part, tmp_path)
    plain, merged = load(tmp_path), load(tmp_path, Lora(lora))
    network = merged.get_submodule("model." + ("unet" if part == "unet" else "network"))
    layers = getattr(pipeline, part).eval()
    assert list(plain.state_dict()) == list(merged.state_dict())
    compared = 0
    layers.requires_grad_(False)
    for name, wanted in layers.named_modules():
        if hasattr(wanted, "lora_A"):
            x = torch.randn(2, wanted.weight.shape[1], *[5, 5] * (wanted.weight.ndim == 4))
            assert relative(network.get_submodule(name)(x), wanted(x)) < 1e-5, name
            assert relative(network.get_submodule(name)(x), wanted.base_layer(x)) > 1e-3, name
            compared += 1
    assert compared >= 4


def test_scales_multiply_and_files_add_up(saved: Path) -> None:
    plain, half, twice = (
        dict(load(saved, *loras).named_parameters())
        for loras in ((), [Lora(saved / "lora.safetensors", 0.5)], [Lora(saved / "lora.safetensors", 0.25)] * 2)
    )
    brought = load_file(saved / "lora.safetensors")
    changed = set[str]()
    for name, up in brought.items():
        if name.startswith("unet.") and name.endswith("to_q.lora_B.weight"):
            weight = "model." + name.replace("lora_B.", "")
            change = ALPHA / RANK * up @ brought[name.replace("lora_B", "lora_A")]
            assert relative(half[weight], plain[weight] + 0.5 * change) < 1e-6
            changed.add(weight)
    assert changed
    for name, found in half.items():
        torch.testing.assert_close(twice[name], found, rtol=1e-5, atol=1e-6)


def test_the_names_of_kohyas_scripts_say_the_same(saved: Path, tmp_path: Path) -> None:
    named = convert_state_dict_to_kohya(load_file(saved / "lora.safetensors"))
    named = {name.replace("unet.", "lora_unet_", 1): value.contiguous() for name, value in named.items()}
    alphas = {name: torch.tensor(float(ALPHA)) for name in named if name.endswith("alpha")}
    assert alphas
    save_file(named | alphas, tmp_path / "kohya.safetensors")
    wanted = load(saved, Lora(saved / "lora.safetensors")).spec.fingerprint
    assert load(saved, Lora(tmp_path / "kohya.safetensors")).spec.fingerprint == wanted


def test_what_is_merged_is_part_of_the_identity(saved: Path) -> None:
    lora = saved / "lora.safetensors"
    prints = [load(saved, *loras).spec.fingerprint for loras in ([], [Lora(lora)], [Lora(lora, 0.5)])]
    assert len(set(prints)) == 3


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("a.safetensors", Lora(Path("a.safetensors"))), ("a:b.safetensors:-.5", Lora(Path("a:b.safetensors"), -0.5))],
)
def test_a_file_and_a_scale(text: str, wanted: Lora) -> None:
    assert Lora.parse(text) == wanted


@pytest.mark.parametrize(
    "text", ["a", "a.bin", "a.safetensors:", "a.safetensors:x", "a.safetensors2", "a.safetensors:inf"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"expected FILE\.safetensors or FILE\.safetensors:SCALE"):
        Lora.parse(text)


def edited(saved: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Lora:
    """The saved LoRA, its tensors changed."""
    tensors = load_file(saved / "lora.safetensors")
    change(tensors)
    save_file(tensors, folder / "changed.safetensors")
    return Lora(folder / "changed.safetensors")


Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
SPOILT: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "NaN": (lambda tensors: tensors[f"{Q}.lora_A.weight"].fill_(float("nan")), "to_q.lora_A.weight holds NaN"),
    "a magnitude": (
        lambda tensors: tensors.update({f"{Q}.dora_scale": torch.ones(32)}),
        "holds unet.*dora_scale, which is no LoRA",
    ),
    "another width": (
        lambda tensors: tensors.update({f"{Q}.lora_A.weight": torch.ones(RANK, 7)}),
        "cannot be merged into the StableDiffusionPipeline: .*size",
    ),
    "a layer that is not there": (
        lambda tensors: tensors.update(
            {
                f"{Q.replace('attn1', 'attn9')}.{one}.weight": tensors[f"{Q}.{one}.weight"] + 0
                for one in ("lora_A", "lora_B")
            }
        ),
        "brings 50 tensors, and its layers in the pipeline have 48",
    ),
    "an encoder that is not there": (
        lambda tensors: tensors.update(
            {f"text_encoder_2.q_proj.{one}.weight": tensors[f"{Q}.{one}.weight"] + 0 for one in ("lora_A", "lora_B")}
        ),
        "brings 50 tensors, and its layers in the pipeline have 48",
    ),
    "half of a pair": (
        lambda tensors: tensors.pop(f"{Q}.lora_B.weight"),
        "brings 47 tensors, and its layers in the pipeline have 48|cannot be merged",
    ),
    "nothing": (lambda tensors: tensors.clear(), "brings 0 tensors|cannot be merged"),
    "one more alpha": (
        lambda tensors: tensors.update({"unet.mid_block.alpha": torch.ones(())}),
        "cannot be merged",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_file_that_is_not_used_in_whole_is_refused(what: str, saved: Path, tmp_path: Path) -> None:
    change, message = SPOILT[what]
    with pytest.raises(UserError, match=message) as raised:
        load(saved, edited(saved, tmp_path, change))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_none_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes((saved / "lora.safetensors").read_bytes()[:-9])
    for name in ("damaged.safetensors", "missing.safetensors"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            load(saved, Lora(tmp_path / name))


def test_models_that_take_none_say_so(saved: Path, tmp_path: Path) -> None:
    lora = Lora(saved / "lora.safetensors")
    with pytest.raises(UserError, match="--lora does not apply to edm-digits"):
        models.load("edm-digits", options=Options(loras=(lora,)))
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(UserError, match=r"--lora does not apply to .*mine.py:make"):
        models.load(f"{tmp_path}/mine.py:make", options=Options(loras=(lora,)))
    tiny.pixart(tmp_path / "pipeline", "Alpha")
    with pytest.raises(UserError, match="merges no LoRA weights into a PixArtAlphaPipeline"):
        load(tmp_path, lora)


def test_without_peft_the_line_says_what_to_install(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .*\[diffusers\]'"):
        load(saved, Lora(saved / "lora.safetensors"))


def test_one_that_lies_beside_is_named_or_refused(saved: Path, tmp_path: Path) -> None:
    tiny.stable_diffusion(tmp_path / "pipeline")
    beside = tmp_path / "pipeline" / "my_lora.safetensors"
    beside.write_bytes((saved / "lora.safetensors").read_bytes())
    with pytest.raises(UserError, match=f"merge them with --lora {beside}"):
        load(tmp_path)
    load(tmp_path, Lora(beside))
