"""What a bundle is to make."""

from dataclasses import dataclass

from edge_sampler.export.canvas import OUTPUTS
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Output

MOST_SAMPLES = 4096  # of one picture


@dataclass(frozen=True)
class Form:
    """The form of a bundle's graph.

    Args:
        dtype: the output's type: "float32", or "uint8" [batch, H, W, C] for pictures.
        samples: the number of samples in samples.png.
        encode: whether the model's encoder is part of the graph; else the caller runs the encoder.
        decode: the same for the decoder.

    Raises:
        UserError: for a value out of range.

    Examples:
        >>> form = edge_sampler.Form(dtype="uint8")
        >>> edge_sampler.export_bundle(model, plan, "pictures", form).difference.finite
        True
        >>> edge_sampler.Bundle.open("pictures").dtype
        'uint8'
    """

    dtype: str = OUTPUTS[0]
    samples: int = 16
    encode: bool = True
    decode: bool = True

    def __post_init__(self) -> None:
        if self.dtype not in OUTPUTS or not 1 <= self.samples <= MOST_SAMPLES:
            raise UserError(
                f"output is {self.dtype!r} and samples {self.samples}; allowed: {', '.join(OUTPUTS)}, and 1 to "
                f"{MOST_SAMPLES}"
            )


def output_of(model: Denoiser, form: Form) -> Output:
    """What a sampler of this form makes. Raises UserError where it cannot be as ``form.dtype`` says."""
    for option, asked, stage in (("encode", form.encode, model.encoder), ("decode", form.decode, model.decoder)):
        if not asked and stage is None:
            raise UserError(f"no-{option}: {model.spec.name} has no {option}r to leave out")
    bare = model.decoder is not None and not form.decode
    output = Output("samples", model.spec.inputs.shape, "the decoder's input") if bare else model.spec.output
    if form.dtype == "uint8" and not output.is_image:
        raise UserError(f"output uint8 is for pictures of 1 or 3 channels; {model.spec.name} makes {output.name}")
    return output
