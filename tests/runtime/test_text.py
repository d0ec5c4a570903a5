"""Text as a condition: token ids by the bundle's tokenizer, in the graph from there on."""

import hashlib
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

import edge_sampler
from edge_sampler import Condition, Encoder, Text
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.settings import Settings
from edge_sampler.export.assemble import export_bundle
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.own import with_examples
from edge_sampler.runtime import command_line
from edge_sampler.runtime.__main__ import main
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import compare, within
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Inputs
from edge_sampler.runtime.text import loaded, tokenized, vocabulary
from tests.conftest import export, run_main

WORDS = ["<pad>", "<unk>", "a", "red", "heart", "blue", "star"]
LENGTH = 4


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.enable_padding(pad_id=0, pad_token="<pad>")
    made.enable_truncation(2)  # of which a sampler must know nothing
    return made


def prompt(**settings: Any) -> Condition:
    return Condition((LENGTH,), "int64", text=Text.of(tokenizer().to_str(), **settings))


class Words(nn.Module):
    """The encoder: ids [n, 4] → features [n, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(len(WORDS), 3)

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        return (self.table(ids).mean(1),)


class Toward(nn.Module):
    """(x [n, 3], σ, features [n, 3]) → what it takes for clean."""

    def forward(self, x: Tensor, sigma: Tensor, features: Tensor) -> Tensor:
        return torch.tanh(x / (1 + sigma[:, None]) + features)


class Direct(nn.Module):
    """The same, of ids."""

    def __init__(self) -> None:
        super().__init__()
        self.words = Words()

    def forward(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        return Toward()(x, sigma, *self.words(prompt))


def model(encoder: bool = True) -> Denoiser:
    torch.manual_seed(0)
    if encoder:
        features = {"features": Condition((3,))}
        stage = Encoder(Words(), {"prompt": prompt()}, ("features",))
        return edge_sampler.adapt(Toward(), (3,), conditions=features, encoder=stage)
    return edge_sampler.adapt(Direct(), (3,), conditions={"prompt": prompt()})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    guided = model()
    with_examples(guided, {"prompt": ["a red heart", "a blue star"]})
    guided = conditioned(guided, guidance=2.0)
    out = tmp_path_factory.mktemp("text") / "bundle"
    export_bundle(guided, calibrate(guided, Settings(2, "ddim", schedule="edm")), out)
    return out


def test_ids_are_the_tokenizers_padded() -> None:
    known = {"prompt": prompt()}
    assert tokenized(known, {"prompt": "a red heart"})["prompt"].tolist() == [2, 3, 4, 0]
    assert tokenized(known, {"prompt": np.array("a red heart")})["prompt"].tolist() == [2, 3, 4, 0]  # of a .npy
    several = tokenized(known, {"prompt": np.array(["a blue star", "sky"])})["prompt"]
    assert several.dtype == np.int64
    assert several.tolist() == [[2, 5, 6, 0], [1, 0, 0, 0]]
    assert tokenized(known, {"prompt": ["star"]})["prompt"].tolist() == [[6, 0, 0, 0]]
    assert tokenized(known, {"prompt": [2, 3, 4, 0]}) == {"prompt": [2, 3, 4, 0]}


def test_a_tokenizer_is_read_once_and_named_by_its_content() -> None:
    content = tokenizer().to_str()
    assert loaded(content, LENGTH) is loaded(content, LENGTH)
    assert Text.of(content).file == f"tokenizer-{hashlib.sha256(content.encode()).hexdigest()[:12]}.json"
    assert Text.of(content) != Text.of(f"{content} ")
    told = Text.of(content, "star", "other")
    assert Text.read(told.record()) == told  # whose manifest leaves the content out
    assert Text.read(told.record()).content == ""


def test_of_a_long_text_the_beginning_is_told() -> None:
    text = "a " * 30
    with pytest.raises(UserError) as refused:
        tokenized({"prompt": prompt()}, {"prompt": ["a", text]})
    assert str(refused.value).startswith("prompt has 30 tokens, those of begin and end included, and the model takes 4")
    assert str(refused.value).endswith(f": shorten {text[:40]!r}…")


def test_what_is_not_given_has_a_default_or_another_text() -> None:
    known = {"negative": prompt(default="star"), "second": prompt(follows="negative"), "other": prompt()}
    assert {name: ids.tolist() for name, ids in tokenized(known, {}).items()} == {
        "negative": [6, 0, 0, 0],
        "second": [6, 0, 0, 0],
    }
    told = tokenized(known, {"negative": "a", "second": "red"})
    assert (told["negative"][0], told["second"][0]) == (2, 3)
    given = [condition.text.must_be_given for condition in known.values() if condition.text]
    assert given == [False, False, True]
    assert "second" not in tokenized(known, {"negative": [2, 0, 0, 0]})  # ids of one tokenizer are not another's


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "a" + " " * 400}, "prompt has 401 characters, and the model takes 4 tokens: shorten 'a   "),
        ({"prompt": "a red heart a star"}, "prompt has 5 tokens, .*, and the model takes 4: shorten 'a red heart a"),
        ({"prompt": ["a", 3]}, "prompt is <U21; prompt must be text or int64"),
        ({"prompt": []}, "prompt is float64; "),
        ({"prompt": "\udcff"}, r"^prompt is '\\udcff', which is no text in UTF-8$"),
        ({"prompt": ["a", "red \udcff"]}, r"^prompt is 'red \\udcff', which is no text in UTF-8$"),
        ({"prompt": [-1] * 4}, "^prompt holds the token id -1; those of its tokenizer are 0 to 6$"),
        ({"prompt": np.array([[0, 6, 7, 2]])}, "^prompt holds the token id 7; those of its tokenizer are 0 to 6$"),
        ({"prompt": [[1], [1, 2]]}, "prompt has rows of several lengths"),
        ({"prompt": torch.zeros(4, requires_grad=True)}, "prompt is no array that NumPy reads"),
        ({}, r"prompt is missing: give text or int64 \[4\]"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(given: dict[str, Any], message: str) -> None:
    known = {"prompt": prompt()}
    with pytest.raises(UserError, match=message):
        Inputs((), known).check(tokenized(known, given), 2)


def test_a_null_is_no_wrong_token() -> None:
    """Networks have a word of their own for it."""
    known = {"prompt": replace(prompt(), null=7)}
    assert Inputs((), known).check(tokenized(known, {"prompt": [7, 7, 0, 6]}), 1)[0]["prompt"].tolist() == [
        [7, 7, 0, 6]
    ]
    with pytest.raises(UserError, match="prompt holds the token id 8"):
        tokenized(known, {"prompt": [7, 7, 8, 0]})


def test_a_vocabulary_is_as_large_as_its_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library too: token ids do not need it."""
    pieces = Tokenizer(models.Unigram([("a", 0.0), ("b", -1.0)], 0, False))
    pieces.enable_padding(pad_id=0)
    more = tokenizer()
    more.add_special_tokens(["<end>"])
    padded = tokenizer()
    padded.enable_padding(pad_id=9)
    contents = [made.to_str() for made in (tokenizer(), pieces, more, padded)]
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert [vocabulary(content) for content in (*contents, "no file")] == [7, 2, 8, 10, None]


