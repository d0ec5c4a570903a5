"""The page of python -m runtime page, in Chromium: its noise, its images, and what it says of what is wrong."""

import gzip
import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sampler import runtime
from edge_sampler.runtime import UserError
from edge_sampler.runtime.__main__ import main as runtime_main
from edge_sampler.runtime.backends import choose
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import run_sampler
from edge_sampler.runtime.images import to_uint8
from edge_sampler.runtime.noise import SEEDS, unit_noise
from edge_sampler.runtime.page import folder, npm
from edge_sampler.runtime.page.folder import FACTS, ONNX_RUNTIME, PROBES, TOKENIZERS
from edge_sampler.runtime.sampler import feed_of
from tests import chromium
from tests.conftest import run_main
from tests.runtime.test_page import add, change, package, page

PAGE = Path(folder.__file__).parent
WEIGHTS = PAGE.parent.parent / "models" / "weights"
ZIGGURAT_R = 3.6541529  # larger values come from its tail
MADE = "/ in .* s:/.test(document.getElementById('status').textContent)"
BAD = "document.getElementById('status').classList.contains('bad')"


@pytest.fixture
def ort(tmp_path: Path) -> Path:
    """A folder that looks like onnxruntime-web."""
    return package(tmp_path / "node_modules" / "onnxruntime-web", ONNX_RUNTIME)[0]


# ---- The noise


@pytest.fixture(scope="session")
def browser() -> Iterator[chromium.Page]:
    if chromium.found() is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with chromium.browser() as opened:
        yield opened


