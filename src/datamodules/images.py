"""Bytes of an image file to RGB pixels and of an id map to ids, bounded and strict; joint geometry.

What PIL would let pass silently is settled here: EXIF orientation is applied, transparency is laid
on white, 16-bit gray is scaled; colour profiles are ignored; an animation is its first frame.
"""

import io
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int32, Int64, Integer, Shaped, UInt8, UInt32
from PIL import Image, ImageOps
from torch.nn.functional import interpolate

from .image_sizes import EXIF_ORIENTATION, FORMATS, INVALID
from .shards import BadSample

MAX_ASPECT_GAP = 0.02  # relative; a stored id map may have another size, not another shape


class Window(NamedTuple):
    """The part that training sees of an image, in pixels of it, perhaps mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def decode_image(data: bytes, max_pixels: int, min_side: int | None = None) -> Image.Image:
    """RGB image. `min_side`: a JPEG may be decoded at 1/2, 1/4 or 1/8 if no side gets shorter.

    BadSample for another format, a size over `max_pixels` (checked before decoding) and anything
    truncated or invalid.
    """
    image = _open(data, FORMATS, max_pixels)
    try:
        if min_side is not None:
            _reduce(image, min_side)
        image.load()
        if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        return _rgb(image)
    except INVALID:
        raise BadSample("image truncated or invalid") from None


def blank_image(data: bytes, max_pixels: int, min_side: int | None = None) -> Image.Image:
    """Black, of the size that `decode_image` would give it, without decoding it."""
    image = _open(data, FORMATS, max_pixels)
    try:
        if min_side is not None:
            _reduce(image, min_side)
        turned = image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except INVALID:
        raise BadSample("image truncated or invalid") from None
    return Image.new("RGB", image.size[::-1] if turned else image.size)


def black(*shape: int) -> UInt8[np.ndarray, "*s"]:
    return np.zeros(shape, dtype=np.uint8)


def decode_ids(
    data: bytes, max_pixels: int, size: tuple[int, int] | None = None
) -> Int32[np.ndarray, "h w"]:
    """Segment ids (0 = void) from a gray 8- or 16-bit PNG, brought to `size` = (h, w) by nearest.

    A stored map lies in the frame of the image after its EXIF orientation.
    """
    ids = _load_ids(data, max_pixels).astype(np.int32, copy=False)
    if size is None:
        return ids
    _check_shape(ids.shape, size)
    return resize_ids(ids, size)


def decode_window_ids(
    data: bytes, max_pixels: int, size: tuple[int, int], window: Window
) -> Integer[np.ndarray, "s t"]:
    """cut(decode_ids(data, max_pixels, size), window) without what the window does not show; a map
    of 8 bits stays one of bytes."""
    ids = _load_ids(data, max_pixels)
    _check_shape(ids.shape, size)
    if ids.shape == size:
        return cut(ids, window)
    rows = nearest(size[0], ids.shape[0])[window.top : window.top + window.height]
    cols = nearest(size[1], ids.shape[1])[window.left : window.left + window.width]
    return take_ids(ids, rows, cols[::-1] if window.flip else cols)


def draw_window(
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    random_crop: bool,
    flip: bool,
    shape: tuple[int, int] = (1, 1),
) -> Window:
    """Largest part of an image of (h, w) with the aspect of `shape`, a square by default, at random
    or centred; mirrored half the time."""
    (h, w), (rows, cols) = size, shape
    height = min(h, max(1, round(w * rows / cols)))
    width = min(w, max(1, round(h * cols / rows)))
    place, coin = rng.random(2)
    rest = h - height or w - width  # one of them is whole
    offset = int(place * (rest + 1)) if random_crop else rest // 2
    top, left = (offset, 0) if h > height else (0, offset)
    return Window(top, left, height, width, flip and bool(coin < 0.5))


def cut(array: Shaped[np.ndarray, "h w *c"], window: Window) -> Shaped[np.ndarray, "s t *c"]:
    """The window's part; the same window keeps an image and its id map aligned."""
    if array.ndim == 3 and array.shape[2] == 4 and array.dtype == np.uint8:
        return cut(words(array), window)[..., None].view(np.uint8)
    top, left = window.top, window.left
    part = array[top : top + window.height, left : left + window.width]
    return (part[:, ::-1] if window.flip else part).copy()


