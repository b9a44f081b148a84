"""Against second implementations, and against what resampling must keep."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage.measure import block_reduce
from torch.testing import assert_close

from spatext.modules.functional.random import Purpose, uniform
from spatext.modules.functional.resampling import blur, downsample, random_crops, upsample

INDEX = torch.tensor([3, 1, 1000, 2**33 + 7])


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape) * 2 - 1


def test_downsampling_is_the_mean_over_cells() -> None:
    image = images(2, 3, 12, 20)
    expected = block_reduce(image.numpy(), (1, 1, 4, 4), np.mean)
    assert_close(downsample(image, 4), torch.from_numpy(expected), atol=1e-6, rtol=0)
    assert downsample(image, 1) is image


@pytest.mark.parametrize("size", [(12, 14), (14, 12)])
def test_downsampling_refuses_cells_that_are_cut(size: tuple[int, int]) -> None:
    text = f"image: found {size[0]} x {size[1]} pixels, expected sides that are multiples of 4"
    with pytest.raises(ValueError, match=text):
        downsample(images(1, 3, *size), 4)


@pytest.mark.parametrize("factor", [2, 4])
def test_upsampling_is_that_of_pillow(factor: int) -> None:
    """Whose bicubic has a = -0.5 and renormalised borders, as torch's antialiased one."""
    image = images(2, 3, 6, 9)
    found = upsample(image, factor)
    for row, channel in np.ndindex(2, 3):
        plane = Image.fromarray(image[row, channel].numpy())
        expected = np.array(plane.resize((9 * factor, 6 * factor), Image.Resampling.BICUBIC))
        assert_close(found[row, channel], torch.from_numpy(expected), atol=1e-5, rtol=0)
    assert found.abs().max() > 1  # overshoot is kept
    assert upsample(image, 1) is image


def test_a_smooth_image_survives_both_ways() -> None:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    image = torch.stack([(0.05 * x).sin(), (0.04 * y).cos(), 0.01 * (x + y)])[None]
    found = upsample(downsample(image, 4), 4)
    assert (found - image)[..., 8:-8, 8:-8].abs().max() < 0.01  # nothing is shifted


@pytest.mark.parametrize("sigma", [0.6, 1.1])
def test_the_blur_is_that_of_scipy(sigma: float) -> None:
    image = images(2, 3, 7, 5)
    options = {"sigma": sigma, "radius": 1, "mode": "mirror", "axes": (2, 3)}
    expected = ndimage.gaussian_filter(image.double().numpy(), **options)
    found = blur(image, sigma)
    assert_close(found.double(), torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_autocast_does_not_round_the_blur() -> None:
    image = images(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = blur(image)
    assert_close(found, blur(image), atol=1e-6, rtol=0)


def test_crops_are_cut_where_their_numbers_say() -> None:
    image, ids = images(4, 3, 11, 14), torch.randint(0, 9, (4, 11, 14), dtype=torch.uint8)
    cut, cut_ids = random_crops([image, ids], 5, 9, INDEX)
    draws = uniform(9, Purpose.CROP, INDEX, (2,))
    for row, (y, x) in enumerate((draws.double() * torch.tensor([7, 10])).long().tolist()):
        assert torch.equal(cut[row], image[row, :, y : y + 5, x : x + 5])
        assert torch.equal(cut_ids[row], ids[row, y : y + 5, x : x + 5])


def test_a_crop_depends_on_seed_and_index_alone() -> None:
    image = images(4, 3, 40, 40)
    (whole,) = random_crops([image], 8, 0, INDEX)
    (part,) = random_crops([image[2:3]], 8, 0, INDEX[2:3])
    assert torch.equal(part[0], whole[2])
    (other,) = random_crops([image], 8, 1, INDEX)
    assert not torch.equal(other, whole)


def test_every_place_has_its_chance_and_none_is_outside() -> None:
    places = torch.arange(4 * 6, dtype=torch.uint8).view(1, 4, 6).expand(3000, -1, -1)
    (cut,) = random_crops([places], 3, 0, torch.arange(3000))
    corners, counts = cut[:, 0, 0].unique(return_counts=True)
    assert corners.tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    assert ((counts - 375).abs() < 5 * 375**0.5).all()
    assert torch.equal(cut[:, 2, 2], cut[:, 0, 0] + 14)


def test_the_whole_image_is_one_crop_and_more_is_refused() -> None:
    image = images(4, 3, 6, 6)
    assert torch.equal(random_crops([image], 6, 0, INDEX)[0], image)
    text = "crop: found 7, expected at most the sides of the images, 6 x 6"
    with pytest.raises(ValueError, match=text):
        random_crops([image], 7, 0, INDEX)
