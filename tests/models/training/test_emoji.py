"""The pictures and captions that flow-emoji learns."""

import colorsys

import numpy as np
import pytest

from edge_sampler.models.examples import HELD
from edge_sampler.models.training import emoji
from edge_sampler.models.zoo import CAPTIONS, ZOO


def disc(hue: float, saturation: float = 0.9) -> np.ndarray:
    """A disc of one colour on white."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[x**2 + y**2 < 0.5] = [round(255 * value) for value in colorsys.hsv_to_rgb(hue / 360, saturation, 0.8)]
    return pixels


@pytest.mark.parametrize("hue", [2.0, 120.0, 215.0, 355.0])
def test_the_hue_of_a_picture_is_found_and_turned(hue: float) -> None:
    found = emoji.hue_of(disc(hue))
    assert found is not None
    assert abs((found - hue + 180) % 360 - 180) < 3
    turned = emoji.recoloured(disc(hue), 90)
    np.testing.assert_allclose(turned.astype(int), disc((hue + 90) % 360).astype(int), atol=6)


def test_pictures_of_several_hues_or_none_have_no_hue() -> None:
    halves = np.concatenate([disc(0)[:, :16], disc(120)[:, 16:]], 1)
    assert emoji.hue_of(halves) is None
    assert emoji.hue_of(disc(0, 0.1)) is None
    assert emoji.hue_of(np.full((32, 32, 3), 255, np.uint8)) is None


def test_names_are_words() -> None:
    assert emoji.words(":smiling_face_with_heart-eyes:") == "smiling face with heart eyes"
    assert emoji.words(":Côte_d’Ivoire:") == "cote divoire"
    names = emoji.names()
    assert names["❤️"][0] == "red heart"
    assert names["🇯🇵"] == ("flag japan", "a flag japan")
    assert all(names.values())
    assert max(caption.count(emoji.TONE) for captions in names.values() for caption in captions) == 1


def test_captions_become_the_tokens_of_the_shipped_vocabulary() -> None:
    ids = emoji.tokens(["a red heart", "", "RED heart"])
    assert ids.shape == (3, 24)
    assert ids[:, 0].tolist() == [2, 2, 2]  # the start
    assert ids[0, 4:].tolist() == [0] * 20
    assert ids[1, 1:].tolist() == [0] * 23
    assert ids[0, 2:4].tolist() == ids[2, 1:3].tolist()


def test_examples_to_judge_by_are_captions_that_are_held_out() -> None:
    captions = CAPTIONS.read_text().splitlines()
    assert ZOO["flow-emoji"].examples == CAPTIONS
    held = captions[len(captions) - len(captions) // HELD :]
    assert all(map(emoji.is_held, held))
    assert not any(map(emoji.is_held, captions[: -len(held)]))


@pytest.mark.skipif(not emoji.FONT.is_file(), reason="Debian's package fonts-noto-color-emoji is not installed")
def test_a_caption_that_is_held_out_is_in_no_picture_to_train_on() -> None:
    found = list(emoji.pictures())
    held, known = ({c for p in found if p.held is held for c in p.captions} for held in (True, False))
    assert len(known) > 5000
    assert len(held) > 500
    assert "blue heart" in held
    assert not held & known
