"""Bytes of an image file to RGB pixels and of an id map to ids, bounded and strict; joint geometry.

What PIL would let pass silently is settled here: EXIF orientation is applied, transparency is laid
on white, 16-bit gray is scaled; colour profiles are ignored; an animation is its first frame.
"""

import io
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, Shaped, UInt8
from PIL import Image, ImageOps

from .image_sizes import EXIF_ORIENTATION, FORMATS, INVALID
from .shards import BadSample

MAX_ASPECT_GAP = 0.02  # relative; a stored id map may have another size, not another shape


class Window(NamedTuple):
    """The square that training sees of an image, in pixels of it, perhaps mirrored."""

    top: int
    left: int
    side: int
    flip: bool


def decode_image(data: bytes, max_pixels: int, min_side: int | None = None) -> Image.Image:
    """RGB image. `min_side`: a JPEG may be decoded at 1/2, 1/4 or 1/8 if no side gets shorter.

    BadSample for another format, a size over `max_pixels` (checked before decoding) and anything
    truncated or invalid.
    """
    image = _open(data, FORMATS, max_pixels)
    try:
        if min_side is not None and image.format == "JPEG":
            scale = min_side / min(image.size)
            image.draft(None, (round(image.width * scale), round(image.height * scale)))
        image.load()
        if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        return _rgb(image)
    except INVALID:
        raise BadSample("image truncated or invalid") from None


def decode_ids(
    data: bytes, max_pixels: int, size: tuple[int, int] | None = None
) -> Int32[np.ndarray, "h w"]:
    """Segment ids (0 = void) from a gray 8- or 16-bit PNG, brought to `size` = (h, w) by nearest.

    A stored map lies in the frame of the image after its EXIF orientation.
    """
    image = _open(data, ("PNG",), max_pixels)
    if image.mode not in ("1", "L", "P", "I;16", "I;16B", "I"):
        raise BadSample(f"id map is {image.mode}, expected gray PNG of 8 or 16 bits")
    try:
        image.load()
        ids = np.asarray(image).astype(np.int32)
    except INVALID:
        raise BadSample("id map truncated or invalid") from None
    if size is None or size == ids.shape:
        return ids
    (h, w), (height, width) = ids.shape, size
    # In the reduced map of a long image the shorter side is off by up to half a pixel.
    if abs(h * width - w * height) > max(MAX_ASPECT_GAP * h * width, max(size) / 2):
        raise BadSample("id map and image differ in shape")
    return resize_ids(ids, size)


def draw_window(
    size: tuple[int, int], rng: np.random.Generator, *, random_crop: bool, flip: bool
) -> Window:
    """Largest square of an image of (h, w), at random or centred; mirrored half the time."""
    h, w = size
    side = min(h, w)
    place, coin = rng.random(2)
    offset = int(place * (max(h, w) - side + 1)) if random_crop else (max(h, w) - side) // 2
    top, left = (offset, 0) if h > w else (0, offset)
    return Window(top, left, side, flip and bool(coin < 0.5))


def cut(array: Shaped[np.ndarray, "h w *c"], window: Window) -> Shaped[np.ndarray, "s s *c"]:
    """The window's part; the same window keeps an image and its id map aligned."""
    part = array[window.top : window.top + window.side, window.left : window.left + window.side]
    return np.ascontiguousarray(part[:, ::-1] if window.flip else part)


def resize_pixels(pixels: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "s s 3"]:
    """Bicubic with antialiasing."""
    if pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def resize_ids(ids: Int32[np.ndarray, "h w"], size: tuple[int, int]) -> Int32[np.ndarray, "s t"]:
    """Nearest (pixel centres): an id is never a mixture."""
    if ids.shape == size:
        return ids
    return ids[nearest(size[0], ids.shape[0])[:, None], nearest(size[1], ids.shape[1])]


def nearest(size: int, num: int) -> Int64[np.ndarray, " size"]:
    """Which of `num` pixels the centre of each of `size` pixels of the same line lies in."""
    return ((np.arange(size) * 2 + 1) * num) // (2 * size)


def _open(data: bytes, formats: tuple[str, ...], max_pixels: int) -> Image.Image:
    """Header only; the format is sniffed from the bytes, whatever the file's name says."""
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise BadSample("over max_pixels") from None
    except INVALID:
        raise BadSample(f"not {'|'.join(formats)}") from None
    if image.width * image.height > max_pixels:
        raise BadSample("over max_pixels")
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit gray: convert() would clip it to white
        gray = np.asarray(image).astype(np.float32) / 257
        return Image.fromarray(gray.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
