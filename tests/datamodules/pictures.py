"""Images without a likeness to each other, and what the web does to copies of them."""

import io

import numpy as np
from PIL import Image


def picture(seed: int) -> Image.Image:
    """240 x 180: smooth colours with some edges."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((240, 180), Image.Resampling.BICUBIC)
    for _ in range(3):
        x, y, w, h = (int(v) for v in rng.integers(20, 110, 4))
        image.paste(tuple(int(c) for c in rng.integers(0, 256, 3)), (x, y, x + w, y + h))
    return image


def jpeg(image: Image.Image, quality: int = 40) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def recompressed(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(jpeg(image))).convert("RGB")


def cropped(image: Image.Image, border: int = 2) -> Image.Image:
    """Without so many pixels on each side."""
    return image.crop((border, border, image.width - border, image.height - border))
