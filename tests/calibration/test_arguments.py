"""What a command's arguments come to: an option that would change nothing is refused."""

import argparse

import pytest

from edge_sampler.calibration.arguments import add_settings_arguments, settings
from edge_sampler.calibration.settings import Settings
from edge_sampler.runtime.errors import UserError

MEASURED = ("--fine-steps", "--reference-steps", "--fit-batch", "--heldout", "--seed", "--temperature")
FITTED = ("--ridge", "--history")


def settings_of(*options: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_settings_arguments(parser)
    return settings(parser.parse_args(["--nfe", "5", *options]))


@pytest.mark.parametrize("option", [*MEASURED, *FITTED])
def test_a_fixed_solver_on_fixed_levels_takes_no_option_of_a_fit(option: str) -> None:
    told = f"^{option} changes nothing: ddim is a fixed solver; leave it out$"
    for levels in ((), ("--schedule", "edm")):
        with pytest.raises(UserError, match=told):
            settings_of("--solver", "ddim", *levels, option, "3")


@pytest.mark.parametrize("measuring", [("--schedule", "chosen"), ("--afs",), ("--refine", "1")], ids=str)
@pytest.mark.parametrize(
    "option", [option for option in MEASURED if option not in ("--fine-steps", "--reference-steps")]
)
def test_it_takes_noises_where_something_is_measured_on_them(option: str, measuring: tuple[str, ...]) -> None:
    name = option.removeprefix("--").replace("-", "_")
    assert getattr(settings_of("--solver", "ddim", *measuring, option, "3"), name) == 3


def test_fine_steps_that_nothing_takes_are_refused() -> None:
    """Chosen levels have others, which the global target aims at. A fixed grid's trajectory has so many a step."""
    chosen = ("--solver", "iia-ddim", "--schedule", "chosen", "--fit-target", "global")
    for unused in ((), ("--solver", "auto", "--schedule", "chosen"), chosen):
        with pytest.raises(
            UserError, match=r"^--fine-steps 20 changes nothing: chosen levels have fine steps of their "
        ):
            settings_of(*unused, "--fine-steps", "20")
    for used in (("--fit-target", "local"), ("--schedule", "edm"), ("--solver", "iia-ddim"), chosen[:4]):
        assert settings_of(*used, "--fine-steps", "20").fine_steps == 20
