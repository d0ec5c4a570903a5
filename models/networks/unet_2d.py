"""The U-Net of diffusers' pipelines of images, https://huggingface.co/docs/diffusers/api/models/unet2d."""

from typing import Any

from torch import Tensor, nn

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.install import check_docstrings, install_command


class UNet2D(nn.Module):
    """x [n, in, r, r], noise label [n or 1], one-hot classes [n or 1, label_dim] or None → [n, out, r, r].

    ``config`` is that of diffusers' UNet2DModel. Raises UserError where diffusers is not installed, ValueError for a
    network that is not told a number on a continuous scale.
    """

    def __init__(
        self, img_resolution: int, in_channels: int, out_channels: int, label_dim: int = 0, **config: Any
    ) -> None:
        check_docstrings("diffusers")
        try:
            from diffusers import UNet2DModel
        except ImportError as error:
            raise UserError(
                f"networks of diffusers need that package: {install_command('diffusers')} ({error})"
            ) from error
        for argument, allowed in (("time_embedding_type", "positional"), ("class_embed_type", None)):
            if config.get(argument, allowed) != allowed:
                raise ValueError(f"{argument} is {config[argument]!r}; allowed: {allowed!r}")
        super().__init__()
        self.unet = UNet2DModel(
            sample_size=img_resolution,
            in_channels=in_channels,
            out_channels=out_channels,
            num_class_embeds=label_dim or None,
            **config,
        )
        if label_dim:
            self.unet.class_embedding = OneHotEmbedding(label_dim, self.unet.class_embedding.embedding_dim)

    def forward(self, x: Tensor, noise_label: Tensor, classes: Tensor | None = None) -> Tensor:
        # diffusers repeats the label for each image; taken as it came, a graph can compute its embedding beforehand
        with self.unet.time_proj.register_forward_pre_hook(lambda *_: (noise_label,)):
            return self.unet(x, noise_label, classes).sample


class OneHotEmbedding(nn.Embedding):
    """One-hot rows → rows of the table; zeros, which are no class, → zeros."""

    def forward(self, one_hot: Tensor) -> Tensor:
        return one_hot @ self.weight


NETWORKS = {"UNet2DModel": UNet2D}
