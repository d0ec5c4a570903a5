"""A cluster of two nodes, one of which dies half way: nothing is lost, nothing is there twice."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime import load
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.generate import command, on_ray
from edge_sampler.runtime.generate.job import RECORD
from tests.conftest import run_main

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'edge-sampler[ray]'")


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes on loopback beside a head that computes nothing."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        made.nodes = [made.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=made.address, log_to_driver=False)
        made.wait_for_nodes()
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def test_a_node_that_dies_half_way_loses_nothing(cluster: Any, made: Path, tmp_path: Path) -> None:
    written, count = list[str](), 16
    original = on_ray.on_ray

    def killing(*arguments: Any) -> Iterator[Any]:
        for shard in original(*arguments):
            written.append(shard.file)
            if len(written) == count // 2:
                cluster.remove_node(cluster.nodes[0], allow_graceful=False)
            yield shard

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "on_ray", killing)
        out = ("--out", str(tmp_path / "out"), "--workers", "2", "--ray", "auto")
        run_main(command.main, str(made), "--seeds", f"0-{4 * count - 1}", "--shard", "4", "--format", "npz", *out)
    assert sorted(written) == [f"shard-{index:06d}.npz" for index in range(count)]  # each once
    deadline = time.monotonic() + 120  # until the head knows
    while sum(node["Alive"] for node in ray.nodes()) == 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [node["Alive"] for node in ray.nodes()].count(False) == 1
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["complete"]
    found = [np.load(tmp_path / "out" / one["file"]) for one in record["shards"]]
    assert np.concatenate([one["seeds"] for one in found]).tolist() == list(range(4 * count))
    with load(made, "onnxrt") as sampler:
        expected = sampler.sample(range(4 * count))
    np.testing.assert_allclose(np.concatenate([one["images"] for one in found]), expected, atol=1e-6)


def test_an_error_of_a_task_is_the_users(cluster: Any, copy: Path, tmp_path: Path) -> None:
    (copy / "sampler.onnx").write_bytes(b"damaged")
    with pytest.raises(UserError, match="is not the file the manifest describes"):
        run_main(command.main, str(copy), "--seeds", "0-3", "--out", str(tmp_path / "out"), "--ray", "auto")


def test_no_cluster_is_one_clear_line(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no cluster answers"):
        run_main(command.main, str(made), "--seeds", "0-3", "--out", str(tmp_path / "out"), "--ray", "127.0.0.1:9")
