"""What exporting each model of the zoo costs, with random weights, so that nothing is downloaded.

python -m export.zoo_page --out docs/models.md --force
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from edge_sampler.models.architecture import build
from edge_sampler.models.families import FAMILIES
from edge_sampler.models.listing import size
from edge_sampler.models.progress import bar
from edge_sampler.models.verify import parameters
from edge_sampler.models.zoo import GROUPS, ZOO
from edge_sampler.runtime.command_line import Parser, run_command
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.output import writable

PAGE = """# The models that are known by name

`python -m models list` shows them, and which are downloaded; `python -m models verify NAME` looks into one. The costs
of an export at NFE {nfe} (seconds, peak memory of the process, size) are from

```sh
# takes minutes
python -m export.zoo_page --nfe {nfe} --out docs/models.md --force
```

with random weights, on a CPU. Seconds are of one machine, from the loaded model to the checked files. How far
each family is from its own library: [parity.md](parity.md).

{groups}
## Folders of other libraries

{families}

Any other EDM checkpoint, pipeline of diffusers, or network of your own: [your-model.md](your-model.md).
"""


COLUMNS = (
    "name",
    "images",
    "classes",
    "parameters",
    "seconds",
    "peak memory",
    "sampler.onnx",
    "nodes an evaluation",
    "weights' licence",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}\n"


def main() -> None:
    parser = Parser(prog="python -m export.zoo_page", description=__doc__)
    parser.add_argument("--nfe", type=int, default=10, help="default: 10")
    parser.add_argument("--models", default=",".join(ZOO), help="such as edm-ffhq,edm-digits (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="the page to write, Markdown")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    names = arguments.models.split(",")
    unknown = [name for name in names if name not in ZOO]
    if unknown:
        raise UserError(f"unknown model {unknown[0]!r}; known: {', '.join(ZOO)}")
    if arguments.nfe < 1:
        raise UserError(f"--nfe is {arguments.nfe}; it must be at least 1")
    with writable(arguments.out, arguments.force) as path, bar("models", len(names)) as advance:
        groups = ""
        for group in GROUPS:
            rows = []
            for name in [name for name in names if name in group.rows]:
                rows.append(row(name, measured(name, arguments.nfe)) + "\n")
                advance(1)
            if rows:
                groups += f"## {group.title}\n\nVerified: {group.verified}.\n\n{HEAD}{''.join(rows)}\n"
        families = "\n".join(
            f"- **{one.name}**: {', '.join(one.supported)}. Verified: {one.verified}." for one in FAMILIES
        )
        path.write_text(PAGE.format(nfe=arguments.nfe, groups=groups, families=families))


def measured(name: str, nfe: int) -> dict[str, Any]:
    """One export in a process of its own, so that its peak memory is its own."""
    cost = [sys.executable, "-m", "edge_sampler.export.export_cost", "--model", name, "--random-weights"]
    command = [*cost, "--measure", str(nfe)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def row(name: str, cost: dict[str, Any]) -> str:
    with torch.device("meta"):
        network = build(ZOO[name].architecture, name)
    cells = (
        f"`{name}`",
        size(network.shape),
        network.classes or "",
        parameters(network),
        f"{cost['seconds']:.0f}",
        f"{cost['peak'] / 1e9:.1f} GB",
        f"{cost['bytes'] / 1e6:.0f} MB" if cost["bytes"] > 1e7 else f"{cost['bytes'] / 1e6:.1f} MB",
        f"{cost['nodes']:.0f}",
        ZOO[name].licence,
    )
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    run_command(main)
