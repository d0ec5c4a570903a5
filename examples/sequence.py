"""A sequence model whose length each call chooses, as decoders of speech are: random weights, to show the form.

    python -m export --model examples/sequence.py:make --nfe 4 --solver ddim --check 0 --out mel
    python -m runtime compare mel
    python -m runtime sample mel --seeds 0-3 --condition text.npz --out mel.npz
    python -m export engine mel --engine tensorrt-rtx --target sm89 --axis length=16:64:256

From Python the length is that of the condition. Saved as text.npz, ``told`` is what the third command asks for:

    with edge_sampler.load("mel") as sampler:
        told = {"text": np.zeros((120, 8), np.float32), "mask": np.ones(120, bool), "speaker": np.zeros(16, np.float32)}
        mel = sampler.sample([0], **told)    # [1, 120, 20]
        np.savez("text.npz", **told)
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import edge_sampler
from edge_sampler import Condition

BANDS, TEXT, SPEAKER, WIDTH, HEADS = 20, 8, 16, 32, 4


class Block(nn.Module):
    """Attention over the whole sequence, and a layer for each position, both shifted by the time."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.each = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.each(self.norms[1](x))


class Mel(nn.Module):
    """x [n, length, 20], t [n or 1], text [n, length, 8], mask bool [n, length], speaker [n, 16] → data - noise."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(8, WIDTH)
        self.x, self.text, self.speaker = (nn.Linear(size, WIDTH) for size in (BANDS, TEXT, SPEAKER))
        self.blocks, self.out = nn.ModuleList(Block() for _ in range(2)), nn.Linear(WIDTH, BANDS)

    def forward(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor, speaker: Tensor) -> Tensor:
        angles = t[:, None] * 2.0 ** torch.arange(4, device=t.device)
        whole = self.time(torch.cat([angles.sin(), angles.cos()], -1)) + self.speaker(speaker)
        hidden = self.x(x) + self.text(text) + whole[:, None]
        for block in self.blocks:
            hidden = block(hidden, mask)
        return self.out(hidden) * mask[..., None]


def examples(seeds: list[int], length: int = 64) -> dict[str, np.ndarray]:
    """Text of random features, of which a random part at the end is masked, and a speaker."""
    rngs = [np.random.default_rng([7, seed]) for seed in seeds]
    text = np.stack([rng.normal(size=(length, TEXT)) for rng in rngs]).astype(np.float32)
    mask = np.stack([np.arange(length) < rng.integers(length // 2, length + 1) for rng in rngs])
    speaker = np.stack([rng.normal(size=SPEAKER) for rng in rngs]).astype(np.float32)
    return {"text": text, "mask": mask, "speaker": speaker}


def make() -> edge_sampler.Denoiser:
    """The model; as Matcha-TTS and F5-TTS do, it counts time from noise to data, and predicts data - noise."""
    torch.manual_seed(0)
    return edge_sampler.adapt(
        Mel(),
        ("length", BANDS),
        "FlowPrecond",
        num_train_timesteps=1,
        reversed_time=True,
        predicts="data-noise",
        conditions={
            "text": Condition(("length", TEXT), null=0.0, description="features of the text, frame by frame"),
            "mask": Condition(("length",), "bool", description="which frames there are"),
            "speaker": Condition((SPEAKER,), description="an embedding of who speaks"),
        },
        axes={"length": (16, 64, 256)},
        examples=examples,
        output="mel",
        licence="Apache-2.0",
    )
