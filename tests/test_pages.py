"""Every command of every page is run, from top to bottom of the page, in one process and on small models; or it has a
mark that says why not, and is parsed (tests/test_docs.py). Tutorials have a test of their own, tests/test_tutorials.py.

What differs from a reader's run, so that it takes seconds:

- a network that ships, or is the pipeline's, is replaced, once it has loaded, by a small one with the same inputs and
  output (``Small``);
- a fit takes 8 noises, holds out 4, and has 24 reference steps; 2 noises judge an export;
- ``bench`` times each path once, ``BUNDLE`` is a bundle of ``Small``, ``FOLDER`` examples/toy_pipeline.py's;
- the examples' networks are narrower and trained for less (``CHEAPER``); a million seeds are twenty.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import edge_sampler
from edge_sampler.calibration import arguments
from edge_sampler.calibration.judge import Judgement, judge
from edge_sampler.export import network_graph
from edge_sampler.models import loading
from edge_sampler.models.zoo import ZOO
from edge_sampler.runtime.bench import Pace, bench
from tests.conftest import export
from tests.export.test_sign import PUBLIC, SECRET
from tests.pages import ROOT, commands, failures, run, serve

PAGES = (
    *sorted({*ROOT.glob("*.md")} - {ROOT / "CHANGELOG.md"}),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("*.py")),
)
CHEAPER = (
    ("policy/model.py", "iterations: int = 4000", "iterations: int = 20"),
    ("policy/control.py", "default=20,", "default=1,"),
    ("action_head.py", "QUERIES, DIMS, WIDTH = 17, 7, 384", "QUERIES, DIMS, WIDTH = 17, 7, 32"),
    ("action_head.py", "LAYERS, HEADS, ENCODER_LAYERS = 8, 8, 2", "LAYERS, HEADS, ENCODER_LAYERS = 2, 2, 1"),
    ("solver.py", "default=64", "default=2"),
)
WORDS = {
    "0-999999": "0-19",
    "20": "60000",
    "MODEL": "edm-digits",
    "NAME": "edm-digits",
    "FILE.onnx": "BUNDLE/denoiser.onnx",
}
BUNDLE_OF = {"--class-labels": "CLASSES", "--condition": "POLICY"}  # another BUNDLE for commands that need it
STATUS = {"runtime doctor": 1}  # of a machine that runs the bundle, but not on a GPU
SMALL = """
import edge_sampler
import numpy as np
import torch


