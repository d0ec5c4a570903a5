"""How often an export has a network's weights in memory, measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import re, sys
from pathlib import Path
import torch
from torch import nn
from edge_sampler import models
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.settings import Settings
from edge_sampler.export import assemble

class Wide(nn.Module):
    def __init__(self, width):
        super().__init__()
        sizes = [32, *[width] * 6, 32]
        self.layers = nn.Sequential(*(nn.Linear(*pair) for pair in zip(sizes, sizes[1:])))

    def forward(self, x, noise):
        return self.layers(x) + noise.reshape(-1, 1)

def peak_of(width):
    model = models.adapt(Wide(width), (32,))
    assemble.export_bundle(model, calibrate(model, Settings(2, "ddim")), f"{sys.argv[1]}/{width}")
    # This program's own; ru_maxrss remembers what its parent had.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

assemble.INLINE_LIMIT = 0
before = peak_of(64)
print((peak_of(2048) - before) / (4 * 5 * 2048**2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_export_has_the_weights_twice_in_memory(tmp_path: Path) -> None:
    """PyTorch's, and those that ONNX Runtime maps in the check; 84 MB of them, the largest layer a fifth."""
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    found = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert 1.5 < found < 2.6
