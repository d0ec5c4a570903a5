"""Models of this project that are told a caption, and the stage before the loop that encodes it."""

import json
from collections.abc import Mapping
from typing import Any

from edge_sampler.models.networks.text_encoder import TextEncoder
from edge_sampler.runtime.condition import Condition
from edge_sampler.runtime.text import Text

PROMPT, EMBEDS = "prompt", "prompt_embeds"


def embeds(text: Mapping[str, Any]) -> dict[str, Condition]:
    """The condition that the network is told; ``text`` is the architecture's argument of that name."""
    return {EMBEDS: Condition((text["width"],), description="the caption, encoded")}


def prompt(text: Mapping[str, Any]) -> dict[str, Condition]:
    """What the caller gives: the caption, as text or as tokens."""
    shape, made_by = (length(text),), Text.of(text["tokenizer"])
    return {PROMPT: Condition(shape, "int64", description="what the picture shows", text=made_by)}


def encoder(text: Mapping[str, Any]) -> TextEncoder:
    vocabulary = json.loads(text["tokenizer"])["model"]["vocab"]
    return TextEncoder(len(vocabulary), length(text), text["width"], text["layers"])


def length(text: Mapping[str, Any]) -> int:
    """Tokens of a caption: those that the tokenizer pads to."""
    return int(json.loads(text["tokenizer"])["padding"]["strategy"]["Fixed"])
