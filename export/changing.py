"""Who changes a finished bundle is alone, and changes the one that he read."""

from collections.abc import Iterator
from contextlib import contextmanager

from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.lock import locked
from edge_sampler.runtime.signature import settle

LOCK = ".lock"


@contextmanager
def changing(bundle: Bundle) -> Iterator[None]:
    """Raises UserError where another process changes the bundle at the same time, or did since it was opened."""
    with locked(bundle.folder / LOCK, f"another process adds to {bundle.folder}: wait for it, and start again"):
        if Bundle.open(bundle.folder).manifest != bundle.manifest:
            raise UserError(f"{bundle.folder} was changed meanwhile, by another process: start again")
        settle(bundle.folder)  # what another, who died, began
        try:
            yield
        finally:
            settle(bundle.folder)
