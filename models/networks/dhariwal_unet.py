"""ADM: the U-Net of Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis" (arXiv 2105.05233)."""

from torch import Tensor, nn
from torch.nn.functional import silu

from edge_sampler.models.networks.layers import BlockStyle, Conv2d, PositionalEmbedding, group_norm
from edge_sampler.models.networks.unet import TrunkLayout, UNet


class DhariwalUNet(UNet):
    """x [n, in, r, r], noise label [n or 1], one-hot classes [n, label_dim] or None → [n, out, r, r].

    The argument names are the checkpoints', and the last three those of OpenAI's. Without ``num_heads`` a head has 64
    channels. With the other two False it is the network of improved DDPM (arXiv 2102.09672).
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: tuple[float, ...] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: tuple[int, ...] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,  # a matter of training only
        num_heads: int | None = None,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
    ) -> None:
        super().__init__()
        embedding_channels = model_channels * channel_mult_emb
        self.map_noise = PositionalEmbedding(model_channels, endpoint=False)
        if augment_dim:  # unused when sampling: nobody asks for augmented images
            self.map_augment = nn.Linear(augment_dim, model_channels, bias=False)
        self.map_layer0 = nn.Linear(model_channels, embedding_channels)
        self.map_layer1 = nn.Linear(embedding_channels, embedding_channels)
        if label_dim:
            self.map_label = nn.Linear(label_dim, embedding_channels, bias=False)
        self.style = BlockStyle(
            embedding_channels=embedding_channels,
            eps=1e-5,
            skip_scale=1.0,
            adaptive_scale=use_scale_shift_norm,
            resample_projects=False,
            head_channels=None if num_heads else 64,
            heads=num_heads or 1,
            resample_blocks=resblock_updown,
            dropout=dropout,
        )
        level_channels = tuple(int(model_channels * multiplier) for multiplier in channel_mult)
        layout = TrunkLayout(
            img_resolution,
            in_channels,
            stem_channels=level_channels[0],
            level_channels=level_channels,
            num_blocks=num_blocks,
            attends_encoder=lambda resolution: resolution in attn_resolutions,
            attends_decoder=lambda resolution, index: resolution in attn_resolutions,
        )
        self.build_trunk(layout)
        self.out_norm = group_norm(self.channels_out, self.style.eps)
        self.out_conv = Conv2d(self.channels_out, out_channels, 3)

    def forward(self, x: Tensor, noise_label: Tensor, classes: Tensor | None = None) -> Tensor:
        embedding = self.map_layer1(silu(self.map_layer0(self.map_noise(noise_label))))
        if classes is not None:
            embedding = embedding + self.map_label(classes)
        return self.out_conv(silu(self.out_norm(self.trunk(x, silu(embedding)))))


NETWORKS = {"DhariwalUNet": DhariwalUNet}