def test_tokenizers_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tokenizer()
    bare.no_padding()
    for given, message in (
        ("{}", "not a tokenizer"),
        (bare.to_str(), "does not say how it pads"),
        (tmp_path / "x", "cannot read"),
    ):
        with pytest.raises(UserError, match=message):
            Text.of(given)
    with pytest.raises(UserError, match=r"a condition of text is int64 \[length\]"):
        Condition((LENGTH,), text=Text.of(tokenizer().to_str()))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install .*\[text\]'"):
        Text.of(bare.to_str() + " ")


@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize("one_batch", [True, False])
def test_guidance_is_away_from_the_negative_text(encoder: bool, one_batch: bool) -> None:
    plain = model(encoder)
    guided = conditioned(plain, guidance=3.0, one_batch=one_batch)
    assert list(guided.spec.called_with.conditions) == ["prompt", "negative_prompt"]
    x, known = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), guided.spec.called_with.conditions

    def answer(of: Denoiser, **texts: Any) -> Tensor:
        raw, _ = of.spec.called_with.check(tokenized(of.spec.called_with.conditions, texts), 2)
        return of(x, 0.5, **of.encode(raw))

    hearts, stars, nothing = (answer(plain, prompt=text) for text in ("a red heart", "a blue star", ""))
    torch.testing.assert_close(answer(guided, prompt="a red heart"), 3 * hearts - 2 * nothing)
    told = answer(guided, prompt="a red heart", negative_prompt="a blue star")
    torch.testing.assert_close(told, 3 * hearts - 2 * stars)
    assert known["negative_prompt"].text
    with pytest.raises(UserError, match="has guidance already"):
        conditioned(guided, guidance=2.0)


