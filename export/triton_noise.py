"""The file that makes our noise in Triton's Python backend; it needs NumPy alone."""

import inspect

from edge_sampler.runtime import noise

BEFORE = f'''"""Seeds -> noise, at the temperature that the sampler is fitted for, as edge-sampler makes it.

Written by `python -m export triton`.
"""

import json
from collections.abc import Sequence

import numpy as np
import triton_python_backend_utils as pb_utils

SEEDS = {noise.SEEDS}
UserError = ValueError

'''
BEHIND = '''

class TritonPythonModel:
    def initialize(self, args):
        """Each size of the noise is a number, or an input, which of its axes, and how many times as long that is."""
        told = json.loads(args["model_config"])["parameters"]
        self.sizes = json.loads(told["shape"]["string_value"])
        self.temperature = float(told["temperature"]["string_value"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        def array(name):
            return pb_utils.get_input_tensor_by_name(request, name).as_numpy()

        shape = [size if isinstance(size, int) else array(size[0]).shape[1 + size[1]] // size[2] for size in self.sizes]
        try:
            made = noise_of([int(seed) for seed in array("seeds")[:, 0]], shape, self.temperature)
        except ValueError as error:
            return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("noise", made)])
'''


def model_file() -> str:
    ours = "\n\n".join(inspect.getsource(one) for one in (noise.unit_noise, noise.noise_of))
    return f"{BEFORE}\n{ours}{BEHIND}"
