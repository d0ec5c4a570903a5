"""Models of this project that are told a caption, and the stage before the loop that encodes it."""

import json
from collections.abc import Mapping
from typing import Any

from edge_sampler.models.networks.text_encoder import TextEncoder
from edge_sampler.runtime.inputs import Condition

PROMPT, EMBEDS = "prompt", "prompt_embeds"


def embeds(text: Mapping[str, Any]) -> dict[str, Condition]:
    """The condition that the network is told; ``text`` is the architecture's argument of that name."""
    return {EMBEDS: Condition((text["width"],), null=0.0, description="the caption, encoded; zeros are no caption")}


def encoder(text: Mapping[str, Any]) -> TextEncoder:
    tokenizer = json.loads(text["tokenizer"])
    length = tokenizer["padding"]["strategy"]["Fixed"]
    return TextEncoder(len(tokenizer["model"]["vocab"]), length, text["width"], text["layers"])
