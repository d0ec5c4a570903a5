"""DDPM++ and NCSN++: the U-Nets of Song et al., "Score-Based Generative Modeling" (arXiv 2011.13456)."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from edge_sampler.models.networks.layers import BlockStyle, Conv2d, FourierEmbedding, PositionalEmbedding, group_norm
from edge_sampler.models.networks.unet import TrunkLayout, UNet


class SongUNet(UNet):
    """x [n, in, r, r], noise label [n or 1], one-hot classes [n, label_dim] or None → [n, out, r, r].

    DDPM++ is ``embedding_type="positional", encoder_type="standard", resample_filter=(1, 1)``; NCSN++ is
    ``"fourier", "residual", (1, 3, 3, 1)`` with ``channel_mult_noise=2``. The argument names are the checkpoints'.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,  # a matter of training only
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: tuple[float, ...] = (1, 1),
    ) -> None:
        for argument, value, allowed in (
            ("embedding_type", embedding_type, ("positional", "fourier")),
            ("encoder_type", encoder_type, ("standard", "residual")),
            ("decoder_type", decoder_type, ("standard",)),
        ):
            if value not in allowed:
                raise ValueError(f"{argument} is {value!r}; allowed: {', '.join(allowed)}")
        super().__init__()
        self.label_dim = label_dim
        noise_channels, embedding_channels = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.map_noise: nn.Module = (
            PositionalEmbedding(noise_channels, endpoint=True)
            if embedding_type == "positional"
            else FourierEmbedding(noise_channels)
        )
        if label_dim:
            self.map_label = nn.Linear(label_dim, noise_channels)
        if augment_dim:  # unused when sampling: nobody asks for augmented images
            self.map_augment = nn.Linear(augment_dim, noise_channels, bias=False)
        self.map_layer0 = nn.Linear(noise_channels, embedding_channels)
        self.map_layer1 = nn.Linear(embedding_channels, embedding_channels)
        self.style = BlockStyle(
            embedding_channels=embedding_channels,
            eps=1e-6,
            skip_scale=math.sqrt(0.5),
            adaptive_scale=False,
            resample_projects=True,
            head_channels=None,
            filter=tuple(resample_filter),
            dropout=dropout,
        )
        layout = TrunkLayout(
            img_resolution,
            in_channels,
            stem_channels=model_channels,
            level_channels=tuple(model_channels * multiplier for multiplier in channel_mult),
            num_blocks=num_blocks,
            attends_encoder=lambda resolution: resolution in attn_resolutions,
            attends_decoder=lambda resolution, index: resolution in attn_resolutions and index == num_blocks,
            pyramid=encoder_type == "residual",
        )
        self.build_trunk(layout)
        self.head = f"{img_resolution}x{img_resolution}_aux"
        self.dec[f"{self.head}_norm"] = group_norm(self.channels_out, self.style.eps)
        self.dec[f"{self.head}_conv"] = Conv2d(self.channels_out, out_channels, 3)

    def forward(self, x: Tensor, noise_label: Tensor, classes: Tensor | None = None) -> Tensor:
        cosines, sines = self.map_noise(noise_label).chunk(2, dim=1)
        embedding = torch.cat([sines, cosines], dim=1)  # the published weights expect this order
        if classes is not None:
            embedding = embedding + self.map_label(classes * math.sqrt(self.label_dim))
        embedding = silu(self.map_layer1(silu(self.map_layer0(embedding))))
        x = self.trunk(x, embedding)
        return self.dec[f"{self.head}_conv"](silu(self.dec[f"{self.head}_norm"](x)))


NETWORKS = {"SongUNet": SongUNet}
