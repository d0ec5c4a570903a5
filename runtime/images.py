"""Image arrays → pictures."""

import io
from pathlib import Path

import numpy as np


def to_uint8(images: np.ndarray) -> np.ndarray:
    """float [n, C, H, W] in [-1, 1] → uint8 [n, H, W, C], rounded and clipped; uint8 passes through."""
    if images.dtype == np.uint8:
        return images
    return np.clip(np.rint(images.transpose(0, 2, 3, 1) * 127.5 + 127.5), 0, 255).astype(np.uint8)


def as_floats(images: np.ndarray) -> np.ndarray:
    """uint8 [n, H, W, C] → float32 [n, C, H, W] in [-1, 1]; floats pass through."""
    if images.dtype != np.uint8:
        return images
    return images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1


def png(pixels: np.ndarray, comment: str = "") -> bytes:
    """uint8 [H, W, 1 or 3] → a PNG's bytes, of its own size; ``comment`` goes into its text."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    content, told = io.BytesIO(), PngInfo()
    if comment:
        told.add_text("Comment", comment)
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(content, "PNG", pnginfo=told)
    return content.getvalue()


def save_grid(images: np.ndarray, path: Path, caption: str = "", columns: int | None = None) -> None:
    """Writes one PNG of all images [n, …], by default as square as can be; small ones enlarged, up to 64 pixels."""
    from PIL import Image, ImageDraw

    pixels = to_uint8(images)
    count, height, width, channels = pixels.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    scale, gap = max(1, 64 // height), 2
    tiles = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    sheet = np.full(
        (rows * (height * scale + gap) + gap, columns * (width * scale + gap) + gap, channels), 255, np.uint8
    )
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        top, left = gap + row * (height * scale + gap), gap + column * (width * scale + gap)
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    picture = Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet).convert("RGB")
    if caption:
        ImageDraw.Draw(picture).text((4, 4), caption, fill="red")
    picture.save(path)
