import numpy as np

from spatext.datamodules.segmenters import GraphSegmenter, adjacency, merge_regions


def quadrants(size: int = 80) -> tuple[np.ndarray, np.ndarray]:
    truth = np.zeros((size, size), dtype=np.int64)
    truth[: size // 2, size // 2 :] = 1
    truth[size // 2 :, : size // 2] = 2
    truth[size // 2 :, size // 2 :] = 3
    colours = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [220, 220, 30]])
    noise = np.random.default_rng(0).integers(-6, 7, (size, size, 3))
    return truth, (colours[truth] + noise).astype(np.uint8)


def test_finds_the_regions_of_plain_colours() -> None:
    truth, pixels = quadrants()
    ids = GraphSegmenter(work_size=80)(pixels)
    assert ids.dtype == np.int32
    assert sorted(np.unique(ids)) == [1, 2, 3, 4]
    agreement = sum(np.bincount(ids[truth == i]).max() for i in range(4)) / truth.size
    assert agreement > 0.97


def test_works_at_reduced_size_and_is_deterministic() -> None:
    truth, pixels = quadrants(160)
    segmenter = GraphSegmenter(work_size=40)
    ids = segmenter(pixels)
    assert ids.shape == (160, 160)
    np.testing.assert_array_equal(ids, segmenter(pixels))
    agreement = sum(np.bincount(ids[truth == i]).max() for i in range(4)) / truth.size
    assert agreement > 0.93


def test_limits_hold_on_noise() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    ids = GraphSegmenter(max_segments=5, min_area=0.1, scale=1.0, min_size=5)(pixels)
    areas = np.bincount(ids.ravel())[1:]
    assert 1 <= len(areas) <= 5
    assert areas.min() >= 0.08 * ids.size  # 0.1 at work size; nearest resizing may shave it


def test_tiny_and_plain_images_are_one_segment() -> None:
    for shape in ((1, 1, 3), (2, 5, 3), (30, 30, 3)):
        ids = GraphSegmenter()(np.full(shape, 90, dtype=np.uint8))
        np.testing.assert_array_equal(ids, np.ones(shape[:2]))


def test_small_region_joins_the_most_similar_neighbour() -> None:
    labels = np.array([[0] * 5 + [1] + [2] * 5] * 5)
    grey = np.array([100, 140, 200])[labels]
    pixels = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    merged = merge_regions(labels, pixels, min_area=0.2, max_segments=9)
    np.testing.assert_array_equal(merged, np.array([[0] * 6 + [1] * 5] * 5))


def test_merging_down_joins_adjacent_similar_pairs_only() -> None:
    # 0 and 3 have the same colour but do not touch
    labels = np.repeat(np.array([[0, 1, 2, 3]]), 4, axis=0).repeat(4, axis=1)
    grey = np.array([100, 180, 190, 100])[labels]
    pixels = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    merged = merge_regions(labels, pixels, min_area=0.0, max_segments=3)
    np.testing.assert_array_equal(merged[0, ::4], [0, 1, 1, 2])
    assert merge_regions(labels, pixels, min_area=0.0, max_segments=1).max() == 0


def test_adjacency_is_symmetric_without_self() -> None:
    labels = np.array([[0, 0, 1], [2, 0, 1], [2, 2, 3]])
    expected = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0]], dtype=bool)
    np.testing.assert_array_equal(adjacency(labels, 4), expected)
