"""Where PyTorch computes."""

import torch

from edge_sampler.runtime.errors import UserError


def best_device() -> str:
    """CUDA's where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(name: str) -> torch.device:
    """The device of that name, such as ``cuda:1``. Raises UserError where PyTorch computes nothing there."""
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # each kind of device raises its own
        reason = str(error).split("\n", maxsplit=1)[0]
        raise UserError(f"--device {name}: PyTorch cannot use it ({reason})") from error
    return device
