"""Text as a condition: a tokenizer, which the bundle carries, makes token ids of it on the host."""

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.install import install_command
from edge_sampler.runtime.json_file import ODD, parse_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from edge_sampler.runtime.condition import Condition

LONGEST = 100  # characters of a text for each token that the model takes; what has more hardly fits


@dataclass(frozen=True)
class Text:
    """How text becomes a condition of token ids, int64 [length].

    Args:
        file: the tokenizer's file in a bundle, named by its content.
        default: the text if the caller gives none; None: the caller has to give one.
        follows: another condition, whose text this one uses if the caller gives it none of its own.
        content: the JSON that the library `tokenizers` saves, with its padding; "" in a bundle's manifest.

    Examples:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> words = Tokenizer(models.WordLevel({"[PAD]": 0, "red": 1, "heart": 2}, unk_token="[PAD]"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> words.enable_padding(pad_id=0)
        >>> text = edge_sampler.Text.of(words.to_str())
        >>> prompt = edge_sampler.Condition((4,), "int64", text=text)
        >>> text.must_be_given, edge_sampler.Text.read(text.record()) == text
        (True, True)
    """

    file: str
    default: str | None = None
    follows: str = ""
    content: str = field(default="", compare=False, repr=False)

    @property
    def must_be_given(self) -> bool:
        """Whether nothing stands for a text that the caller leaves out."""
        return self.default is None and not self.follows

    @classmethod
    def of(cls, tokenizer: str | Path, default: str | None = None, follows: str = "") -> "Text":
        """Takes a tokenizer.

        Args:
            tokenizer: a file that the library `tokenizers` saved, or its content. It has to name its padding.
            default: the text if the caller gives none; None: the caller has to give one.
            follows: another condition, whose text this one uses if the caller gives it none of its own.

        Returns:
            How text becomes token ids.

        Raises:
            UserError: for anything else, and where the library is not installed.
        """
        if isinstance(tokenizer, Path) or not tokenizer.lstrip().startswith("{"):
            try:
                tokenizer = Path(tokenizer).read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise UserError(f"cannot read the tokenizer {tokenizer}: {error}") from error
        name = f"tokenizer-{hashlib.sha256(tokenizer.encode()).hexdigest()[:12]}.json"
        loaded(tokenizer, 1)
        return cls(name, default, follows, tokenizer)

    def record(self) -> dict[str, Any]:
        """As a manifest holds it.

        Returns:
            JSON values, without the content.
        """
        return {"file": self.file, "default": self.default, "follows": self.follows}

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> "Text":
        """The text of a manifest.

        Args:
            recorded: what ``record`` made.

        Returns:
            How text becomes token ids, without the content.

        Raises:
            KeyError, TypeError: for anything else.
        """
        return cls(str(recorded["file"]), recorded["default"], str(recorded["follows"]))


def tokens(texts: Any, content: str, name: str, length: int) -> np.ndarray:
    """Token ids int64 [length] of one text, or [n, length] of several; ``name`` is the condition's, for messages.

    Raises UserError for a text with more tokens or not in UTF-8, and as ``loaded`` does. One that is far too long is
    not tokenized: some megabytes take seconds and gigabytes.
    """
    written = [texts] if isinstance(texts, str) else [str(text) for text in texts]
    for text in written:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{name} is {text[:40]!r}, which is no text in UTF-8") from error
        if len(text) > LONGEST * length:
            raise UserError(
                f"{name} has {len(text)} characters, and the model takes {length} tokens: shorten {text[:40]!r}…"
            )
    ids = [encoding.ids for encoding in loaded(content, length).encode_batch(written)]
    for found, text in zip(ids, written, strict=True):
        if len(found) > length:
            raise UserError(
                f"{name} has {len(found)} tokens, those of begin and end included, and the model takes {length}: "
                f"shorten {text[:40]!r}…"
            )
    return np.array(ids[0] if isinstance(texts, str) else ids, np.int64)


def library() -> Any:
    """The library tokenizers. Raises UserError where it is not installed."""
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        raise UserError(
            f"text needs the library tokenizers, token ids do not: {install_command('text')} ({error})"
        ) from error


@cache
def loaded(content: str, length: int) -> "Tokenizer":
    """The tokenizer, which pads to ``length`` tokens and cuts nothing off.

    Raises UserError where the library is not installed, for what is no tokenizer, and for one that does not pad.
    """
    try:
        tokenizer: Tokenizer = library().Tokenizer.from_str(content)
    except UserError:
        raise
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"not a tokenizer that the library tokenizers can read: {error}") from error
    if tokenizer.padding is None:
        raise UserError("the tokenizer does not say how it pads: save it after tokenizer.enable_padding(pad_id=…)")
    tokenizer.no_truncation()
    tokenizer.enable_padding(**{**tokenizer.padding, "length": length})
    return tokenizer


@cache
def vocabulary(content: str) -> int | None:
    """How many token ids a tokenizer has, from 0 on; None where that is not known. It needs no library."""
    try:
        told = parse_json(content)
        words = told["model"]["vocab"]
        ids = words.values() if isinstance(words, dict) else [len(words) - 1]
        return 1 + max(*ids, told["padding"]["pad_id"], *(one["id"] for one in told["added_tokens"]))
    except ODD:
        return None


def check_ids(name: str, ids: Any, size: int, null: Any) -> None:
    """Raises UserError for one that the tokenizer does not have, and that is not the condition's null: a graph counts
    from the end, or ends with an error.
    """
    try:
        found = np.asarray(ids)
    except (ValueError, RuntimeError, TypeError):  # no array that NumPy reads, as whoever checks shapes says
        return
    if found.dtype.kind not in "iu":
        return
    wrong = found[(found < 0) | (found >= size)]
    if (wrong := wrong[wrong != null] if isinstance(null, int) else wrong).size:
        raise UserError(f"{name} holds the token id {wrong.flat[0]}; those of its tokenizer are 0 to {size - 1}")


def is_text(value: Any) -> bool:
    """A text, or several in a list or array."""
    return isinstance(value, str) or (
        isinstance(value, list | tuple | np.ndarray) and len(value) > 0 and all(isinstance(one, str) for one in value)
    )


def tokenized(
    conditions: Mapping[str, "Condition"], given: Mapping[str, Any], read: Callable[[str], str] = str
) -> dict[str, Any]:
    """What is given, with token ids in place of text; texts that were not given are their defaults.

    ``read`` returns the content of a tokenizer's file, where a condition does not hold it. Raises UserError as
    ``tokens`` and ``check_ids`` do.
    """

    def text_of(name: str) -> Any:
        text, value = conditions[name].text if name in conditions else None, given.get(name)
        if value is None and text:
            value = text_of(text.follows) if text.follows else text.default
        return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value

    told = dict(given)
    for name, condition in conditions.items():
        value = text_of(name)
        if condition.text and value is not None:
            content = condition.text.content or read(condition.text.file)
            if is_text(value):
                told[name] = tokens(value, content, name, int(condition.shape[0]))
            elif size := vocabulary(content):
                check_ids(name, value, size, condition.null)
    return told
