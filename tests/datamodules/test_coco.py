import copy

import numpy as np
import pytest

from spatext.datamodules.coco import (
    caption,
    decode_counts,
    instance_segments,
    is_panoptic,
    panoptic_name,
    panoptic_segments,
    runs_mask,
    segmentation_mask,
    spoken,
)

SIZE = (6, 8)
HEAD = {
    "images": [{"id": 42, "height": 6, "width": 8}],
    "categories": [
        {"id": 1, "name": "dog"},
        {"id": 187, "name": "sky-other-merged"},
        {"id": 118, "name": "floor-wood"},
    ],
}
LARGE = 5 + 256 * 7 + 256**2 * 3
PANOPTIC = HEAD | {
    "annotations": [
        {"image_id": 41, "file_name": "41.png", "segments_info": []},
        {
            "image_id": 42,
            "file_name": "42.png",
            "segments_info": [
                {"id": LARGE, "category_id": 187, "iscrowd": 0},
                {"id": 9, "category_id": 1},
                {"id": 300, "category_id": 1, "iscrowd": 1},
            ],
        },
    ]
}
SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]


def map_pixels():
    pixels = np.zeros((*SIZE, 3), dtype=np.uint8)
    pixels[:2] = (5, 7, 3)
    pixels[2:4, :4] = (9, 0, 0)
    pixels[4:] = (44, 1, 0)  # 300, a crowd
    return pixels


def instances(*entries):
    annotations = [{"image_id": 42, "category_id": 1} | entry for entry in entries]
    return HEAD | {"annotations": annotations}


def rectangle(y0, y1, x0, x1):
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def test_panoptic_ids_are_little_endian_colours_without_crowds():
    assert is_panoptic(PANOPTIC)
    assert panoptic_name(PANOPTIC, 42) == "42.png"
    ids, texts = panoptic_segments(PANOPTIC, 42, map_pixels())
    expected = np.zeros(SIZE, dtype=np.int32)
    expected[:2], expected[2:4, :4] = LARGE, 9
    np.testing.assert_array_equal(ids, expected)
    assert texts == {LARGE: "sky", 9: "dog"}


def test_smaller_instances_lie_on_larger_ones_and_crowds_are_left_out():
    whole = {"category_id": 118, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]}
    crowd = {"segmentation": {"size": [6, 8], "counts": [0, 48]}, "iscrowd": 1}
    other = {"segmentation": [SQUARE], "image_id": 41}
    document = instances({"segmentation": [SQUARE]}, whole, crowd, other)
    assert not is_panoptic(document)
    ids, texts = instance_segments(document, 42)
    np.testing.assert_array_equal(ids, np.where(rectangle(1, 5, 1, 5), 2, 1))
    assert texts == {1: "floor wood", 2: "dog"}


def test_polygons_are_joined():
    mask = segmentation_mask(
        [SQUARE, [6, 0, 8, 0, 8, 2, 6, 2], [0.1, 0.1, 0.2, 0.1, 0.1, 0.2]], SIZE
    )
    np.testing.assert_array_equal(mask, rectangle(1, 5, 1, 5) | rectangle(0, 2, 6, 8))


def test_runs_go_down_the_columns_and_start_outside():
    mask = runs_mask([7, 4, 2, 4, 31], SIZE)
    np.testing.assert_array_equal(mask, rectangle(1, 5, 1, 3))
    np.testing.assert_array_equal(runs_mask([0, 6, 42], SIZE), rectangle(0, 6, 0, 1))
    value = {"size": [6, 8], "counts": [7, 4, 2, 4, 31]}
    np.testing.assert_array_equal(segmentation_mask(value, SIZE), mask)


def test_compressed_runs_are_those_of_pycocotools():
    # pycocotools 2.0 encoded both masks; the second has runs of several letters.
    mask = np.zeros((20, 30), dtype=np.bool_)
    mask[3:15, 5:9] = mask[16:19, :2] = mask[5, 20:22] = mask[0, 29] = True
    value = {"size": [20, 30], "counts": "`03a00_19XN00000n6E]I0W40iK"}
    np.testing.assert_array_equal(segmentation_mask(value, (20, 30)), mask)
    large = np.zeros((300, 400), dtype=np.bool_)
    large[:, 100:390] = True
    assert decode_counts("`Ym0hnd2hm2") == [30000, 87000, 3000]
    np.testing.assert_array_equal(runs_mask(decode_counts("`Ym0hnd2hm2"), (300, 400)), large)


