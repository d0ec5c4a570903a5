"""Networks of latents without a pipeline: decoded by a VAE that the caller names.

``latents`` of an architecture are the mean and the deviation that make the VAE's own latents of what the network sees.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_sampler.models.checkpoint import weights_sha256
from edge_sampler.models.denoiser import Preconditioned, digest
from edge_sampler.models.families.libraries import class_of, load
from edge_sampler.models.families.parts import factor_of
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Output

VAE = "AutoencoderKL"


class Decode(nn.Module):
    """Latents as EDM2's networks see them, [n, c, h, w] → images [n, 3, H, W], about [-1, 1].

    Its VAE saw images in [0, 1], and so makes such.
    """

    def __init__(self, vae: Any, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.vae = vae
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        latents = x * self.get_buffer("std") + self.get_buffer("mean")
        return 2 * self.vae.decode(latents, return_dict=False)[0] - 1


def with_decoder(model: Preconditioned, latents: Any, folder: Path | None) -> None:
    """Sets the model's decoder and what it makes: images by the VAE in ``folder``, or latents, which a note says.

    Raises UserError for a VAE of other latents, and where ``latents`` has no mean and std of each channel.
    """
    channels, *size = model.spec.shape
    mean, std = (statistics(latents, key, channels) for key in ("mean", "std"))
    if folder is None:
        output = Output("latents", model.spec.shape, "of mean 0 and deviation 0.5")
        model.spec = replace(model.spec, output=output)
        note = "makes latents, no pictures; --vae FOLDER, a Stable Diffusion VAE, has them decoded"
        print(f"note: {model.spec.name} {note}", file=sys.stderr)
        return
    if (name := class_of(folder)) != VAE:
        raise UserError(f"--vae {folder} is {name}; the latents of {model.spec.name} are of Stable Diffusion's {VAE}")
    vae = load(folder, "diffusers", name)
    if (found := vae.config.latent_channels) != channels:
        raise UserError(
            f"--vae {folder} decodes latents of {found} channels; those of {model.spec.name} have {channels}"
        )
    model.decoder = Decode(vae, mean, std).eval().requires_grad_(False)
    height, width = (factor_of(vae) * one for one in size)
    facts = [model.spec.architecture, dict(vae.config), weights_sha256(model.decoder.state_dict())]
    output = Output("images", (vae.config.out_channels, height, width))
    model.spec = replace(model.spec, architecture=digest(facts), output=output)


def statistics(latents: Any, key: str, channels: int) -> Tensor:
    """[channels]. Raises UserError where the architecture does not hold them."""
    try:
        values = torch.tensor(np.asarray(latents[key], np.float32))
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"the architecture's latents have no {key} of {channels} numbers ({error})") from error
    if values.shape != (channels,) or not bool(torch.isfinite(values).all()):
        raise UserError(f"the architecture's latents have no {key} of {channels} numbers")
    return values
