"""The check before a bundle goes to a device, for a pipeline of deployment: is it whole, right, and fast enough?

    python examples/gate.py BUNDLE --milliseconds 20 --backend onnxrt

Run it on the device, or on its like. It takes NumPy and an engine library, no PyTorch. Exit status 1 if the bundle is
wrong or slow, and 2 if a file is damaged or missing.
"""

import time

import numpy as np

import edge_sampler
from edge_sampler.runtime.command_line import Parser, run_command
from edge_sampler.runtime.compare import within


def whole(bundle: edge_sampler.Bundle) -> str:
    """Reads every file that the manifest lists. Raises UserError for one that is not what it was."""
    for name in bundle.manifest["files"]:
        bundle.file(name)
    return f"{len(bundle.manifest['files'])} files, every SHA-256 as in the manifest"


def right(bundle: edge_sampler.Bundle, backend: str) -> tuple[bool, str]:
    """Holds what the backend makes against what PyTorch made at export."""
    found = edge_sampler.compare(bundle, backends=[backend])
    return within(found, None), f"largest relative difference {max(one.relative for one in found):.1e}"


def fast(bundle: edge_sampler.Bundle, backend: str, milliseconds: float, runs: int) -> tuple[bool, str]:
    """Times single samples, as a caller waits for them, the conditions' check and the noise included."""
    took = []
    with edge_sampler.load(bundle.folder, backend) as sampler:
        for seed in range(-3, runs):  # the first three warm up
            begun = time.perf_counter()
            sampler.sample([max(seed, 0)], **bundle.examples(1))
            took += [time.perf_counter() - begun] * (seed >= 0)
    late = 1e3 * float(np.percentile(took, 99))
    return late <= milliseconds, f"99 of 100 samples within {late:.2f} ms, on {sampler.description}"


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--milliseconds", type=float, required=True, help="that a sample may take, 99 times of 100")
    parser.add_argument("--backend", default="auto", help="default: auto, the best that this machine can run")
    parser.add_argument("--runs", type=int, default=200, help="timed samples (default: 200)")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        raise edge_sampler.UserError(f"--runs is {arguments.runs}; it must be at least 1")
    bundle = edge_sampler.Bundle.open(arguments.bundle)
    print(f"whole: {whole(bundle)}")
    is_right, told = right(bundle, arguments.backend)
    print(f"{'right' if is_right else 'WRONG'}: {told}")
    is_fast, told = fast(bundle, arguments.backend, arguments.milliseconds, arguments.runs)
    print(f"{'fast' if is_fast else 'SLOW'}: {told}")
    return 0 if is_right and is_fast else 1


if __name__ == "__main__":
    run_command(main)