def rgbx(image: Image.Image) -> UInt8[np.ndarray, "h w 4"]:
    """Of an RGB image; the fourth byte means nothing. Pixels that are words are cut, mirrored and
    masked several times as fast as pixels that are three bytes."""
    data = np.frombuffer(image.tobytes("raw", "RGBX"), dtype=np.uint8)
    return data.reshape(image.height, image.width, 4)


def words(pixels: UInt8[np.ndarray, "h w 4"]) -> UInt32[np.ndarray, "h w"]:
    """The same memory."""
    return pixels.view(np.uint32)[..., 0]


def resize_planes(
    pixels: UInt8[np.ndarray, "h w c"], size: int | tuple[int, int]
) -> UInt8[np.ndarray, "3 s t"]:
    """Bicubic with antialiasing (Keys' cubic with a = -0.5, as Pillow's), RGB of three or four
    channels.

    PyTorch's resize of bytes: weights of 16 bits, so that sums are exact in integers and the same
    on every processor. Against Pillow's, whose weights have 22 bits, a few values in a thousand
    differ, by 1 or 2 of 255; it takes a quarter of the time.
    """
    if pixels.shape[:2] == _pair(size):
        return np.ascontiguousarray(pixels[..., :3].transpose(2, 0, 1))
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    planes = interpolate(batch, size=_pair(size), mode="bicubic", antialias=True)[0, :3]
    return planes.contiguous().numpy()


def resize_ids(
    ids: Integer[np.ndarray, "h w"], size: tuple[int, int]
) -> Integer[np.ndarray, "s t"]:
    """Nearest (pixel centres): an id is never a mixture."""
    if ids.shape == size:
        return ids
    return take_ids(ids, nearest(size[0], ids.shape[0]), nearest(size[1], ids.shape[1]))


def take_ids(
    ids: Integer[np.ndarray, "h w"], rows: Int64[np.ndarray, " s"], cols: Int64[np.ndarray, " t"]
) -> Integer[np.ndarray, "s t"]:
    """ids[rows][:, cols], the smaller of the two in between."""
    if len(rows) * ids.shape[1] < len(cols) * ids.shape[0]:
        return ids.take(rows, axis=0).take(cols, axis=1)
    return ids.take(cols, axis=1).take(rows, axis=0)


def nearest(size: int, num: int) -> Int64[np.ndarray, " size"]:
    """Which of `num` pixels the centre of each of `size` pixels of the same line lies in."""
    return ((np.arange(size) * 2 + 1) * num) // (2 * size)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


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


def _reduce(image: Image.Image, min_side: int) -> None:
    if image.format == "JPEG":
        scale = min_side / min(image.size)
        image.draft(None, (round(image.width * scale), round(image.height * scale)))


def _load_ids(data: bytes, max_pixels: int) -> Integer[np.ndarray, "h w"]:
    """uint8 of a map of 8 bits, else int32."""
    image = _open(data, ("PNG",), max_pixels)
    if image.mode not in ("1", "L", "P", "I;16", "I;16B", "I"):
        raise BadSample(f"id map is {image.mode}, expected gray PNG of 8 or 16 bits")
    try:
        image.load()
        ids = np.asarray(image)
    except INVALID:
        raise BadSample("id map truncated or invalid") from None
    return ids.astype(np.uint8 if image.mode in ("1", "L", "P") else np.int32, copy=False)


def _check_shape(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    (h, w), (height, width) = shape, size
    # In the reduced map of a long image the shorter side is off by up to half a pixel.
    if abs(h * width - w * height) > max(MAX_ASPECT_GAP * h * width, max(size) / 2):
        raise BadSample("id map and image differ in shape")


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
