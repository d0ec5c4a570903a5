"""One PyTorch export of the denoiser, its noise level an input."""

import contextlib
import io
import logging
import warnings

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass

from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.errors import UserError

OPSET = 21  # the first in which GroupNormalization is one node that engines take


def export_denoiser(model: Denoiser) -> ir.Model:
    """Graph: x float32 [batch, C, H, W], sigma float32 [], class_labels int64 [batch] if any → denoised, as x.

    The weights are the model's own tensors, not copies. Raises UserError for a network that fixes the batch size.
    """
    example = [torch.zeros(2, *model.spec.shape), torch.tensor(1.0)]
    batch = torch.export.Dim("batch")
    shapes: list[dict[int, torch.export.Dim] | None] = [{0: batch}, None]
    names = ["x", "sigma"]
    if model.spec.classes:
        example.append(torch.zeros(2, dtype=torch.int64))
        shapes.append({0: batch})
        names.append("class_labels")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), quiet_logs("torch.onnx"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            tuple(example),
            input_names=names,
            output_names=["denoised"],
            dynamic_shapes=tuple(shapes),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    exported = program.model
    denoised = exported.graph.outputs[0]
    if denoised.shape is None or isinstance(denoised.shape[0], int):
        raise UserError(
            f"{model.spec.name} computes with a fixed number of images, so that its graph takes no other: let its "
            "forward use x.shape[0] instead of len(x), and make no Python number of it"
        )
    DeduplicateInitializersPass()(exported)
    ClearMetadataAndDocStringPass()(exported)  # about 1.3 KB a node
    exported.graph.name = "denoiser"
    exported.producer_name, exported.producer_version = "edge-sampler", None
    return exported


@contextlib.contextmanager
def quiet_logs(name: str):  # type: ignore[no-untyped-def]
    """The exporter warns of optional packages that nobody here misses."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