class Small(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        torch.manual_seed(0)
        sizes = ((width, 8), (8, 8), (8, width))
        self.layers = torch.nn.ModuleList(torch.nn.Linear(*size) for size in sizes)

    def forward(self, x, t, *places, **names):
        told = [value.float().flatten(1) for value in (t[:, None], *places, *names.values())]
        shift = sum((value * torch.linspace(0.5, 1, value.shape[1])).mean(1) for value in told)
        first, inner, last = self.layers
        answer = last(torch.nn.functional.silu(inner(torch.nn.functional.silu(first(x)))))
        return 0.1 * answer + 0.01 * torch.tanh(shift).reshape(-1, *[1] * (x.dim() - 1))


def adapt(**told):
    return edge_sampler.adapt(Small(8), (1, 8, 8), "FlowPrecond", num_train_timesteps=1, licence="mine", **told)


def classes():
    return adapt(classes=10)


def make():
    return adapt()


def told():
    conditions = {"told": edge_sampler.Condition((3,))}
    return adapt(conditions=conditions, examples={"told": np.random.default_rng(0).normal(size=(32, 3)).astype("f4")})
"""


@pytest.fixture(scope="module")
def drawn() -> Iterator[None]:
    """PyTorch's export of each network is made once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("export_denoiser", "export_encoder", "export_decoder"):
            patch.setattr(f"edge_sampler.export.assemble.{name}", once(getattr(network_graph, name)))
        yield


@pytest.fixture(scope="module")
def prepared(drawn: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what readers bring: bundles, a pipeline, a network, conditions, prompts, keys."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "small.py").write_text(SMALL)
    (folder / "mine.py").write_text(SMALL.replace("def make", "def plain").replace("def told", "def make"))
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for name, dear, less in CHEAPER:
        text = (folder / "examples" / name).read_text()
        assert text.count(dear) == 1, name
        (folder / "examples" / name).write_text(text.replace(dear, less))
    dry = ("--nfe", "3", "--solver", "ddim", "--check", "0", "--samples", "2", "--out")
    for name, model in (
        ("BUNDLE", "small.py:make"),
        ("CLASSES", "small.py:classes"),
        ("POLICY", "examples/policy/model.py:make"),
    ):
        export("--model", f"{folder}/{model}", *dry, str(folder / name))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["examples/toy_pipeline.py", "FOLDER"])[0] == 0
    told = {"text": np.zeros((120, 8), np.float32), "mask": np.ones(120, bool), "speaker": np.zeros(16, np.float32)}
    np.savez(folder / "text.npz", **told)  # type: ignore[arg-type]
    np.savez(folder / "examples.npz", told=np.random.default_rng(1).normal(size=(32, 3)).astype(np.float32))
    (folder / "prompts.txt").write_text("a\nb\nc\nd\n")
    for name in ("fleet", "device"):
        (folder / f"{name}.key").write_text(SECRET)
        (folder / f"{name}.pub").write_text(PUBLIC)
    (folder / "quantised.json").write_text('{"sigma_min": 0.002, "sigma_max": 80}')
    shutil.copy(folder / "BUNDLE" / "denoiser.onnx", folder / "quantised.onnx")
    return folder


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The stand-ins that the head of this file names."""
    names: dict[str, Any] = {}
    exec(SMALL, names)
    settings, load, coarse = arguments.settings, loading.load, partial(edge_sampler.Settings, reference_steps=24)

    def few(told: Any) -> edge_sampler.Settings:
        return replace(settings(told), fit_batch=8, heldout=4, reference_steps=24)

    def small(model: str, *told: Any, **options: Any) -> edge_sampler.Denoiser:
        found = load(model, *told, **options)
        if model in ZOO or model == "FOLDER":
            found.model = names["Small"](found.spec.shape[-1])
        return found

    def judged(model: edge_sampler.Denoiser, plan: edge_sampler.Plan, noises: int, *told: Any) -> Judgement:
        return judge(model, plan, 2, *told)

    for module in ("export.command", "calibration.command"):
        monkeypatch.setattr(f"edge_sampler.{module}.settings", few)
    for module in ("study.command", "study.ablation_command"):
        monkeypatch.setattr(f"edge_sampler.calibration.{module}.Settings", coarse)
    monkeypatch.setattr("edge_sampler.export.command.judge", judged)
    monkeypatch.setattr("edge_sampler.models.unchanged.has_its_weights", lambda model: True)
    for module in ("calibration.arguments", "models.eager"):
        monkeypatch.setattr(f"edge_sampler.{module}.load", small)
    monkeypatch.setattr("edge_sampler.runtime.command.bench", partial(bench, pace=Pace(1e-9, settle=0.0)))
    monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path_factory.mktemp("cache")))


def once(draw: Callable[[edge_sampler.Denoiser], Any]) -> Callable[[edge_sampler.Denoiser], Any]:
    """Draws each model's graph once."""
    known: dict[str, Any] = {}

    def remembered(model: edge_sampler.Denoiser) -> Any:
        spec = model.spec  # what guidance is built in is no matter of a stage
        key = spec.fingerprint if draw is network_graph.export_denoiser else spec.weights_sha256
        if key not in known:
            known[key] = draw(model)
        return known[key] and known[key].clone()

    return remembered


def readers(words: list[str]) -> list[str]:
    """A command's words, with what a reader puts in their place."""
    bundle = next((name for option, name in BUNDLE_OF.items() if option in words), "BUNDLE")
    return [WORDS.get(word, word).replace("BUNDLE", bundle) for word in words]


def test_every_command_of_every_page_runs(
    prepared: Path, cheap: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this system")
    failed, known = [], set[str]()
    for page in PAGES:
        folder = tmp_path / "-".join(page.relative_to(ROOT).parts)
        shutil.copytree(prepared, folder)
        monkeypatch.chdir(folder)
        failed += failures(page, readers, STATUS, known)
    assert not failed, "\n".join(failed)


PAGE = """# A page

Name `python -m models list --no` (takes minutes), or `python -m runtime`; not `python -m models … list`.

- `python -m models verify edm-digits`

An option may begin a line: `python -m models verify nothing
--weights none`, and `python -m models verify all` take hours.

```sh
python -m models verify \\
    edm-digit && echo      # a mistake
python -m models verify edm-digit  # needs a GPU
```

```sh
# takes some minutes
.venv/bin/python -m models nothing
```

| a | `python -m models list --not` (needs a download) |
| b | `edge-sampler models list > list.txt` |
"""


def test_a_mistake_on_a_page_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more is run than what has no mark."""
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    monkeypatch.chdir(tmp_path)
    assert [(command.text, command.mark, command.in_prose) for command in commands(page)] == [
        ("models list --no", "takes minutes", True),
        ("runtime", "takes minutes", True),
        ("models verify edm-digits", "", True),
        ("models verify nothing --weights none", "take hours", True),
        ("models verify all", "take hours", True),
        ("models verify edm-digit", "", False),
        ("models verify edm-digit", "needs a GPU", False),
        ("models nothing", "takes some minutes", False),
        ("models list --not", "needs a download", True),
        ("models list", "", True),
    ]
    (failed,) = failures(page, list, {}, set())
    assert failed.startswith("page.md: models verify edm-digit: status 2: error: unknown model 'edm-digit'")
    assert failures(page, list, {"models verify": 2}, set())[0].startswith(
        "page.md: models verify edm-digits: status 0"
    )
    page.write_text(PAGE + "\nThe commands on this\npage take hours.\n")
    assert not failures(page, list, {}, set())


def test_a_server_is_asked_what_its_page_asks(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that it refuses is a mistake of the page."""
    monkeypatch.chdir(prepared)
    address = "http://127.0.0.1:8000/v2/models"
    status, said = serve(["runtime", "serve", "BUNDLE"], [f"curl {address}/BUNDLE", f"curl {address}/OTHER"])
    assert status == 1
    assert said.splitlines()[-1].startswith(f"curl {address}/OTHER: curl: (22)")
