"""Which backend runs a bundle: the best that can, or the one that is named."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from edge_sampler.runtime.backends import BACKENDS, choose
from edge_sampler.runtime.backends.base import Backend
from edge_sampler.runtime.errors import UserError

BUNDLE: Any = SimpleNamespace(precisions=["fp32", "fp16"])


def backend(name: str, lacks: str | None = None, unable: str | None = None) -> Backend:
    def runs(bundle: Any, precision: str | None) -> str | None:
        assert (bundle, lacks) == (BUNDLE, None)  # it is asked of what is here alone
        return None if precision == "fp16" else unable

    return Backend(name, 0, lambda: lacks, runs, lambda *_: None, None, False)  # type: ignore[arg-type]


def test_backends_are_in_the_order_of_their_ranks() -> None:
    ranks = [one.rank for one in BACKENDS.values()]
    assert ranks == sorted(ranks)
    assert {"tensorrt-rtx", "tensorrt", "onnxrt"} <= set(BACKENDS)
    assert list(BACKENDS).index("tensorrt") < list(BACKENDS).index("onnxrt")
    assert all(name == one.name for name, one in BACKENDS.items())


def test_the_first_that_can_is_chosen() -> None:
    known = [backend("a", lacks="no GPU"), backend("b", unable="no engine"), backend("c"), backend("d")]
    chosen = partial(choose, BUNDLE, known={one.name: one for one in known})
    assert chosen().name == "c"
    assert chosen(precision="fp16").name == "b"
    assert chosen("d").name == "d"
    for name, told in (
        ("a", "a cannot run this bundle here: no GPU"),
        ("b", "b cannot run this bundle here: no engine"),
    ):
        with pytest.raises(UserError, match=f"^{told}$"):
            chosen(name)
    for name in ("e", "", "Auto"):
        with pytest.raises(UserError, match=rf"^unknown backend '{name}'; known: auto, a, b, c, d$"):
            chosen(name)


def test_where_none_can_each_says_why() -> None:
    known = [backend("a", lacks="no GPU"), backend("b", unable="no engine")]
    chosen = partial(choose, BUNDLE, known={one.name: one for one in known})
    told = "b cannot run this bundle here: no engine; a cannot run this bundle here: no GPU"
    with pytest.raises(UserError, match=f"^{told}$"):
        chosen()


def test_a_precision_that_the_bundle_has_not_is_one_reason_for_all() -> None:
    told = "the bundle has no precision 'xx'; it has fp32, fp16: name one of them, or add another with python -m export"
    with pytest.raises(UserError, match=f"^{told} engine BUNDLE --precision NAME$"):
        choose(BUNDLE, precision="xx")
