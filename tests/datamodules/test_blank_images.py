"""Images that are not decoded."""

import io

import numpy as np
import pytest
from PIL import Image

from spatext.datamodules.image_sizes import EXIF_ORIENTATION
from spatext.datamodules.images import blank_image, decode_image
from spatext.datamodules.shards import BadSample


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("min_side", [None, 20, 70])
def test_a_blank_image_has_the_size_of_the_image(
    kind: str, orientation: int, min_side: int | None
) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    file = io.BytesIO()
    Image.new("RGB", (150, 90), (9, 8, 7)).save(file, kind, exif=exif)
    blank, image = (read(file.getvalue(), 10**6, min_side) for read in (blank_image, decode_image))
    assert blank.size == image.size
    assert (image.width < image.height) == (orientation > 4)
    assert not np.asarray(blank).any()
    with pytest.raises(BadSample, match="over max_pixels"):
        blank_image(file.getvalue(), 100, min_side)