def test_a_bundle_takes_text(bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.open(bundle)
    assert within(compare(opened), None)
    assert len(list(bundle.glob("tokenizer-*.json"))) == 1
    with edge_sampler.load(bundle) as sampler:
        made = sampler.sample([0, 1], prompt=["a red heart", "a"], negative_prompt="star")
        ids = sampler.sample([0, 1], prompt=[[2, 3, 4, 0], [2, 0, 0, 0]], negative_prompt=[6, 0, 0, 0])
        empty = sampler.sample([0, 1], prompt=["a red heart", "a"])
        with pytest.raises(UserError, match="prompt has 5 tokens"):
            sampler.sample([0], prompt="a a a a a")
        again = pickle.loads(pickle.dumps(sampler.bundle))  # with the tokenizer that it has read
    assert again.tokenized({"prompt": "a red heart"})["prompt"].tolist() == [2, 3, 4, 0]
    np.testing.assert_array_equal(made, ids)
    assert np.abs(made - empty).max() > 1e-3
    out = tmp_path / "made.npz"
    texts = ["--condition", "prompt=a red heart", "--condition", "negative_prompt=star"]
    run_main(main, "sample", str(bundle), "--seeds", "0", *texts, "--out", str(out))
    with np.load(out) as stored:
        np.testing.assert_array_equal(stored["samples"], made[:1])


def test_a_changed_tokenizer_is_refused(bundle: Path, tmp_path: Path) -> None:
    name = next(bundle.glob("tokenizer-*.json")).name
    opened = Bundle.open(bundle)
    (bundle / name).write_text((bundle / name).read_text() + " ")
    with edge_sampler.load(bundle) as sampler, pytest.raises(UserError, match="not the file the manifest describes"):
        sampler.sample([0], prompt="a")
    assert opened.inputs.conditions["prompt"].text


def test_prompts_are_examples(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from tests.runtime.test_text import model as make\n")
    (tmp_path / "prompts.txt").write_text("a red heart\n\na blue star\n")
    made, prompts = f"{tmp_path / 'mine.py'}:make", ["--prompts", str(tmp_path / "prompts.txt")]
    export("--model", made, "--nfe", "1", "--solver", "ddim", "--check", "0", *prompts, "--out", str(tmp_path / "b"))
    recorded = Bundle.open(tmp_path / "b").reference()["input_prompt"]
    assert {tuple(row) for row in recorded.tolist()} <= {(2, 3, 4, 0), (2, 5, 6, 0)}
    (tmp_path / "prompts.txt").write_text("\n")
    for model_name, message in ((made, "there is no text in it"), ("edm-digits", "edm-digits is told 0")):
        with pytest.raises(UserError, match=message):
            export("--model", model_name, "--nfe", "1", *prompts, "--out", str(tmp_path / "c"))
    with pytest.raises(UserError, match=r"no examples of its condition prompt.* or --prompts FILE\.txt"):
        model().draw_raw([0])


def test_a_misspelt_text_is_told_which_one_is_meant() -> None:
    assert command_line.given(["prompt=a = b"], ["prompt"]) == {"prompt": "a = b"}
    with pytest.raises(UserError, match=r"^promt=a star: not NAME=NUMBERS.*; did you mean the text 'prompt'\?$"):
        command_line.given(["promt=a star"], ["prompt"])