def test_caption_is_the_one_with_the_lowest_id():
    captions = [(41, 1, "no"), (42, 8, "a second"), (42, 3, " A dog\n at home. ")]
    entries = [{"image_id": i, "id": n, "caption": text} for i, n, text in captions]
    assert caption({"annotations": entries}, 42) == "A dog at home."
    with pytest.raises(ValueError, match=r"^captions: found none of image 7$"):
        caption({"annotations": entries}, 7)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sky-other-merged", "sky"),
        ("window-blind", "window blind"),
        ("hot dog", "hot dog"),
        ("door-stuff", "door"),
        ("other", "other"),
    ],
)
def test_names_of_stuff_are_spoken(name, words):
    assert spoken(name) == words


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "segmentation: expected lists of three or more x, y .*, found \\[\\]"),
        ([[1, 1, 5, 1]], "segmentation: expected lists of three or more .*"),
        ([[1, 1, 5, 1, 5, 5, 1]], "segmentation: expected lists of three or more .*"),
        ([[1, 1, 5, 1, 5, float("nan")]], "segmentation: expected lists of three or more .*"),
        (None, "segmentation: expected lists of three or more .*, found None"),
        ({"counts": [48]}, r"segmentation\.size: found None, expected \[6, 8\]"),
        ({"size": [8, 6], "counts": [48]}, r"segmentation\.size: found \[8, 6\], expected .*"),
        ({"size": [6, 8], "counts": [40]}, r"segmentation\.counts: found \[40\], .* fill 6x8 .*"),
        ({"size": [6, 8], "counts": [49, -1]}, r"segmentation\.counts: found \[49, -1\], .*"),
        ({"size": [6, 8]}, r"segmentation\.counts: found None, .*"),
        ({"size": [6, 8], "counts": "0!"}, r"segmentation\.counts: found '0!', .*encoding"),
        ({"size": [6, 8], "counts": "oooooooooo"}, r"segmentation\.counts: found 'o+', .*"),
    ],
)
def test_mistake_in_a_segmentation_is_named(value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        segmentation_mask(value, SIZE)


def changed(**change):
    document = copy.deepcopy(PANOPTIC)
    document["annotations"][1] |= change
    return document


@pytest.mark.parametrize(
    ("document", "image_id", "message"),
    [
        (PANOPTIC, 7, "annotations: found no image with id 7"),
        (HEAD | {"annotations": []}, 42, "annotations: found none of image 42"),
        (HEAD, 42, "annotations: found None, expected COCO's list of objects"),
        ([], 42, "images: found None, expected COCO's list of objects"),
        (
            changed(segments_info=[{"id": 9, "category_id": 1}]),
            42,
            r"image 42: found id 300 in its map, expected those of segments_info \(2 unknown .*\)",
        ),
        (
            changed(segments_info=[{"id": i, "category_id": 5} for i in (9, 300, LARGE)]),
            42,
            "annotations: found category_id 5, expected one of categories",
        ),
        (changed(segments_info=[{}]), 42, "image 42: id: missing, found "),
    ],
)
def test_mistake_in_a_panoptic_document_is_named(document, image_id, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        panoptic_segments(document, image_id, map_pixels())


def test_map_of_another_size_is_named():
    with pytest.raises(ValueError, match=r"^image 42: its map is 6x7 .*, expected 6x8 \(.*\)$"):
        panoptic_segments(PANOPTIC, 42, map_pixels()[:, 1:])


def test_image_of_crowds_alone_is_named():
    document = instances({"segmentation": {"size": [6, 8], "counts": [0, 48]}, "iscrowd": 1})
    with pytest.raises(ValueError, match=r"^image 42: found no annotation that is not a crowd$"):
        instance_segments(document, 42)
