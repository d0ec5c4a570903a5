"""Pictures of emoji with captions: Debian's colour font, Unicode's names, and the same things in other colours.

python -m edge_sampler.models.training.emoji    # writes examples of captions, and a vocabulary where there is none
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor

from edge_sampler.models.examples import HELD as HELD_EXAMPLES
from edge_sampler.models.zoo import CAPTIONS, TOKENIZER
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.output import writable

VOCABULARY, LENGTH = 1024, 24  # word pieces; of one caption
PAD, UNKNOWN, START = "[PAD]", "[UNK]", "[CLS]"
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # of Debian's package fonts-noto-color-emoji
STRIKE, ADVANCE = 109, 140  # the font's one size, and what a single glyph is at most wide in it
SIZE = 32
HUES = {"red": 0, "orange": 28, "yellow": 52, "green": 120, "blue": 215, "purple": 280, "pink": 330}  # degrees
COLOUR_WORDS = {*HUES, "brown", "black", "white", "grey"}
COLOURED, SATURATED = 0.2, 0.35  # a picture with a colour: this part of its pixels, of at least this saturation
CONCENTRATION = 0.85  # of hues: 1 is a single one
NEAR = 20  # degrees: no other colour
FLAG = re.compile("[\U0001f1e6-\U0001f1ff]{2}|\U0001f3f4.*\U000e007f")
TONE = "skin tone"
NOT_RECOLOURED = (TONE, "flag ", "button")
HELD_OUT = {"blue heart", "purple square", "green book", "orange circle"}  # that the font itself has
HELD = 8  # and one in so many of the recoloured things
EXAMPLES = 512  # captions to fit and to judge a sampler on


@dataclass(frozen=True)
class Picture:
    """One picture uint8 [32, 32, 3], on white, with its captions.

    ``varied``: one of many of the same thing, in another colour or skin tone. ``held``: to judge by.
    """

    pixels: np.ndarray
    captions: tuple[str, ...]
    varied: bool
    held: bool


def pictures(font: Path | None = None) -> Iterator[Picture]:
    """All emoji with at most one skin tone, and what is of one colour in the other ones.

    A caption such as "blue heart", held out, is in no picture that is not. Raises UserError where the font or the
    package ``emoji`` is missing.
    """
    for characters, captions in names().items():
        drawn = draw(characters, font or FONT)
        if drawn is None:
            continue
        yield Picture(drawn, captions, TONE in captions[0], any(map(is_held, captions)))
        hue = hue_of(drawn)
        if hue is None or any(kind in captions[0] for kind in NOT_RECOLOURED):
            continue
        thing = " ".join(word for word in captions[0].split() if word not in COLOUR_WORDS)
        for colour, wanted in HUES.items():
            if abs((wanted - hue + 180) % 360 - 180) > NEAR:
                caption = f"{colour} {thing}"
                told = caption, with_article(caption)
                yield Picture(recoloured(drawn, wanted - hue), told, True, is_held(caption))


def is_held(caption: str) -> bool:
    """Whether what the caption says is to judge by, whichever picture it is of."""
    return caption in HELD_OUT or (caption.split()[0] in HUES and sum(caption.encode()) % HELD == 0)


def names() -> dict[str, tuple[str, ...]]:
    """The characters of each emoji, with what it is called: its name first, in lower case."""
    try:
        from emoji import EMOJI_DATA, STATUS
    except ImportError as error:
        raise UserError("the names of emoji are missing: pip install emoji") from error
    found = {}
    for characters, data in EMOJI_DATA.items():
        called = [words(name) for name in (data["en"], *data.get("alias", ()))]
        if data["status"] != STATUS["fully_qualified"] or called[0].count(TONE) > 1:
            continue
        if FLAG.fullmatch(characters):
            called = [f"flag {called[0].removeprefix('flag for ')}"]
        found[characters] = tuple(dict.fromkeys(name for name in [*called, with_article(called[0])] if name))
    return found


def words(name: str) -> str:
    """``:smiling_face_with_heart-eyes:`` → "smiling face with heart eyes", without accents."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return " ".join(re.findall(r"[a-z0-9]+", plain))


def with_article(caption: str) -> str:
    return f"{'an' if caption[0] in 'aeiou' else 'a'} {caption}"


def draw(characters: str, font: Path) -> np.ndarray | None:
    """uint8 [32, 32, 3], on white; None where the font has no one glyph for it."""
    try:
        loaded = ImageFont.truetype(str(font), STRIKE)
    except OSError as error:
        raise UserError(
            f"no colour font at {font}: install Debian's package fonts-noto-color-emoji, or name the file with --data"
        ) from error
    if not 0 < loaded.getlength(characters) <= ADVANCE:
        return None
    canvas = Image.new("RGB", (136, 136), "white")
    ImageDraw.Draw(canvas).text((0, 0), characters, font=loaded, embedded_color=True)
    pixels = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX))
    return pixels if pixels.std() > 1 else None


def hue_of(pixels: np.ndarray) -> float | None:
    """The one hue of a picture, in degrees; None where it has several, or hardly any."""
    hue, saturation, value = hsv(pixels)
    weight = (saturation > SATURATED) * saturation * value
    mean = (weight * np.exp(2j * np.pi * hue)).sum() / max(weight.sum(), 1e-9)
    if (weight > 0).mean() < COLOURED or abs(mean) < CONCENTRATION:
        return None
    return float(np.degrees(np.angle(mean)) % 360)


def recoloured(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """The picture with its hues turned."""
    turned = hsv(pixels)
    turned[0] = (turned[0] + degrees / 360) % 1
    bytes_ = np.round(np.moveaxis(turned, 0, -1) * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(bytes_, "HSV").convert("RGB"))


def hsv(pixels: np.ndarray) -> np.ndarray:
    """[3, 32, 32]: hue, saturation and value, in [0, 1]."""
    return np.moveaxis(np.asarray(Image.fromarray(pixels).convert("HSV"), np.float64) / 255, -1, 0)


def tokens(captions: list[str]) -> Tensor:
    """int64 [n, 24]: the start, word pieces, and padding."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(captions)])


def make_tokenizer(captions: list[str]) -> Tokenizer:
    """Word pieces (arXiv 1609.08144) of these captions: the most frequent words whole, all others in parts."""
    tokenizer = Tokenizer(WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    special = [PAD, UNKNOWN, START]
    trainer = WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = TemplateProcessing(single=f"{START} $A", special_tokens=[(START, special.index(START))])
    tokenizer.enable_padding(length=LENGTH, pad_token=PAD)
    return tokenizer


def examples(found: list[Picture]) -> list[str]:
    """Captions to fit on, and then to judge on as many held-out ones as the model holds out of its examples."""
    rng, captions = np.random.default_rng(0), list[str]()
    for held, count in ((False, EXAMPLES - EXAMPLES // HELD_EXAMPLES), (True, EXAMPLES // HELD_EXAMPLES)):
        known = [picture.captions[0] for picture in found if picture.held == held and TONE not in picture.captions[0]]
        captions += rng.choice(known, count, replace=False).tolist()
    return captions


def main() -> None:
    found = list(pictures())
    if not TOKENIZER.exists():  # its training is not the same each time, and the weights know this one's pieces
        with writable(TOKENIZER) as path:
            make_tokenizer([caption for picture in found for caption in picture.captions]).save(str(path))
    with writable(CAPTIONS, force=True) as path:
        path.write_text("\n".join(examples(found)) + "\n")


if __name__ == "__main__":
    main()
