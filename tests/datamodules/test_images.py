import io
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from spatext.datamodules.images import (
    Window,
    cut,
    decode_ids,
    decode_image,
    decode_window_ids,
    draw_window,
    resize_ids,
    resize_planes,
    rgbx,
)
from spatext.datamodules.shards import BadSample
from tars import png

MAX_PIXELS = 10_000
RED, GREEN, BLUE, WHITE, GREY = (250, 0, 0), (0, 250, 0), (0, 0, 250), (255,) * 3, (156,) * 3


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (8, 6), colour)


def palette(transparency: int | None) -> bytes:
    image = plain("P", 1)
    image.putpalette([*RED, *GREEN])
    options = {} if transparency is None else {"transparency": transparency}
    return encode(image, "PNG", **options)


def animation() -> bytes:
    frames = [plain("RGB", GREEN), plain("RGB", RED)]
    return encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: encode(plain("RGB", GREEN), "JPEG", quality=100), GREEN),
        (lambda: encode(plain("RGB", GREEN), "PNG"), GREEN),
        (lambda: encode(plain("RGB", GREEN), "WEBP", lossless=True), GREEN),
        (lambda: encode(plain("L", 156), "JPEG"), GREY),
        (lambda: encode(plain("L", 156), "PNG"), GREY),
        (lambda: encode(plain("1", 1), "PNG"), WHITE),
        (lambda: encode(plain("CMYK", (255, 0, 255, 0)), "JPEG", quality=100), (0, 255, 0)),
        (lambda: encode(plain("RGBA", (0, 250, 0, 255)), "PNG"), GREEN),
        (lambda: encode(plain("RGBA", (0, 250, 0, 0)), "PNG"), WHITE),
        (lambda: encode(plain("RGBA", (0, 0, 0, 51)), "PNG"), (204, 204, 204)),
        (lambda: encode(plain("LA", (0, 51)), "PNG"), (204, 204, 204)),
        (lambda: encode(plain("RGBA", (0, 250, 0, 0)), "WEBP", lossless=True), WHITE),
        (lambda: palette(None), GREEN),
        (lambda: palette(0), GREEN),
        (lambda: palette(1), WHITE),
        (lambda: png(np.full((6, 8), 40000, dtype=np.uint16)), GREY),
        (animation, GREEN),
    ],
    ids=(
        "jpeg png webp gray-jpeg gray-png bilevel cmyk opaque clear half gray-alpha clear-webp "
        "palette palette-other-clear palette-clear sixteen-bit animation"
    ).split(),
)
def test_every_kind_becomes_rgb(make: Callable[[], bytes], expected: tuple[int, ...]) -> None:
    image = decode_image(make(), MAX_PIXELS)
    assert (image.mode, image.size) == ("RGB", (8, 6))
    pixels = np.asarray(image).astype(int)
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, (6, 8, 3)), atol=3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(kind: str) -> None:
    image = Image.new("RGB", (64, 32), RED)
    image.paste(BLUE, (32, 0, 64, 32))  # stored: red left, blue right
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: red above, blue below
    upright = decode_image(encode(image, kind, exif=exif), MAX_PIXELS)
    assert upright.size == (32, 64)
    assert upright.getpixel((16, 8))[0] > 200
    assert upright.getpixel((16, 56))[2] > 200


def test_large_jpeg_is_decoded_smaller_but_not_below_min_side() -> None:
    data = encode(Image.new("RGB", (100, 64), GREEN), "JPEG")
    sizes = [decode_image(data, MAX_PIXELS, side).size for side in (65, 64, 33, 32, 16, 8, 1)]
    assert sizes == [(100, 64), (100, 64), (100, 64), (50, 32), (25, 16), (13, 8), (13, 8)]


def test_size_is_bounded_before_decoding() -> None:
    """The refused file has no pixel data at all: decoding it would say truncated."""
    bomb = encode(Image.new("L", (20_000, 9_000)), "PNG")
    assert len(bomb) < 300_000
    with pytest.raises(BadSample, match="over max_pixels"):
        decode_image(bomb, 64_000_000)
    header = encode(Image.new("L", (101, 100)), "PNG")[:41]
    with pytest.raises(BadSample, match="over max_pixels"):
        decode_image(header, MAX_PIXELS)
    with pytest.raises(BadSample, match="over max_pixels"):
        decode_ids(encode(Image.new("L", (101, 100)), "PNG"), MAX_PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6, 0.97])
def test_truncated_is_refused(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    with pytest.raises(BadSample):
        decode_image(data[: int(len(data) * share)], MAX_PIXELS)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "EPS", "PPM"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(BadSample, match=r"not JPEG\|PNG\|WEBP"):
        decode_image(encode(plain("RGB", RED), kind), MAX_PIXELS)


def test_damaged_png_is_refused() -> None:
    data = bytearray(encode(plain("RGB", RED), "PNG"))
    at = data.index(b"IDAT") + 4
    data[at : at + 8] = zlib.compress(b"x")[:8]
    with pytest.raises(BadSample):
        decode_image(bytes(data), MAX_PIXELS)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_ids_survive_exactly(dtype: type[np.unsignedinteger]) -> None:
    ids = np.array([[0, 1, 2], [200, 255, np.iinfo(dtype).max]], dtype=dtype)
    decoded = decode_ids(png(ids), MAX_PIXELS)
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, ids)


