"""Against `crops.crop_planes`, as workers cut one segment."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from spatext.datamodules.crops import crop_planes, square_box
from spatext.datamodules.device_crops import crop_segments, resize_weights, square_boxes


def random_scene(seed: int, size: tuple[int, int], num: int) -> tuple[np.ndarray, np.ndarray]:
    """(pixels with detail at every scale, ids of `num` ragged segments, some at the border)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))
    noise = rng.integers(-60, 60, (*size, 3))
    pixels = (smooth + noise).clip(0, 255).astype(np.uint8)
    ids = np.zeros(size, dtype=np.int32)
    y, x = np.mgrid[: size[0], : size[1]]
    for i in range(1, num + 1):
        centre = rng.random(2) * size
        radii = 1 + rng.random(2) * np.array(size) / 2
        distance = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2
        ids[distance + 0.1 * rng.random(size) < 1] = i
    return pixels, ids


def device_crops(
    pixels: np.ndarray, ids: np.ndarray, numbers: list[int], size: int, device: str = "cpu"
) -> np.ndarray:
    crops = crop_segments(
        torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous().to(device),
        torch.from_numpy(ids)[None].to(device),
        torch.zeros(len(numbers), dtype=torch.int64, device=device),
        torch.tensor(numbers, dtype=torch.int64, device=device),
        size,
    )
    return crops.cpu().numpy()


@pytest.fixture
def fast_products() -> Iterator[None]:
    """As training may have it: TF32 on a GPU, bfloat16 on a CPU that has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("crop_size", [8, 24, 33])
@pytest.mark.parametrize("size", [(96, 96), (40, 72), (64, 31), (20, 300)])
def test_the_same_bytes_as_the_workers(
    size: tuple[int, int], crop_size: int, device: str, fast_products: None
) -> None:
    """Reductions and enlargements, squares that leave the image on each side."""
    for seed in range(4):
        pixels, ids = random_scene(seed, size, 6)
        numbers = [int(i) for i in np.unique(ids) if i]
        found = device_crops(pixels, ids, numbers, crop_size, device)
        for crop, i in zip(found, numbers, strict=True):
            np.testing.assert_array_equal(crop, crop_planes(pixels, ids == i, crop_size))
    assert torch.get_float32_matmul_precision() == "medium"  # as it was


def test_large_windows_are_counted_exactly() -> None:
    """Of white, which makes the largest sums."""
    pixels = np.full((896, 896, 3), 255, dtype=np.uint8)
    pixels[::3, ::5] = 254
    ids = np.ones((896, 896), dtype=np.uint8)
    for crop_size in (224, 7):
        (crop,) = device_crops(pixels, ids, [1], crop_size)
        np.testing.assert_array_equal(crop, crop_planes(pixels, ids == 1, crop_size))


def test_without_a_resize_it_is_the_masked_square() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 256, (10, 12, 3), dtype=np.uint8)
    ids = np.zeros((10, 12), dtype=np.int32)
    ids[0:2, 6:12] = 5
    ids[0, 7] = 0
    (crop,) = device_crops(pixels, ids, [5], 6)
    np.testing.assert_array_equal(crop, crop_planes(pixels, ids == 5, 6))


def test_squares_are_those_of_the_other_way() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((50, 9, 13), dtype=bool)
    for mask in masks:
        top, left = rng.integers(0, (9, 13))
        mask[top : top + rng.integers(1, 9), left : left + rng.integers(1, 13)] = True
    boxes = torch.stack(square_boxes(torch.from_numpy(masks)), dim=1).tolist()
    assert [tuple(box) for box in boxes] == [square_box(mask) for mask in masks]


def test_crops_of_a_batch_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as alone, also where they are cut in several parts."""
    scenes = [random_scene(seed, (40, 40), 3) for seed in range(3)]
    pixels = torch.from_numpy(np.stack([p for p, _ in scenes])).permute(0, 3, 1, 2).contiguous()
    ids = torch.from_numpy(np.stack([i for _, i in scenes])).to(torch.uint8)
    image, number = torch.tensor([2, 0, 0, 1, 2]), torch.tensor([1, 2, 3, 1, 3])
    together = crop_segments(pixels, ids, image, number, 16)
    for crop, i, k in zip(together, image.tolist(), number.tolist(), strict=True):
        assert torch.equal(crop, torch.from_numpy(device_crops(*scenes[i], [k], 16))[0])
    monkeypatch.setattr("spatext.datamodules.device_crops.MAX_VALUES", 2 * 3 * 40 * 40)
    assert torch.equal(crop_segments(pixels, ids, image, number, 16), together)


def test_nothing_to_cut() -> None:
    pixels, ids = random_scene(0, (20, 20), 1)
    assert device_crops(pixels, ids, [], 8).shape == (0, 3, 8, 8)
    assert not device_crops(pixels, ids, [9], 8).any()  # no such segment


def test_weights_of_a_row_sum_to_one_inside_the_image() -> None:
    start, side = torch.tensor([3, -4, 0]), torch.tensor([9, 20, 31])
    weights, bits = resize_weights(start, side, 31, 8, 31)
    assert torch.equal(weights, weights.round())
    shares = weights / 2.0 ** bits[:, None, None]
    torch.testing.assert_close(shares[0].sum(dim=1), torch.ones(8), rtol=0, atol=3e-4)
    assert not weights[0, :, :3].any()
    assert not weights[0, :, 12:].any()
    assert (shares[1, 0].sum() < 0.9).all()  # the first pixel lies partly above the image
