import numpy as np
import pytest
from PIL import Image

from spatext.datamodules.documents import atomic_path
from spatext.datamodules.drawing import colour, grid, overlay, save_png


def two_regions():
    ids = np.zeros((32, 64), dtype=np.uint8)
    ids[4:28, 4:28] = 1
    ids[4:28, 36:60] = 2
    return ids


def solid(height, width, level):
    return np.full((height, width, 3), level, dtype=np.uint8)


def test_colours_of_all_regions_differ():
    assert len({colour(k) for k in range(1, 256)}) == 255
    assert colour(1) == (230, 159, 0)


def test_overlay_mixes_colour_and_image_and_leaves_the_rest():
    image = solid(32, 64, 100)
    drawn = overlay(image, two_regions(), ["", ""], alpha=0.25, legend=False, scale=2)
    assert drawn.shape == (64, 128, 3)
    for k, column in ((1, 32), (2, 96)):
        expected = np.rint(0.75 * 100 + 0.25 * np.array(colour(k)))
        np.testing.assert_array_equal(drawn[32, column], expected)
        np.testing.assert_array_equal(drawn[9, column], expected)
        np.testing.assert_array_equal(drawn[8, column], np.rint(0.6 * np.array(colour(k))))
        np.testing.assert_array_equal(drawn[7, column], [100, 100, 100])


def test_overlay_at_alpha_zero_keeps_the_inside():
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    drawn = overlay(image, two_regions(), ["", ""], alpha=0.0, legend=False, scale=1)
    np.testing.assert_array_equal(drawn[5:27, 5:27], image[5:27, 5:27])
    np.testing.assert_array_equal(drawn[:4], image[:4])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((32, 64), (256, 512)), ((100, 90), (300, 270)), ((300, 300), (300,) * 2)],
)
def test_overlay_enlarges_small_pictures_to_the_least_whole_scale(shape, expected):
    drawn = overlay(None, np.zeros(shape, np.uint8), [], legend=False)
    assert drawn.shape[:2] == expected


def test_overlay_without_image_is_light_and_gray():
    drawn = overlay(None, np.zeros((16, 16), np.uint8), [], legend=False)
    assert np.unique(drawn).tolist() == [236, 248]


def test_text_is_written_inside_its_region_alone():
    ids = two_regions()
    bare = overlay(None, ids, ["", ""], legend=False)
    drawn = overlay(None, ids, ["", "a red ball"], legend=False)
    changed = np.argwhere((bare != drawn).any(axis=2)) // 8  # pixels of the picture
    assert set(ids[tuple(changed.T)].tolist()) == {2}
    ink = (drawn < 90).all(axis=2)
    assert ink.sum() > 20
    assert not (bare < 90).all(axis=2).any()


def test_texts_of_thin_neighbours_do_not_cover_each_other():
    ids = np.zeros((64, 64), dtype=np.uint8)
    ids[30:32], ids[32:34] = 1, 2  # thinner than a line of text
    bare, first, both = (
        overlay(None, ids, texts, legend=False)
        for texts in (["", ""], ["a wall", ""], ["a wall", "a heart"])
    )
    rows = [
        set(np.flatnonzero((a != b).any(axis=(1, 2))).tolist())
        for a, b in ((bare, first), (first, both))
    ]
    assert len(rows[0]) > 10
    assert len(rows[1]) > 10
    assert not rows[0] & rows[1]


def test_legend_shows_prompt_and_swatches_and_grows_with_the_texts():
    ids = two_regions()
    heights = [
        overlay(None, ids, texts, prompt=prompt).shape[0]
        for texts, prompt in (
            (["a", "b"], ""),
            (["a", "b"], "a garden"),
            (["a", "b " * 200], "a garden"),
        )
    ]
    assert 256 < heights[0] < heights[1] < heights[2]
    strip = overlay(None, ids, ["a", "b"])[256:]
    for k in (1, 2):
        assert (strip == colour(k)).all(axis=2).sum() > 100
    assert not (strip == colour(3)).all(axis=2).any()


@pytest.mark.parametrize(
    "text",
    [
        "\u65e5\u672c\u8a9e\u306e\u9577\u3044\u30c6\u30ad\u30b9\u30c8",
        "\U0001f388 balloon",
        "a\nb\tc",
        "\ud800",
        "x" * 300,
        "\u0645\u0631\u062d\u0628\u0627",
    ],
)
@pytest.mark.parametrize("scale", [None, 1])
def test_any_text_is_drawn_without_failing(text, scale):
    ids = np.zeros((16, 16), np.uint8)
    ids[2:5, 3:9] = 1
    bare = overlay(None, ids, [""], legend=False, scale=scale)
    drawn = overlay(None, ids, [text], prompt=text, scale=scale)
    assert (drawn[: len(bare)] != bare).any()


def test_grid_places_cells_exactly():
    rows = [[solid(4, 6, 10), solid(5, 3, 20)], [solid(2, 5, 30)]]
    drawn = grid(rows, pad=2, background=(1, 2, 3))
    expected = np.empty((2 + 5 + 2 + 2 + 2, 2 + 6 + 2 + 3 + 2, 3), np.uint8)
    expected[:] = (1, 2, 3)
    expected[2:6, 2:8], expected[2:7, 10:13], expected[9:11, 2:7] = 10, 20, 30
    np.testing.assert_array_equal(drawn, expected)


def test_grid_labels_add_a_head_of_ink():
    rows = [[solid(40, 80, 200), solid(40, 80, 200)]]
    plain, titled = grid(rows, pad=4), grid(rows, pad=4, labels=["image", "a longer title " * 3])
    head = len(titled) - len(plain)
    assert head > 11
    assert titled.shape[1] == plain.shape[1]
    np.testing.assert_array_equal(titled[head:], plain)
    assert titled[:head, 4:84].min() < 100
    assert titled[:head, 88:].min() < 100


def test_png_holds_pixels_and_metadata_and_leaves_no_temporary(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    metadata = {"prompt": "un caf\u00e9 \u2603", "seed": "3"}
    save_png(tmp_path / "new" / "a.png", image, metadata)
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.text == metadata
        np.testing.assert_array_equal(np.asarray(picture), image)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def write_half(path):
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError("disk full")


def test_png_that_fails_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.png"
    save_png(path, solid(2, 2, 7))
    before = path.read_bytes()
    with pytest.raises(OSError, match="disk full"):
        write_half(path)
    with pytest.raises((ValueError, SystemError)):  # after the head of the file is written
        save_png(path, np.zeros((0, 3, 3), np.uint8))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_png_refuses_another_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"a\.jpg: expected a \.png file"):
        save_png(tmp_path / "a.jpg", solid(2, 2, 0))
