"""runtime/cpp: the C++ runtime's noise and the files that it reads, held against Python's; no engine is needed."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime.noise import SEEDS, unit_noise
from tests.fakes.cpp import FAKES, HEADERS, SANITIZED, compile_cpp

ZIGGURAT_R = 3.6541529  # larger values come from its tail


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of the parts that need no engine, compiled with what could change the noise: fused multiply-adds."""
    flags = (SANITIZED, "-O2", "-march=native", "-ffp-contract=fast", f"-I{HEADERS}", "-ldl")
    return compile_cpp(tmp_path_factory.mktemp("cpp") / "parts", FAKES / "cpp_parts.cpp", *flags)


def loaded(path: Path) -> np.ndarray:
    """What a .npy holds, and nothing behind it."""
    array = np.asarray(np.load(path))
    assert path.read_bytes().endswith(array.tobytes())
    return array


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line that says these words, and status 2; nothing was deserialised."""
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(("seed", "stream"), [(37, 0), (1, 1), (2**32 + 5, 3), (SEEDS - 1, 2**64 - 1)])
def test_noise_is_numpys_bit_for_bit(parts: Path, seed: int, stream: int) -> None:
    expected = unit_noise([seed], (10_000,), stream)
    if seed == 37:
        assert (np.abs(expected) > ZIGGURAT_R).sum() >= 3  # the tail, which is seldom reached
        assert {True, False} == set((expected[np.abs(expected) > ZIGGURAT_R] > 0).tolist())
    arguments = [str(parts), "noise", str(seed), str(stream), str(expected.size)]
    found = subprocess.run(arguments, capture_output=True, check=True).stdout
    assert found == expected.tobytes()


def test_no_product_is_fused_with_a_sum(parts: Path, tmp_path: Path) -> None:
    """As it could be in the noise, where it would show in one value of a billion."""
    factors = np.random.default_rng(0).standard_normal((10_000, 3), np.float32)
    np.save(tmp_path / "a.npy", factors)
    found = subprocess.run([parts, "products", tmp_path / "a.npy"], capture_output=True, check=True).stdout
    product = factors[:, 0] * factors[:, 1]
    assert found == (product + factors[:, 2]).tobytes()


@pytest.mark.parametrize("table", ["k", "w", "f"])
def test_the_ziggurat_is_numpys(parts: Path, table: str) -> None:
    """Its 256 layers, each number: a wrong one would show in one value of millions. NumPy's are in its own library."""
    found = subprocess.run([parts, "ziggurat", table], capture_output=True, check=True).stdout
    assert len(found) == 256 * 4
    assert any(found in path.read_bytes() for path in Path(np.random.__file__).parent.glob("_generator*"))


def test_sha256_of_any_length(parts: Path, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(200)
    (tmp_path / "file").write_bytes(content)
    found = subprocess.run([parts, "sha256", tmp_path / "file"], capture_output=True, text=True, check=True).stdout
    assert found.split() == [hashlib.sha256(content[:size]).hexdigest() for size in range(201)]


def json_lines(value: Any) -> list[str]:
    """As the test program prints it."""
    if isinstance(value, dict):
        return ["object", str(len(value)), *(x for k, v in value.items() for x in (k.encode().hex(), *json_lines(v)))]
    if isinstance(value, list):
        return ["array", str(len(value)), *(x for v in value for x in json_lines(v))]
    if isinstance(value, str):
        return ["string", value.encode().hex()]
    kind = "null" if value is None else "boolean" if isinstance(value, bool) else "number"
    return [kind, json.dumps(value).encode().hex()]


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_is_read_as_it_was_written(parts: Path, tmp_path: Path, ascii_only: bool, indent: int | None) -> None:
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000, 7), *range(0x10000, 0x110000, 1001), 0x10FFFF]))
    numbers = [0, -1, 2**62, 1.5, -2e-300, 1e22, 0.1]
    document = {
        "": [],
        "empty": {},
        every: every,
        "deep": [[[[1, [2]]]]],
        "numbers": numbers,
        "others": [None, True, False],
    }
    path = tmp_path / "document.json"
    path.write_text(json.dumps(document, ensure_ascii=ascii_only, indent=indent), encoding="utf-8")
    found = subprocess.run([parts, "json", path], capture_output=True, text=True, check=True).stdout
    assert found.splitlines() == json_lines(document)
    found = subprocess.run([parts, "canonical", path], capture_output=True, text=True, check=True).stdout
    assert found == json.dumps(document, sort_keys=True, separators=(",", ":")) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[1", '"a', '{"a"}', '{"a":}', "[1,]", "[,1]", '{"a":1,}', "[1 2]", "01", "1.", ".5", "-", "+1", "1e",
        "0x1", "nul", '"\\x"', '"\\u12g4"', '"\\u12', '"\n"', "[1]]", "{} 1", "{1:2}", "'a'", "[" * 100_000, "[1\0]",
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(parts: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        json.loads(text)
    (tmp_path / "d.json").write_text(text, encoding="utf-8", newline="")
    refused(subprocess.run([parts, "json", tmp_path / "d.json"], capture_output=True, text=True))


def test_a_name_that_stands_twice_is_refused(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text('{"a": 1, "b": {"c": 2, "d": 3, "c": 4}}')
    result = subprocess.run([parts, "json", tmp_path / "d.json"], capture_output=True, text=True)
    refused(result, "the name 'c' stands twice in one object")


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 0)])
def test_npy_files_are_read(parts: Path, tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.random.default_rng(0).normal(0, 2, shape)).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    found = subprocess.run([parts, "npy", tmp_path / "a.npy"], capture_output=True, text=True, check=True).stdout
    kind, sizes, values = found.splitlines()
    assert (kind, json.loads(sizes), json.loads(values)) == (array.dtype.kind, list(shape), array.ravel().tolist())


def test_other_npy_files_are_refused(parts: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 5), np.float32))
    content = path.read_bytes()
    others = [content[:size] for size in (0, 5, 9, 60, len(content) - 1)] + [
        content + b"x",
        content.replace(b"5", b"6"),
    ]
    others += [content.replace(b"False", b"True ", 1), content.replace(b"<f4", b">f4"), b"PK" + content[2:]]
    others += [content.replace(b"'descr'", b"'other'"), content[:8] + b"\x0b\0{'descr': '"]
    for other in others:
        path.write_bytes(other)
        refused(subprocess.run([parts, "npy", path], capture_output=True, text=True), "no .npy file")


@pytest.mark.parametrize("name", ["C", "de_DE.UTF-8"])
def test_numbers_do_not_depend_on_the_programs_locale(parts: Path, tmp_path: Path, name: str) -> None:
    """In neither of its two: C++'s, which groups digits here, and C's, of a file that is made where it can be."""
    making = ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / name)]
    if name != "C" and not (shutil.which("localedef") and subprocess.run(making, capture_output=True).returncode == 0):
        pytest.skip("no source of a locale with decimal commas")
    environment = {**os.environ, "LOCPATH": str(tmp_path)}
    result = subprocess.run([parts, "locale", name], capture_output=True, text=True, env=environment)
    *reals, header = result.stdout.split(maxsplit=3)
    assert [float(real.replace(",", ".")) for real in reals] == [0.5, -0.125, float("inf")]
    assert "'shape': (1200, 1)" in header
    assert result.stderr == "error: seed 1200 is 0.5\n"
