import numpy as np
import pytest

from spatext.datamodules.conversions import scene_from_masks, scene_from_segments
from spatext.datamodules.scenes import Region, Scene

TEXTS = {70000: "a dog", 3: "a sky", 5: "a ball", 8: "grass"}


def wide_ids():
    """8 x 12, whose central square is its columns 2 .. 9."""
    ids = np.zeros((8, 12), dtype=np.int32)
    ids[:, :2], ids[:3, 2:10] = 8, 3  # grass lies outside the square, the sky covers 24 of its 64
    ids[3:7, 4:7], ids[7, 2:4] = 70000, 5  # 12 and 2
    return ids


def square_ids(*texts):
    ids = np.zeros((8, 8), dtype=np.uint8)
    for k, text in enumerate(texts, start=1):
        rows, columns = {"a sky": (slice(0, 3), slice(0, 8)), "a dog": (slice(3, 7), slice(2, 5))}[
            text
        ]
        ids[rows, columns] = k
    return ids


def convert(**options):
    return scene_from_segments(wide_ids(), TEXTS, name="s", **{"size": 8} | options)


def test_largest_segments_of_the_central_square_become_regions():
    scene = convert(prompt="a park", seed=4)
    assert (scene.name, scene.prompt, scene.size, scene.seed) == ("s", "a park", (8, 8), 4)
    assert scene.texts == ("a sky", "a dog")  # the ball covers 2/64 < 0.05
    np.testing.assert_array_equal(scene.ids(), square_ids("a sky", "a dog"))


def test_number_area_and_size_are_asked_for():
    np.testing.assert_array_equal(convert(num_regions=1).ids(), square_ids("a sky"))
    assert convert(min_area=2 / 64).texts == ("a sky", "a dog", "a ball")
    assert convert(min_area=13 / 64).texts == ("a sky",)
    large = convert(size=24).ids()
    np.testing.assert_array_equal(large, square_ids("a sky", "a dog").repeat(3, 0).repeat(3, 1))


def test_tall_map_is_cut_in_its_middle_too():
    scene = scene_from_segments(wide_ids().T.copy(), TEXTS, name="s", size=8)
    np.testing.assert_array_equal(scene.ids(), square_ids("a sky", "a dog").T)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_regions": 0}, "regions: found 0, expected 1 to 255"),
        ({"num_regions": 256}, "regions: found 256, expected 1 to 255"),
        ({"size": 0}, "size: found 0, expected 1 to 8192"),
        ({"size": 9000}, "size: found 9000, expected 1 to 8192"),
        ({"min_area": 5.0}, r"min_area: found 5\.0, expected a share of the image in 0\.\.1"),
        (
            {"min_area": 0.4},
            r"s: the largest segment covers 0\.375 of the central square, expected min_area = 0\.4 "
            "or more",
        ),
    ],
)
def test_mistake_in_what_is_asked_for_is_named(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        convert(**options)


def test_masks_become_regions_in_the_order_of_their_texts():
    masks = {"a": np.eye(4, dtype=np.bool_), "b": np.ones((4, 4), dtype=np.bool_)}
    scene = scene_from_masks(masks, {"b": "a wall", "a": "a crack"}, name="s", prompt="p", seed=2)
    regions = (Region("a wall", masks["b"]), Region("a crack", masks["a"]))
    assert scene == Scene("s", "p", (4, 4), 2, regions)


def test_name_with_only_a_mask_or_a_text_is_named():
    masks = {"a": np.eye(4, dtype=np.bool_)}
    with pytest.raises(ValueError, match=r"^b: has no mask \(2 of these in all\)$"):
        scene_from_masks(masks, {"a": "x", "b": "y", "c": "z"}, name="s")
    with pytest.raises(ValueError, match=r"^a: has no text \(1 of these in all\)$"):
        scene_from_masks(masks, {}, name="s")
    with pytest.raises(ValueError, match=r"^s: found no masks, expected at least one$"):
        scene_from_masks({}, {}, name="s")