def test_ids_of_another_size_come_by_nearest_and_of_another_shape_not_at_all() -> None:
    ids = np.array([[1, 2], [3, 300]], dtype=np.uint16)
    decoded = decode_ids(png(ids), MAX_PIXELS, (4, 4))
    np.testing.assert_array_equal(decoded, ids.repeat(2, 0).repeat(2, 1))
    with pytest.raises(BadSample, match="differ in shape"):
        decode_ids(png(ids), MAX_PIXELS, (4, 6))
    long = np.arange(14 * 64, dtype=np.uint16).reshape(14, 64)  # 64 / 300 of 64 is 13.65
    assert decode_ids(png(long), MAX_PIXELS, (64, 300)).shape == (64, 300)
    with pytest.raises(BadSample, match="id map is RGB"):
        decode_ids(encode(plain("RGB", RED), "PNG"), MAX_PIXELS)
    with pytest.raises(BadSample, match="not PNG"):
        decode_ids(encode(plain("L", 3), "JPEG"), MAX_PIXELS)


def test_nearest_equals_pillow() -> None:
    ids = np.random.default_rng(0).integers(0, 9, (13, 29)).astype(np.int32)
    for size in ((13, 29), (7, 11), (20, 64)):
        pillow = Image.fromarray(ids).resize(size[::-1], Image.Resampling.NEAREST)
        np.testing.assert_array_equal(resize_ids(ids, size), np.asarray(pillow))


def test_window_is_the_largest_square_at_every_place() -> None:
    rng = np.random.default_rng(0)
    wide = [draw_window((6, 9), rng, random_crop=True, flip=True) for _ in range(400)]
    assert {(w.top, w.height, w.width) for w in wide} == {(0, 6, 6)}
    np.testing.assert_allclose(np.bincount([w.left for w in wide]) / 400, 0.25, atol=0.07)
    assert 0.4 < np.mean([w.flip for w in wide]) < 0.6
    assert draw_window((9, 6), rng, random_crop=False, flip=False) == Window(1, 0, 6, 6, False)


@pytest.mark.parametrize(
    ("size", "shape", "window"),
    [
        ((40, 60), (2, 3), (0, 0, 40, 60)),
        ((40, 60), (384, 640), (2, 0, 36, 60)),
        ((40, 60), (448, 576), (0, 4, 40, 51)),
        ((40, 60), (3, 2), (0, 16, 40, 27)),
        ((1, 300), (2, 1), (0, 149, 1, 1)),
    ],
)
def test_window_is_the_largest_part_of_a_shape(
    size: tuple[int, int], shape: tuple[int, int], window: tuple[int, int, int, int]
) -> None:
    rng = np.random.default_rng(0)
    centred = draw_window(size, rng, random_crop=False, flip=False, shape=shape)
    assert centred == Window(*window, False)
    drawn = [draw_window(size, rng, random_crop=True, flip=False, shape=shape) for _ in range(300)]
    assert {(w.height, w.width) for w in drawn} == {window[2:]}
    rows, cols = size[0] - window[2], size[1] - window[3]
    assert {w.top for w in drawn} == set(range(rows + 1))
    assert len({w.left for w in drawn}) > 0.6 * (cols + 1)
    assert max(w.left for w in drawn) <= cols


def test_cut_and_flip() -> None:
    array = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(cut(array, Window(0, 1, 3, 3, False)), array[:, 1:])
    np.testing.assert_array_equal(cut(array, Window(0, 1, 2, 3, True)), array[:2, :0:-1])


def test_resize_is_the_identity_at_its_size_and_antialiased_below() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[::2] = 200
    np.testing.assert_array_equal(resize_planes(stripes, 64), stripes.transpose(2, 0, 1))
    np.testing.assert_allclose(resize_planes(stripes, 16)[:, 2:-2].astype(float), 100, atol=6)


@pytest.mark.parametrize("size", [7, 16, 50, (12, 31)])
def test_resize_is_that_of_pillow_but_for_roundings(size: int | tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    # nothing overshoots, so that clipping between the passes does not matter
    pixels = rng.integers(90, 160, (40, 33, 4), dtype=np.uint8)
    height, width = (size, size) if isinstance(size, int) else size
    pillow = Image.fromarray(np.ascontiguousarray(pixels[..., :3])).resize((width, height))
    assert Image.Resampling.BICUBIC == 3  # Pillow's default
    found = resize_planes(pixels, size).transpose(1, 2, 0).astype(int)
    error = np.abs(found - np.asarray(pillow))
    assert error.max() <= 2
    assert error.mean() <= (0.05 if isinstance(size, int) else 0.4)  # Pillow's order of the passes


@pytest.mark.parametrize("flip", [False, True])
def test_pixels_that_are_words_are_cut_as_others(flip: bool) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)
    pixels = rgbx(Image.fromarray(array))
    window = Window(2, 3, 5, 8, flip)
    part = cut(pixels, window)
    assert part.shape == (5, 8, 4)
    assert part.flags.writeable
    np.testing.assert_array_equal(part[..., :3], cut(array, window))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("top", [255, 300])
@pytest.mark.parametrize("size", [(40, 60), (90, 135), (21, 31)])
def test_a_window_of_a_map_is_cut_from_it(size: tuple[int, int], top: int, flip: bool) -> None:
    ids = np.random.default_rng(0).integers(0, top + 1, (40, 60))
    data = png(ids.astype(np.uint8 if top == 255 else np.uint16))
    window = Window(3, 4, size[0] // 2, size[1] // 3, flip)
    found = decode_window_ids(data, MAX_PIXELS, size, window)
    np.testing.assert_array_equal(found, cut(decode_ids(data, MAX_PIXELS, size), window))
    with pytest.raises(BadSample, match="differ in shape"):
        decode_window_ids(data, MAX_PIXELS, (size[0], size[0]), window)
