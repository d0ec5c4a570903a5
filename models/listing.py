"""The list of the models that are known by name. Every install prints all of it: a row says which package it needs."""

import json
from collections.abc import Callable
from functools import cache

from edge_sampler.models.published import HUB
from edge_sampler.models.zoo import GROUPS, ZooRow
from edge_sampler.runtime.cache_folder import cache_folder
from edge_sampler.runtime.condition import Shape
from edge_sampler.runtime.errors import UserError


def show() -> None:
    line = "{:23} {:9} {:>7} {:>15}  {:15} {}"
    print(line.format("name", "images", "classes", "parameters", "weights", "licence"))
    for group in GROUPS:
        print(f"\n{group.title}. Verified: {group.verified}.")
        for name, row in group.rows.items():
            shape = (row.architecture["img_channels"], *[row.architecture["img_resolution"]] * 2)
            count = counted(json.dumps(row.architecture))
            cells = (size(shape), row.architecture.get("label_dim") or "-", count, where(row), row.licence)
            print(line.format(name, *cells))
    print(f"\nFolders: {known(families)}")
    print(f"\nWeights that are not there are downloaded when first used, into {cache_folder()}")


def known(find: Callable[[], str]) -> str:
    """What ``find`` returns, or which package is missing for it."""
    try:
        return find()
    except (ModuleNotFoundError, UserError) as error:
        missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        return f"needs {missing.name}" if isinstance(missing, ModuleNotFoundError) else "?"


@cache
def counted(architecture: str) -> str:
    """The parameters of a network of these arguments, JSON."""

    def count() -> str:
        import torch

        from edge_sampler.models.architecture import build_known
        from edge_sampler.models.verify import parameters

        with torch.device("meta"):
            return parameters(build_known(json.loads(architecture)))

    return known(count)


def where(row: ZooRow) -> str:
    """Whether the weights are there."""

    def find() -> str:
        if row.source.startswith(HUB):
            from edge_sampler.models import pipeline

            there = pipeline.is_local(row.source.removeprefix(HUB))
        else:
            from edge_sampler.models.download import cached

            there = cached(row.source).is_file()
        return "downloaded" if there else "not downloaded"

    return known(find) if "://" in row.source else "shipped"


def families() -> str:
    """Which folders of other libraries can be loaded."""
    from edge_sampler.models.families import FAMILIES

    told = (f"{one.name}. Verified: {one.verified}.\n{', '.join(one.supported)}" for one in FAMILIES)
    return "\n\nFolders: ".join(told)


def size(shape: Shape) -> str:
    return "×".join(map(str, shape))