def evaluated(script: str, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """What an expression over noise.js gives, by Node where it is, else by Chromium."""
    shutil.copyfile(PAGE / "noise.js", tmp_path / "noise.mjs")
    if node := shutil.which("node"):
        program = f"import {{unitNoise, ziggurat}} from './noise.mjs'; console.log(JSON.stringify({script}))"
        (tmp_path / "program.mjs").write_text(program)
        done = subprocess.run([node, "program.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)
    opened: chromium.Page = request.getfixturevalue("browser")
    with chromium.served(tmp_path) as url:
        opened.open(url)
        opened.wait("document.readyState === 'complete'")
        return opened.run(f"import('{url}/noise.mjs').then(({{unitNoise, ziggurat}}) => ({script}))")


BITS = "[...new Int32Array({}.buffer)]"


def test_noise_is_numpys(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """To the bit; but in the tail, where NumPy asks the C library for log1pf, which may be off in its last bit."""
    seeds = [0, 1, 37, 2**31, 2**32 - 1, 2**32 + 5, 2**53 + 1, SEEDS - 1]
    seeds += np.random.default_rng(0).integers(0, SEEDS - 1, 12).tolist()
    numbers = ", ".join(f"{seed}n" for seed in seeds)
    told = evaluated(f"[{numbers}].map((seed) => {BITS.format('unitNoise(seed, 10_000)')})", tmp_path, request)
    found, expected = np.array(told, np.int32), unit_noise(seeds, (10_000,))
    tail = np.abs(expected) > ZIGGURAT_R
    assert {True, False} == set((expected[tail] > 0).tolist())
    np.testing.assert_array_equal(found[~tail], expected.view(np.int32)[~tail])
    np.testing.assert_allclose(found.view(np.float32)[tail], expected[tail], rtol=1.2e-7)


@pytest.mark.parametrize("table", ["k", "w", "f"])
def test_the_ziggurat_is_numpys(tmp_path: Path, request: pytest.FixtureRequest, table: str) -> None:
    """Its 256 layers, each number: a wrong one would show in one value of millions. NumPy's are in its own library."""
    found = np.array(evaluated(BITS.format(f"ziggurat().{table}"), tmp_path, request), np.int32).tobytes()
    assert len(found) == 256 * 4
    assert any(found in path.read_bytes() for path in Path(np.random.__file__).parent.glob("_generator*"))


# ---- In a browser, without the runtime


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("sampler.onnx", "sampler.onnx is not the file that this page was made with"),
        ("onnxruntime-web/ort-wasm-simd-threaded.wasm.gz", "ort-wasm-simd-threaded.wasm: the server says 404"),
        (FACTS, f"Cannot fetch {FACTS}: the server says 404"),
        ("worker.js", "Cannot start worker.js"),
    ],
)
def test_what_is_wrong_is_one_line_of_the_page(
    browser: chromium.Page, made: Path, tmp_path: Path, ort: Path, file: str, words: str
) -> None:
    page(made, tmp_path / "site", "--onnxruntime-web", ort)
    if file == "sampler.onnx":
        (tmp_path / "site" / file).write_bytes(b"another")
    else:
        (tmp_path / "site" / file).unlink()
    with chromium.served(tmp_path / "site") as url:
        browser.open(f"{url}/index.html")
        browser.wait(BAD)
        assert words in browser.run("document.getElementById('status').textContent")


def test_a_page_opened_as_a_file_says_so(browser: chromium.Page) -> None:
    browser.open((PAGE / "index.html").as_uri())
    browser.wait(BAD)
    assert "python -m http.server" in browser.run("document.getElementById('status').textContent")


def test_an_old_browser_is_told_so(browser: chromium.Page, made: Path, tmp_path: Path, ort: Path) -> None:
    page(made, tmp_path / "site", "--onnxruntime-web", ort)
    script = "WebAssembly.validate = () => false"
    added = browser.call("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"]
    with chromium.served(tmp_path / "site") as url:
        browser.open(f"{url}/index.html")
        browser.wait(BAD)
    browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added)
    assert "no WebAssembly with SIMD" in browser.run("document.getElementById('status').textContent")


# ---- In a browser, with it


@pytest.fixture(scope="session")
def web(browser: chromium.Page) -> None:
    """ONNX Runtime Web and the tokenizers in the cache, downloaded if they are not there."""
    for of in (ONNX_RUNTIME, TOKENIZERS):
        try:
            npm.files_of(of)
        except UserError as error:
            pytest.skip(str(error))


PIXELS = """tiles.map(({canvas}) =>
    Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data))"""


def drawn(browser: chromium.Page, shape: tuple[int | str, ...]) -> np.ndarray:
    """The pictures of the page, uint8 [n, H, W, 3]."""
    return np.array(browser.run(PIXELS), np.uint8).reshape(-1, *map(int, shape[1:]), 4)[..., :3]


def same_pixels(found: np.ndarray, expected: np.ndarray) -> None:
    """But for those that lay between two levels: of 50,000 pixels two did."""
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def fill(browser: chromium.Page, **fields: object) -> None:
    """Fills in the form and sends it, and waits for the images."""
    for name, value in fields.items():
        browser.run(f"at({name!r}).value = {json.dumps(str(value))}")
    browser.run("at('status').textContent = ''; at('form').requestSubmit()")
    browser.wait(f"({MADE} && tiles.length == at('count').value) || {BAD}")
    assert not browser.run(BAD), browser.run("at('status').textContent")


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of tiny colour images, told two texts and two numbers."""
    pytest.importorskip("torch")
    import torch

    import edge_sampler
    from edge_sampler.calibration.calibrate import calibrate
    from edge_sampler.calibration.settings import Settings
    from edge_sampler.models.own import with_examples

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(1024, 48)

        def forward(self, x: Any, sigma: Any, prompt: Any, second: Any, wind: Any) -> Any:
            meant = self.words(prompt).mean(1) - 2 * self.words(second).mean(1) + wind.sum(1)[:, None]
            return torch.tanh(x / (1 + sigma[:, None, None, None]) + meant.reshape(-1, 3, 4, 4))

    torch.manual_seed(0)
    tokenizer = WEIGHTS / "flow-emoji-tokenizer.json"
    conditions = {
        "prompt": edge_sampler.Condition((24,), "int64", text=edge_sampler.Text.of(tokenizer)),
        "second": edge_sampler.Condition((24,), "int64", text=edge_sampler.Text.of(tokenizer, follows="prompt")),
        "wind": edge_sampler.Condition((2,)),
    }
    model = edge_sampler.adapt(Network(), (3, 4, 4), conditions=conditions)
    with_examples(model, {"prompt": ["a red heart"], "second": ["a star"], "wind": [[0.5, -0.25]]})
    out = tmp_path_factory.mktemp("told") / "bundle"
    edge_sampler.export_bundle(model, calibrate(model, Settings(2, "ddim", schedule="edm")), out)
    return out


@pytest.fixture
def beside(copy: Path) -> Path:
    """A bundle whose weights are in a file of their own, and whose noise is scaled."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(copy / "sampler.onnx")
    (copy / "sampler.onnx").unlink()
    settings = {"all_tensors_to_one_file": True, "location": "weights.data", "size_threshold": 1024}
    onnx.save_model(graph, copy / "sampler.onnx", save_as_external_data=True, **settings)
    assert (copy / "sampler.onnx").stat().st_size < (copy / "weights.data").stat().st_size
    for name in ("sampler.onnx", "weights.data"):
        add(copy, name)
    change(copy, temperature=0.5)
    return copy


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are packed less."""
    compress = gzip.compress
    monkeypatch.setattr(gzip, "compress", lambda content, level, mtime: compress(content, 1, mtime=mtime))


@pytest.mark.parametrize(
    ("name", "fields", "conditions"),
    [
        ("made", {}, {}),
        ("beside", {}, {}),
        ("conditional", {}, {"class_labels": [0, 1]}),  # each class in turn; images are uint8
        (
            "told",
            {"prompt": "a red heart, it's 2!", "wind": "0.3, -1e-3"},
            {"prompt": "a red heart, it's 2!", "wind": [0.3, -1e-3]},
        ),
    ],
)
def test_a_page_makes_what_the_runtime_makes(
    web: None,
    quick: None,
    browser: chromium.Page,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    name: str,
    fields: dict[str, str],
    conditions: dict[str, Any],
) -> None:
    where: Path = request.getfixturevalue(name)
    opened, seeds = Bundle.open(where), [SEEDS - 3, SEEDS - 2]
    page(where, tmp_path / "site")
    with chromium.served(tmp_path / "site") as url:
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        browser.open(f"{url}/index.html")
        browser.wait("worker || at('status').textContent == 'Ready.'")
        fill(browser, seed=seeds[0], count=2, **{f"condition-{known}": text for known, text in fields.items()})
        expected = runtime.load(where, "onnxrt").sample(seeds, **conditions)
        same_pixels(drawn(browser, opened.output.shape), to_uint8(expected))
        feed = feed_of(opened, seeds, opened.tokenized(conditions))
        trajectory = run_sampler(opened, feed, choose(opened, "onnxrt", None), None)
        assert trajectory.denoised is not None
        for row, index in enumerate(seeds):
            on_page = f"Object.fromEntries(facts.conditions.map((known) => [known.name, valueOf(known, {row})]))"
            asked = f"worker.ask('make', {{seed: {index}n, conditions: {on_page}}})"
            answer = browser.run(f"{asked}.then(({{stages}}) => stages.map((stage) => [...stage]))")
            found = np.array(answer, np.float32).reshape(trajectory.denoised[:, row].shape)
            np.testing.assert_allclose(found, trajectory.denoised[:, row], atol=1e-4)
        browser.run("at('stage').value = 0; at('stage').dispatchEvent(new Event('input'))")
        same_pixels(drawn(browser, opened.output.shape), to_uint8(trajectory.denoised[0]))
        said = browser.run("at('command').textContent")
    commands = shlex.split(said)
    assert commands[:6] == ["python", "-m", "runtime", "sample", where.name, "--seeds"]
    again = ["sample", str(where), *commands[5:-1], str(tmp_path / "again.npz"), "--backend", "onnxrt"]
    run_main(runtime_main, *again)
    with np.load(tmp_path / "again.npz") as stored:
        assert stored["seeds"].tolist() == seeds
        np.testing.assert_array_equal(stored[opened.output.name], expected)


def test_a_page_fits_a_phone_and_every_field_has_a_label(
    browser: chromium.Page, conditional: Path, tmp_path: Path, ort: Path
) -> None:
    page(conditional, tmp_path / "site", "--onnxruntime-web", ort)
    (tmp_path / "site" / "sampler.onnx").unlink()  # so that nothing is made
    with chromium.served(tmp_path / "site") as url:
        browser.call("Emulation.setDeviceMetricsOverride", width=340, height=700, deviceScaleFactor=1, mobile=True)
        browser.open(f"{url}/index.html")
        browser.wait(BAD)
        assert browser.run("document.documentElement.scrollWidth") <= 340
        assert browser.run("[...document.querySelectorAll('input, select')].every((one) => one.labels.length == 1)")
        browser.call("Emulation.clearDeviceMetricsOverride")


def test_texts_become_the_same_tokens(web: None, browser: chromium.Page, tmp_path: Path) -> None:
    """Captions of flow-emoji, and texts that are hard to read."""
    tokenizers = pytest.importorskip("tokenizers")
    content = (WEIGHTS / "flow-emoji-tokenizer.json").read_text(encoding="utf-8")
    texts = (WEIGHTS / "flow-emoji-captions.txt").read_text(encoding="utf-8").splitlines()
    texts = [*texts, *PROBES, "ÉCOLE", "it's x-ray", "한국어", "\u200d\ufffd", "x" * 200, "  ", "[PAD] [CLS]"]
    (tmp_path / "tokenizers.mjs").write_bytes(npm.files_of(TOKENIZERS)[1]["dist/tokenizers.min.mjs"])
    with chromium.served(tmp_path) as url:
        browser.open(url)
        browser.wait("document.readyState === 'complete'")
        found = browser.run(f"""import('{url}/tokenizers.mjs').then(({{Tokenizer}}) => {{
            const tokenizer = new Tokenizer({content}, {{}});
            return {json.dumps(texts)}.map((text) => tokenizer.encode(text).ids);
        }})""")
    expected = tokenizers.Tokenizer.from_str(content)
    expected.no_padding()
    assert found == [encoding.ids for encoding in expected.encode_batch(texts)]


def test_what_is_filled_in_wrongly_is_one_line(
    web: None, browser: chromium.Page, told: Path, tmp_path: Path, ort: Path
) -> None:
    """And so is a tokenizer that reads a text otherwise than Python's did, which shows before anything is made."""
    facts = page(told, tmp_path / "site", "--onnxruntime-web", ort)
    facts["conditions"][1]["probes"][1][1][1] += 1
    (tmp_path / "site" / FACTS).write_text(json.dumps(facts))
    with chromium.served(tmp_path / "site") as url:
        browser.open(f"{url}/index.html")
        browser.wait("at('status').textContent == 'Ready.'")  # nothing is made before there is a prompt
        for fields, line in (
            ({"condition-prompt": "a", "condition-wind": "1"}, "wind takes 2 numbers, and there are 1"),
            ({"condition-wind": "1, x"}, "wind is told x; it takes float32"),
            ({"condition-wind": "1, 2", "seed": SEEDS - 1}, f"Seeds are 0 to {SEEDS - 1}"),
            ({"seed": 0}, "cannot read texts as second wants them"),
        ):
            for name, value in fields.items():
                browser.run(f"at({name!r}).value = {json.dumps(str(value))}")
            browser.run("at('status').textContent = ''; at('form').requestSubmit()")
            browser.wait(f"{BAD} && at('status').textContent.includes({json.dumps(line)})")
