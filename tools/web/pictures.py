"""Pictures as bytes: decoded within limits, encoded without a file."""

import base64
import binascii
import io

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from spatext.datamodules.images import FORMATS, INVALID, decode_image
from spatext.datamodules.shards import BadSample
from spatext.tools.web.limits import Refusal

MAX_PREVIEW = 320  # pixels a side: a preview is looked at for a moment


def decode_base64(key: str, value: object) -> bytes:
    """Strictly, and with or without the head of a data URL."""
    if not isinstance(value, str):
        raise Refusal(f"{key}: expected base64 text, found {type(value).__name__}")
    try:
        return base64.b64decode(value.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(f"{key}: found no base64, expected the bytes in base64") from None


def decode_photo(key: str, data: bytes, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of exactly `size`; another size is refused before its pixels are decoded."""
    height, width = picture_size(key, data)
    if (height, width) != size:
        raise Refusal(
            f"{key}: the image is {width} x {height} pixels ({width * height / 1e6:.1f} million), "
            f"expected those of the canvas, {size[1]} x {size[0]}"
        )
    try:
        photo = np.asarray(decode_image(data, height * width))
    except BadSample as error:
        raise Refusal(f"{key}: {error}") from None
    if photo.shape[:2] != size:
        raise Refusal(f"{key}: the image is turned by its EXIF data, expected it upright")
    return photo


def picture_size(key: str, data: bytes) -> tuple[int, int]:
    """(height, width) by the header alone."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return picture.height, picture.width
    except INVALID:
        raise Refusal(f"{key}: found no image, expected {', '.join(FORMATS)}") from None


def encode_png(
    pixels: Shaped[np.ndarray, "h w *c"], metadata: dict[str, str] | None = None
) -> bytes:
    """Pillow reads `metadata` back as `picture.text`."""
    info = PngInfo()
    for key, text in (metadata or {}).items():
        info.add_itxt(key, text)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def encode_preview(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    picture = Image.fromarray(pixels)
    picture.thumbnail((MAX_PREVIEW, MAX_PREVIEW))
    return encode_png(np.asarray(picture))


def data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
