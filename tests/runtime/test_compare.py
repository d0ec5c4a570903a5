"""When two paths agree: by the largest difference, and in lower precision by the median sample as well."""

import numpy as np
import pytest

from edge_sampler.runtime.compare import Trajectory, _differences, within
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan

PLAN = Plan("ddim", (1.0,), ((1.0,), (0.5, 0.5)))
EXACT = np.random.default_rng(0).normal(size=(16, 1, 8, 8)).clip(-1, 1)


def agree(made: np.ndarray, rms_tolerance: float = 0.03) -> bool:
    """Of an eight-bit path whose images were off by 0.01 RMS, and by 0.1 at the most, when that was measured."""
    low = Trajectory(PLAN, made[None], made, 0.3, rms_tolerance, "int8")
    found = _differences("images", "onnxrt", low, "PyTorch", Trajectory(PLAN, EXACT[None], EXACT, 1e-4))
    assert [one.stage for one in found] == ["denoised 0", "images"]
    assert {one.precisions for one in found} == {("int8", "fp32")}
    assert [one.expected_median for one in found] == [np.inf, rms_tolerance]  # of what is made alone
    return within(found, None)


def test_rounding_passes_and_another_graph_does_not() -> None:
    """Though the largest difference of the latter, 0.2, is within three times the measured one."""
    rounding = 0.01 * np.random.default_rng(1).normal(size=EXACT.shape)
    assert agree(EXACT + rounding)
    assert not agree(EXACT + 0.2 * np.sign(rounding))
    assert agree(EXACT + 0.2 * np.sign(rounding), np.inf)  # of a bundle that does not tell


def test_one_sample_whose_path_parts_fails_nothing() -> None:
    parted = EXACT.copy()
    parted[3] += 0.25
    assert np.sqrt(np.square(parted - EXACT).mean()) > 0.03
    assert agree(parted)
    parted[4] += 0.35
    assert not agree(parted)


@pytest.mark.parametrize(("tolerance", "passes"), [(0.25, True), (0.1, False)])
def test_a_tolerance_that_is_given_is_of_the_largest_alone(tolerance: float, passes: bool) -> None:
    low = Trajectory(PLAN, None, EXACT + 0.2, 0.3, 0.03, "int8")
    found = _differences("images", "onnxrt", low, "PyTorch", Trajectory(PLAN, None, EXACT, 1e-4))
    assert within(found, tolerance) == passes


def test_paths_whose_samples_have_other_shapes_are_told_apart() -> None:
    exact, other = (Trajectory(PLAN, None, made, 1e-4) for made in (EXACT, EXACT[:, :, :4]))
    with pytest.raises(UserError, match=r"images is \[16, 1, 4, 8\] by a and \[16, 1, 8, 8\] by b: export it again"):
        _differences("images", "a", other, "b", exact)
