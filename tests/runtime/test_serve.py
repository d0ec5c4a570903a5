"""Bundles over HTTP: what is answered is what the sampler makes, whoever asks at the same time."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_sampler import runtime
from edge_sampler.runtime.images import png, to_uint8
from edge_sampler.runtime.noise import unit_noise
from tests.runtime.serving import Served, alone, asked, eventually, serving

ROOT = Path(__file__).parent.parent.parent
HEAD = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def served(made: Path, conditional: Path) -> Iterator[Served]:
    """Both: digits (float32), and tiny (uint8, with classes)."""
    with serving([made, conditional]) as served:
        yield served


@pytest.fixture(scope="module")
def expected(made: Path) -> np.ndarray:
    """The images of seeds 0 to 63, each made alone."""
    return alone(made)


def test_concurrent_requests_share_runs_and_get_their_own_images(
    made: Path, conditional: Path, expected: np.ndarray
) -> None:
    requests = [(seed, 1 + seed % 3) for seed in range(0, 48, 3)]  # a seed, and how many
    with runtime.load(conditional) as sampler:
        of_classes = {one: sampler.sample([one[0]], class_labels=one[1]) for one in [(s, s % 10) for s in range(12)]}
    with ThreadPoolExecutor(32) as pool, serving([made, conditional], shut=True) as served:
        digits = [pool.submit(served.infer, "digits", {"seeds": range(seed, seed + n)}) for seed, n in requests]
        tiny = {
            one: pool.submit(served.infer, "tiny", {"seeds": [one[0]], "class_labels": [one[1]]}) for one in of_classes
        }
        total = sum(count for _, count in requests)
        eventually(lambda: served.metric("queue_images", model="digits") >= total - 4)  # four are in the first run
        served.gate.opened.set()
        for (seed, count), future in zip(requests, digits, strict=True):
            np.testing.assert_array_equal(future.result().array, expected[seed : seed + count])
        for one, future in tiny.items():
            np.testing.assert_array_equal(future.result().array, of_classes[one])
        assert served.metric("batch_images_sum", model="digits") == total
        assert served.metric("batch_images_count", model="digits") <= 1 + (total + 3) // 4
        assert served.metric("requests_total", model="tiny", outcome="ok") == len(tiny)
        assert served.metric("requests_total", model="digits", outcome="ok") == len(requests)
    assert max(len(rows) for rows in served.gate.runs) == 4  # --batch


def test_a_kserve_client_gets_the_same_images(served: Served, expected: np.ndarray, conditional: Path) -> None:
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(f"127.0.0.1:{served.port}", network_timeout=60)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("digit")
    assert [one["name"] for one in client.get_model_repository_index()] == ["digits", "tiny"]
    known = client.get_model_metadata("tiny")
    assert [one["name"] for one in known["inputs"]] == ["seeds", "class_labels"]
    assert known["outputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 16, 16, 3]}]

    def infer(model: str, arrays: dict[str, np.ndarray], binary: bool, named: bool) -> np.ndarray:
        names = {"int64": "INT64", "float32": "FP32"}
        inputs = [http.InferInput(name, a.shape, names[a.dtype.name]) for name, a in arrays.items()]
        for one, array in zip(inputs, arrays.values(), strict=True):
            one.set_data_from_numpy(array, binary_data=binary)
        outputs = [http.InferRequestedOutput("images", binary_data=binary)] if named else None
        answer = client.infer(model, inputs, outputs=outputs, request_id="7")
        assert answer.get_response()["id"] == "7"
        return answer.as_numpy("images")

    with runtime.load(conditional) as sampler:
        wanted = sampler.sample([5, 6], class_labels=[1, 2])
    for binary in (False, True):
        for named in (False, True):
            np.testing.assert_array_equal(infer("digits", {"seeds": np.array([7, 9])}, binary, named), expected[[7, 9]])
            asked_for = {"seeds": np.array([5, 6]), "class_labels": np.array([1, 2])}
            np.testing.assert_array_equal(infer("tiny", asked_for, binary, named), wanted)
        noise = {"noise": unit_noise([7, 9], (1, 8, 8))}
        np.testing.assert_array_equal(infer("digits", noise, binary, True), expected[[7, 9]])
    seed = http.InferInput("seeds", [1], "INT64").set_data_from_numpy(np.array([7]))
    with pytest.raises(Exception, match="unknown output 'pictures'"):
        client.infer("digits", [seed], outputs=[http.InferRequestedOutput("pictures")])


def test_bytes_as_they_are_documented(served: Served, expected: np.ndarray) -> None:
    head = (
        b'{"id":"a","inputs":[{"name":"seeds","shape":[2],"datatype":"INT64","parameters":{"binary_data_size":16}}],'
        b'"parameters":{"binary_data_output":true}}'
    )
    data = (7).to_bytes(8, "little") + (9).to_bytes(8, "little")
    answer = served.ask("/v2/models/digits/infer", head + data, headers={HEAD: str(len(head))})
    assert answer.headers["content-type"] == "application/octet-stream"
    told = json.loads(answer.body[: int(answer.headers[HEAD.lower()])])
    described = {"name": "images", "datatype": "FP32", "shape": [2, 1, 8, 8], "parameters": {"binary_data_size": 512}}
    assert told == {"model_name": "digits", "model_version": "1", "id": "a", "outputs": [described]}
    assert answer.body[-512:] == expected[[7, 9]].tobytes()


def test_pictures(served: Served, expected: np.ndarray, conditional: Path) -> None:
    with Image.open(BytesIO(served.ask("/v2/models/digits/image?seed=7").body)) as picture:
        np.testing.assert_array_equal(np.asarray(picture), to_uint8(expected[7:8])[0, :, :, 0])
    with runtime.load(conditional) as sampler:
        (wanted,) = sampler.sample([7], class_labels=3)
    answer = served.ask("/v2/models/tiny/image?seed=7&class_labels=3")
    assert answer.headers["content-type"] == "image/png"
    with Image.open(BytesIO(answer.body)) as picture:
        np.testing.assert_array_equal(np.asarray(picture), wanted)
        assert "Comment" not in picture.info
    with Image.open(BytesIO(png(wanted, "RANDOM WEIGHTS"))) as picture:
        assert picture.info["Comment"] == "RANDOM WEIGHTS"
    for query, message in (
        ("", "seed is missing"),
        ("?seed=1.5", "seed is '1.5'; give a whole number"),
        ("?seed=seven", "seed is 'seven'; give a whole number"),
        ("?seed=true", "seed is 'true'"),
        ("?seed=-1", "out of range"),
        ("?seed=1&seed=2", "'seed' is given twice"),
        ("?seed=1", "class_labels is missing"),
        ("?seed=1&class_labels=10", "out of range"),
        ("?seed=1&class_labels=1,2", "one or 1"),
        ("?seed=1&class_labels=secret.npy", "must be a number"),
        ("?seed=1&class_label=1", "did you mean 'class_labels'"),
    ):
        answer = served.ask(f"/v2/models/tiny/image{query}")
        assert (answer.status, message in answer.error) == (400, True), answer.error


def test_the_page_needs_nothing_from_elsewhere(served: Served) -> None:
    page = served.ask("/")
    text = page.body.decode()
    assert not re.search(r"https?:|//\w|@import|\bsrc=|\bhref=", text)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "width=device-width" in text
    assert "color-scheme: light dark" in text


def seeds(data: Any = (7,), datatype: Any = "INT64", shape: Any = (1,), **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "seeds", "shape": shape, "datatype": datatype, "data": data, **more}]}


BAD: list[tuple[str, Any, str]] = [
    ("digits", "{", "not JSON"),
    ("digits", b"\xff\xfe", "not JSON"),
    ("digits", "[]", "must be an object"),
    ("digits", "[" * 100_000, "nested too deep"),
    ("digits", {}, "inputs must be a list"),
    ("digits", {"inputs": []}, "at least one"),
    ("digits", {"inputs": [7]}, "inputs must be a list of objects"),
    ("digits", {"inputs": [{}]}, "name null"),
    ("digits", {"inputs": [{"name": "seeds"}]}, "shape null"),
    ("digits", {**seeds(), "id": 7}, "id is 7"),
    ("digits", {**seeds(), "parameters": []}, "must be an object"),
    ("digits", {**seeds(), "parameters": {"binary_data_output": 1}}, "must be true or false"),
    ("digits", {**seeds(), "parameters": {"priority": 1}}, "unknown parameter 'priority'"),
    ("digits", {**seeds(), "outputs": [{"name": "pictures"}]}, "unknown output 'pictures'; this model makes images"),
    ("digits", {**seeds(), "outputs": [{"name": "images", "parameters": {"classification": 2}}]}, "allowed: binary"),
    ("digits", {"inputs": seeds()["inputs"] * 2}, '"seeds" twice'),
    ("digits", asked({"seeds": [1], "class_labels": [1]}), "unknown input 'class_labels'"),
    ("digits", {"inputs": [{**seeds()["inputs"][0], "name": "seed"}]}, "give seeds"),
    ("digits", asked({"seeds": [1], "noise": np.zeros((1, 1, 8, 8), np.float32)}), "one of the two"),
    ("digits", seeds(shape=[-1]), "list of whole numbers"),
    ("digits", seeds(shape=[1.0]), "list of whole numbers"),
    ("digits", seeds(shape=[2]), "which is not its shape"),
    ("digits", seeds(shape=[2**62, 2**62]), "which no array can have"),
    ("digits", seeds(shape=[1, 1]), "it must be INT64 [n]"),
    ("digits", seeds(shape=[0], data=[]), "0 images are asked for; one request takes 1 to 64"),
    ("digits", seeds(shape=[65], data=[*range(65)]), "65 images are asked for"),
    ("digits", seeds(shape=[4], data=[[1, 2, 3, 4]]), "data of shape [1, 4]"),
    ("digits", seeds(shape=[3], data=[[1, 2], [3]]), "rows of different lengths"),
    ("digits", seeds(data="7"), "it must be a list"),
    ("digits", seeds(data=["7"]), "is INT64 and holds str"),
    ("digits", seeds(data=[True]), "is INT64 and holds bool"),
    ("digits", seeds(data=[7.0]), "is INT64 and holds float"),
    ("digits", seeds(data=[None]), "is INT64 and holds NoneType"),
    ("digits", seeds(data=[-1]), "seed -1 is out of range"),
    ("digits", seeds(data=[2**63]), "holds what is no INT64"),
    ("digits", seeds(datatype="INT32"), "seeds is INT32; it must be INT64 [n]"),
    ("digits", seeds(datatype="INT128"), "allowed: BOOL"),
    ("digits", seeds(datatype=["INT64"]), "allowed: BOOL"),
    ("digits", seeds(datatype="BYTES", data=["7"]), "seeds is BYTES"),
    ("digits", seeds(parameters={"shared_memory_region": "x"}), "allowed: binary_data_size"),
    ("digits", seeds(parameters={"binary_data_size": 8}), "give one of them"),
    ("digits", asked({"noise": np.zeros((1, 1, 8, 9), np.float32)}), "it must be FP32 [n, 1, 8, 8]"),
    ("digits", asked({"noise": np.full((1, 1, 8, 8), np.nan, np.float32)}), "NaN is no number"),
    ("digits", json.dumps(asked({"noise": np.ones((1, 1, 8, 8), np.float32)})).replace("1.0", "1e39"), "beyond FP32"),
    ("tiny", seeds(), "class_labels is missing"),
    ("tiny", asked({"seeds": [1, 2], "class_labels": [1]}), "class_labels has shape [1]; it must be INT64 [2]"),
    ("tiny", {"inputs": [*seeds()["inputs"], {**seeds(shape=[])["inputs"][0], "name": "class_labels"}]}, "shape []"),
    ("tiny", asked({"seeds": [1], "class_labels": [10]}), "class_labels holds 10"),
    ("tiny", asked({"seeds": [1], "class_labels": [1.0]}), "class_labels is FP32"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "body", "message"), BAD, ids=[f"{n}-{one[2]}"[:40] for n, one in enumerate(BAD)])
def test_bad_requests(model: str, body: Any, message: str, served: Served) -> None:
    answer = served.ask(f"/v2/models/{model}/infer", body if isinstance(body, str | bytes) else json.dumps(body))
    assert (answer.status, message in answer.error) == (400, True), answer.error


def sized(size: Any, data: bytes = bytes(8), **more: Any) -> tuple[bytes, bytes]:
    one = {"name": "seeds", "shape": [1], "datatype": "INT64", "parameters": {"binary_data_size": size}, **more}
    return json.dumps({"inputs": [one]}).encode(), data


@pytest.mark.parametrize(
    ("parts", "length", "message"),
    [
        (sized(8), None, "not JSON"),
        (sized(8), "x", "it must be the bytes of JSON"),
        (sized(8), "-1", "it must be the bytes of JSON"),
        (sized(8), "9" * 5000, "it must be the bytes of JSON"),
        (sized(8), "99999", "it must be the bytes of JSON"),
        (sized(4), "", "4, and INT64 of shape [1] takes 8"),
        (sized(16), "", "and 8 bytes are left"),
        (sized(-8), "", "binary_data_size of -8"),
        (sized("8"), "", 'binary_data_size of "8"'),
        (sized(8, bytes(9)), "", "1 bytes behind the last input"),
        (sized(8, shape=[2**70]), "", "which no array can have"),
        (sized(8, datatype="BYTES"), "", "not 1 texts"),
        (sized(8, b"\x04\0\0\0\xff\xff\xff\xff", datatype="BYTES"), "", "no UTF-8"),
        (sized(8, b"\xff\xff\xff\xffabcd", datatype="BYTES"), "", "not 1 texts"),
    ],
)
def test_bad_bytes(parts: tuple[bytes, bytes], length: str | None, message: str, served: Served) -> None:
    headers = {} if length is None else {HEAD: length or str(len(parts[0]))}
    answer = served.ask("/v2/models/digits/infer", b"".join(parts), headers=headers)
    assert (answer.status, message in answer.error) == (400, True), answer.error


def test_addresses_and_methods(served: Served) -> None:
    for path, method, status, message in (
        ("/v2/models/digit", "GET", 404, "served here: digits, tiny"),
        ("/v2/models/digit/infer", "POST", 404, "unknown model 'digit'"),
        ("/v2/models/digits/versions/2/infer", "POST", 404, "version 2"),
        ("/v2/models/digits%2Finfer", "GET", 405, "allowed: POST"),
        ("/v3", "GET", 404, "nothing at /v3"),
        ("/v2/models/digits/infer", "GET", 405, "allowed: POST"),
        ("/v2/models/digits", "DELETE", 405, "DELETE is not for /v2/models/digits; allowed: "),
    ):
        answer = served.ask(path, None if method != "POST" else "{}", method)
        assert (answer.status, message in answer.error) == (status, True), answer
    zipped = served.ask("/v2/models/digits/infer", "{}", headers={"Content-Encoding": "gzip"})
    assert zipped.status == 415


def test_a_large_body_is_refused_before_it_is_read(served: Served, expected: np.ndarray) -> None:
    """The rest of the body is never sent: an answer comes all the same."""
    for headers, sent in (
        ("Content-Length: 10000000000", b""),
        ("Transfer-Encoding: chunked", b"f4241\r\n" + bytes(1_000_001) + b"\r\n"),  # and no end
    ):
        connection = served.connect()
        connection.connect()
        head = f"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n"
        connection.sock.sendall(head.encode() + sent)
        response = connection.response_class(connection.sock, method="POST")
        response.begin()
        assert response.status == 413
        assert "1000000 bytes at most" in json.loads(response.read())["error"]
        connection.close()
    np.testing.assert_array_equal(served.infer("digits", {"seeds": [7]}).array, expected[7:8])


def test_a_run_that_makes_nan_is_an_error_and_its_neighbours_are_not(served: Served, expected: np.ndarray) -> None:
    for model, more, shape in (("digits", {}, (1, 8, 8)), ("tiny", {"class_labels": [0, 1]}, (3, 16, 16))):
        noise = np.stack([unit_noise([7], shape)[0], np.full(shape, 3e38, np.float32)])
        with ThreadPoolExecutor(2) as pool, served.held():
            parts = [
                pool.submit(
                    served.infer, model, {"noise": noise[n : n + 1], **{k: v[n : n + 1] for k, v in more.items()}}
                )
                for n in (0, 1)
            ]
            served.gate.opened.set()
            fine, bad = (part.result() for part in parts)
        assert (bad.status, "NaN or infinity of this noise" in bad.error) == (500, True), bad.error
        assert fine.status == 200
        if model == "digits":
            np.testing.assert_array_equal(fine.array, expected[7:8])


def test_metrics_are_prometheus_text(served: Served) -> None:
    served.infer("digits", {"seeds": [1, 2]})
    lines = served.ask("/metrics").body.decode().splitlines()
    kinds = dict(line.split()[2:4] for line in lines if line.startswith("# TYPE"))
    assert sorted(kinds.values()) == ["counter", "gauge", "histogram", "histogram"]
    for line in lines:
        form = r'# (HELP|TYPE) edge_sampler_\w+ .+|edge_sampler_\w+\{model="\w+"(,(outcome|le)="[\w.+]+")?\} [\d.e-]+'
        assert re.fullmatch(form, line), line
    for name in ("batch_images", "request_seconds"):
        label = f'edge_sampler_{name}_bucket{{model="digits"'
        counts = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(label)]
        assert counts == sorted(counts)
        assert counts[-1] == served.metric(f"{name}_count", model="digits") > 0
