"""Lists the models that are known by name, or verifies one.

python -m models list
python -m models verify edm-digits
python -m models verify edm-cifar10-32x32-uncond-vp.pkl
python -m models.train --help    # trains those that ship
"""

import argparse

from edge_sampler.models.listing import show
from edge_sampler.runtime.command_line import Parser, given


def main() -> None:
    parser = Parser(prog="python -m models", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="the models that are known by name").set_defaults(run=lambda arguments: show())
    command = commands.add_parser("verify", help="what a model is, and whether it removes noise")
    command.add_argument("model", help="a name of the list, or a file")
    command.add_argument("--weights", help="load this checkpoint in place of the model's own")
    command.add_argument("--conditions", metavar="FILE.npz", help="examples of its conditions, [rows, …] by name")
    command.set_defaults(run=verified)
    arguments = parser.parse_args()
    arguments.run(arguments)


def verified(arguments: argparse.Namespace) -> None:
    from edge_sampler.models.loading import load  # late: listing needs no PyTorch
    from edge_sampler.models.own import with_examples
    from edge_sampler.models.verify import verify

    model = load(arguments.model, arguments.weights)
    if arguments.conditions:
        with_examples(model, given([arguments.conditions]))
    verify(model)
