"""Height and width of an image file, from its header."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import cast

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
EXIF_ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # EXIF orientations in which height and width change places
MAX_SIDE = 65535

# what Pillow raises for invalid files (Image.DecompressionBombError is a plain Exception)
INVALID = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class Part(io.RawIOBase):
    """A member as a file, of which no more is read than is asked for."""

    def __init__(self, read: Callable[[int, int], bytes], offset: int, size: int) -> None:
        self.source, self.offset, self.size, self.place = read, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        self.place = max(0, start + offset)
        return self.place

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.size - self.place)
        data = self.source(self.offset + self.place, left if size < 0 else min(size, left))
        self.place += len(data)
        return data


def read_size(read: Callable[[int, int], bytes], offset: int, size: int) -> tuple[int, int]:
    """(h, w) after the EXIF orientation, nothing decoded; (0, 0) where the header is of no use."""
    try:
        image = Image.open(cast(io.BytesIO, Part(read, offset, size)), formats=FORMATS)
        turned = False
        if image.format == "JPEG" or "exif" in image.info:  # a PNG's would be decoded for it
            turned = image.getexif().get(EXIF_ORIENTATION, 1) in TURNED
    except INVALID:
        return 0, 0
    h, w = (image.width, image.height) if turned else (image.height, image.width)
    return (h, w) if max(h, w) <= MAX_SIDE else (0, 0)
