"""A Stable Diffusion pipeline of few random weights, in a folder as diffusers saves it: to try every step in seconds.

    python examples/toy_pipeline.py my-pipeline
    printf '%s\n' 'a red heart' 'a cat' > prompts.txt
    python -m export --model my-pipeline --prompts prompts.txt --nfe 4 --guidance 5 --solver ddim --check 0 --out hearts

It draws nothing that anyone could name. Its tokens are single letters, and a prompt has at most 14 of them. Images are
16×16 pixels, and so are the latents.
"""

import json
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from edge_sampler.runtime.command_line import Parser, run_command
from edge_sampler.runtime.errors import UserError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WIDTH, LENGTH = 16, 16  # features of a token; tokens of a prompt, its begin and end included


def tokenizer() -> CLIPTokenizer:
    """A letter is a token, and another one at the end of a word."""
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        words, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        words.write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(words), str(merges), model_max_length=LENGTH)


def text_encoder(begin: int, end: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=end + 1,
        bos_token_id=begin,
        eos_token_id=end,
        pad_token_id=end,
        max_position_embeddings=LENGTH,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return CLIPTextModel(config)


def pipeline() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    words = tokenizer()
    return StableDiffusionPipeline(
        tokenizer=words,
        text_encoder=text_encoder(words.bos_token_id, words.eos_token_id),
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16,),
            down_block_types=("CrossAttnDownBlock2D",),
            mid_block_type=None,
            up_block_types=("UpBlock2D",),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=WIDTH,
            attention_head_dim=8,
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        vae=AutoencoderKL(sample_size=16, block_out_channels=(16,), norm_num_groups=4),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a new one")
    folder = parser.parse_args().folder
    if folder.exists():
        raise UserError(f"{folder} exists; choose another name")
    pipeline().save_pretrained(folder)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


if __name__ == "__main__":
    run_command(main)
