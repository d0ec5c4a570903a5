"""A served bundle whose calls choose a length, and that is told a text."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edge_sampler
from edge_sampler import Condition, Text, runtime
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.settings import Settings
from edge_sampler.export.assemble import export_bundle
from edge_sampler.runtime.noise import unit_noise
from tests.runtime.serving import Served, asked, eventually, serving
from tests.runtime.test_text import LENGTH, WORDS, tokenizer

Request = dict[str, Any]


class Voice(torch.nn.Module):
    """(x [n, length, 2], σ, prompt [n, 4], loud [n, length]) → what it takes for clean."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(len(WORDS), 2)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, prompt: torch.Tensor, loud: torch.Tensor) -> torch.Tensor:
        told = self.words.weight[prompt].mean(1)  # rows that an export does not count, as it does those of self.words()
        return torch.tanh(x / (1 + sigma[:, None, None]) + told[:, None]) * loud[..., None]


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    words = tokenizer()
    words.add_tokens(["moon"])
    prompt = Condition((LENGTH,), "int64", text=Text.of(words.to_str()))
    model = edge_sampler.adapt(
        Voice(),
        ("length", 2),
        conditions={"prompt": prompt, "loud": Condition(("length",))},
        axes={"length": (2, 4, 8)},
        examples={"prompt": ["a red heart", "a blue star"], "loud": np.ones((2, 4), np.float32)},
    )
    out = tmp_path_factory.mktemp("voice") / "voice"
    export_bundle(model, calibrate(model, Settings(1, "ddim", schedule="edm")), out)
    return out


@pytest.fixture(scope="module")
def served(voice: Path) -> Iterator[Served]:
    """Of a copy that is gone: all that it takes, its tokenizer too, was read when it was loaded."""
    gone = voice.parent / "gone" / "voice"
    shutil.copytree(voice, gone)
    with serving([gone]) as served:
        shutil.rmtree(gone)
        yield served


def request(seed: int, text: str, length: int) -> Request:
    return {"seeds": [seed], "prompt": [text], "loud": np.linspace(seed, 1, length, dtype=np.float32)[None]}


def alone(voice: Path, requests: list[Request]) -> list[np.ndarray]:
    with runtime.load(voice) as sampler:
        return [sampler.sample(one["seeds"], prompt=one["prompt"], loud=one["loud"]) for one in requests]


def test_only_equal_shapes_share_a_run(voice: Path, served: Served) -> None:
    lengths = (4, 6, 4, 6, 4, 2)
    requests = [request(seed, ("a red heart", "star")[seed % 2], length) for seed, length in enumerate(lengths)]
    before = len(served.gate.runs)
    with ThreadPoolExecutor(8) as pool, served.held():
        made = [pool.submit(served.infer, "voice", one) for one in requests]
        eventually(
            lambda: (
                served.metric("queue_images", model="voice") + sum(map(len, served.gate.runs[before:])) == len(requests)
            )
        )
        served.gate.opened.set()
        for future, wanted in zip(made, alone(voice, requests), strict=True):
            np.testing.assert_array_equal(future.result().array, wanted)
    runs = served.gate.runs[before:]
    assert all(len({row.shape for row in rows}) == 1 for rows in runs)
    assert 3 <= len(runs) <= 5  # of three lengths; one run began before the others came


def test_sizes_that_disagree(voice: Path, served: Served) -> None:
    (told,) = requests = [request(1, "star", 6)]
    (wanted,) = alone(voice, requests)
    noise = {**told, "noise": unit_noise([1], (6, 2))}
    del noise["seeds"]
    np.testing.assert_array_equal(served.infer("voice", noise).array, wanted)
    np.testing.assert_array_equal(served.infer("voice", told, parameters={"length": 6}).array, wanted)
    for inputs, more, message in (
        (told, {"parameters": {"length": 5}}, "length is 5, and another condition has 6"),
        (told, {"parameters": {"length": [6]}}, "length is [6]"),
        ({**noise, "noise": unit_noise([1], (5, 2))}, {}, "length is 5, and another condition has 6"),
        (noise, {"parameters": {"length": 5}}, "the parameter length is 5, and noise has 6"),
        (request(1, "star", 9), {}, "9 of length; this sampler takes 2 to 8"),
    ):
        answer = served.infer("voice", inputs, **more)
        assert (answer.status, message in answer.error) == (400, True), answer.error


def test_text_is_bytes_and_ids_are_int64(voice: Path, served: Served) -> None:
    texts = {"seeds": [3, 4], "prompt": ["a red heart", "star"], "loud": np.ones((2, 4), np.float32)}
    (wanted,) = alone(voice, [texts])
    np.testing.assert_array_equal(served.infer("voice", texts).array, wanted)
    np.testing.assert_array_equal(
        served.infer("voice", {**texts, "prompt": [[2, 3, 4, 0], [6, 0, 0, 0]]}).array, wanted
    )
    told = b"a red heart"
    head = asked({"seeds": [3], "prompt": ["…"], "loud": np.ones((1, 4), np.float32)})
    head["inputs"][1] = {"name": "prompt", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 15}}
    written = json.dumps(head).encode()
    length = {"Inference-Header-Content-Length": str(len(written))}
    body = written + len(told).to_bytes(4, "little") + told
    np.testing.assert_array_equal(served.ask("/v2/models/voice/infer", body, headers=length).array, wanted[:1])
    assert "has 5 tokens" in served.infer("voice", request(3, "a red heart a star", 4)).error
    lone = json.dumps(asked(request(3, "X", 4))).replace('"X"', '"\\ud800"')
    assert "surrogates not allowed" in served.ask("/v2/models/voice/infer", lone).error
    assert "no pictures" in served.ask("/v2/models/voice/image?seed=1").error


def test_a_request_that_fails_in_the_run_fails_alone(voice: Path, served: Served) -> None:
    """A word that the tokenizer has and the network has not, which nothing tells before."""
    fine = [request(seed, "a blue star", 4) for seed in (1, 2)]
    bad = request(3, "moon", 4)
    before = len(served.gate.runs)
    with ThreadPoolExecutor(4) as pool, served.held():
        first = pool.submit(served.infer, "voice", fine[0])
        eventually(lambda: len(served.gate.runs) > before)
        others = [pool.submit(served.infer, "voice", one) for one in (bad, fine[1])]
        eventually(lambda: served.metric("queue_images", model="voice") == 2)
        served.gate.opened.set()
        wanted = alone(voice, fine)
        np.testing.assert_array_equal(first.result().array, wanted[0])
        np.testing.assert_array_equal(others[1].result().array, wanted[1])
        assert (others[0].result().status, "could not run" in others[0].result().error) == (500, True)
    assert max(len(rows) for rows in served.gate.runs[before:]) == 2  # they did share a run


def test_what_the_model_takes(served: Served) -> None:
    known = served.ask("/v2/models/voice").json
    shapes = {one["name"]: (one["datatype"], one["shape"]) for one in known["inputs"]}
    assert shapes == {"seeds": ("INT64", [-1]), "prompt": ("BYTES", [-1]), "loud": ("FP32", [-1, -1])}
    assert known["outputs"] == [{"name": "samples", "datatype": "FP32", "shape": [-1, -1, 2]}]
    assert known["parameters"]["axes"] == {"length": [2, 4, 8]}
