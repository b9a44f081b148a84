"""Pictures and rows of samples that are made up."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from PIL import Image

from spatext.callbacks.scene_album import Album, shrink, wandb_media, write_album
from spatext.callbacks.scene_grid import SceneGrid
from spatext.callbacks.scene_shots import plan_shots
from spatext.datamodules.drawing import enlarge, grid, overlay
from spatext.datamodules.scenes import Region, Scene
from spatext.modules.sampling_options import Sampling
from tables import read_rows

SIZE = 16
PAIRS = [{"text": 3.0, "segments": 0.0}, {"text": 1.5, "segments": 6.0}]
TITLES = ["text 3, segments 0", "text 1.5, segments 6"]


def box(rows: slice) -> Any:
    mask = np.zeros((SIZE, SIZE), dtype=np.bool_)
    mask[rows] = True
    return mask


SCENES = [
    Scene(
        "sea",
        "a beach",
        (SIZE, SIZE),
        seed=5,
        regions=(Region("a blue sea", box(slice(0, 6))), Region("sand", box(slice(10, 16)))),
    ),
    Scene("empty", "two dogs", (SIZE, SIZE), scales={"text": 2.0, "segments": 4.0}),
]


def make_album(scales: Any, sampling: Sampling, num_seeds: int = 2) -> Album:
    batches = plan_shots(SCENES, num_seeds, scales, 3)
    shots = [shot for batch in batches for shot in batch]
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for _ in shots]
    return Album(7, sampling, shots, images)


FULL = Sampling(form="full", scales={"text": 9.0, "segments": 9.0})


@pytest.fixture
def album() -> Album:
    return make_album(PAIRS, FULL)


def test_batches_are_bounded_and_of_one_scene() -> None:
    batches = plan_shots(SCENES, 2, PAIRS, 3)
    found = [[(s.scene.name, s.seed, s.scales) for s in batch] for batch in batches]
    assert found == [
        [("sea", 5, PAIRS[0]), ("sea", 6, PAIRS[0]), ("sea", 5, PAIRS[1])],
        [("sea", 6, PAIRS[1])],
        [("empty", 0, PAIRS[0]), ("empty", 1, PAIRS[0]), ("empty", 0, PAIRS[1])],
        [("empty", 1, PAIRS[1])],
    ]


def rows_of(folder: Path) -> list[dict[str, str]]:
    return read_rows(folder / "scenes-000007.csv")


def test_rows_say_what_each_sample_is(album: Album, tmp_path: Path) -> None:
    picture = write_album(album, tmp_path, singles=True)
    rows = rows_of(tmp_path)
    assert list(rows[0]) == ["scene", "seed", "text", "segments", "image", "row", "column"]
    assert [(r["scene"], r["seed"], r["text"], r["segments"]) for r in rows] == [
        (scene, str(seed), *pair)
        for scene, first in (("sea", 5), ("empty", 0))
        for pair in (("3.0", "0.0"), ("1.5", "6.0"))
        for seed in (first, first + 1)
    ]
    for row, image in zip(rows, album.images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / row["image"])), image)
    assert [(r["row"], r["column"]) for r in rows] == [(y, x) for y in "01" for x in "0123"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "step-000007.png")), picture)


def test_without_singles_the_rows_point_into_the_grid(album: Album, tmp_path: Path) -> None:
    write_album(album, tmp_path, singles=False)
    assert {row["image"] for row in rows_of(tmp_path)} == {"step-000007.png"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scenes-000007.csv", "step-000007.png"]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (FULL, [("9.0", "9.0"), ("2.0", "4.0")]),  # the sampling's, the scene's own
        (Sampling(scale=2.5), [("2.5", "2.5")] * 2),  # form fast has one for all
    ],
)
def test_rows_without_pairs(sampling: Sampling, expected: Any, tmp_path: Path) -> None:
    write_album(make_album(None, sampling, 1), tmp_path, singles=False)
    assert [(row["text"], row["segments"]) for row in rows_of(tmp_path)] == expected


def test_grid_has_a_titled_column_for_each_sample(album: Album) -> None:
    cells = []
    for y, scene in enumerate(SCENES):
        plan = overlay(None, scene.ids(), scene.texts, prompt=scene.prompt)
        images = album.images[4 * y : 4 * y + 4]
        cells.append([plan, *(enlarge(image, plan.shape[1]) for image in images)])
    labels = ["", TITLES[0], TITLES[0], TITLES[1], TITLES[1]]
    np.testing.assert_array_equal(album.picture(), grid(cells, labels=labels))


def test_samples_carry_their_regions(album: Album) -> None:
    media = wandb_media(wandb, album)["val/scenes"]
    assert len(media) == 8
    for image, expected in zip(media, album.images, strict=True):
        np.testing.assert_array_equal(np.asarray(image.image), expected)
    regions = media[1]._masks["regions"]._val
    np.testing.assert_array_equal(regions["mask_data"], SCENES[0].ids())
    assert regions["class_labels"] == {0: "unpainted", 1: "a blue sea", 2: "sand"}
    assert media[1]._caption == "sea, seed 6: text 3, segments 0"


def test_table_has_a_row_for_each_scene_and_seed(album: Album) -> None:
    table = wandb_media(wandb, album)["val/table"]
    assert table.columns == ["scene", "prompt", "seed", "layout", *TITLES]
    assert [row[:3] for row in table.data] == [
        ["sea", "a beach", 5],
        ["sea", "a beach", 6],
        ["empty", "two dogs", 0],
        ["empty", "two dogs", 1],
    ]
    for row, pair in zip(table.data, [(0, 2), (1, 3), (4, 6), (5, 7)], strict=True):
        for cell, i in zip(row[4:], pair, strict=True):
            np.testing.assert_array_equal(np.asarray(cell.image), album.images[i])
    one = wandb_media(wandb, make_album(None, FULL, 1))["val/table"]
    assert one.columns == ["scene", "prompt", "seed", "layout", "sample"]


@pytest.mark.parametrize(
    ("size", "expected"), [((1024, 600), (512, 300)), ((512, 512), (512, 512)), ((9, 7), (9, 7))]
)
def test_uploads_are_bounded(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image = np.full((*size, 3), 77, dtype=np.uint8)
    assert shrink(image).shape == (*expected, 3)
    assert (shrink(image) == 77).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": PAIRS}, r"scene_grid\.scales: found with sampling\.form=fast"),
        ({"scales": [{"text": 1.0}], "sampling": FULL}, r"^callbacks.scene_grid.scales.segments"),
        ({"scales": [PAIRS[0]] * 2, "sampling": FULL}, r"scales: found a pair twice"),
        ({"max_batch": 0}, r"^callbacks.scene_grid.max_batch: found 0, expected at least 1$"),
        ({"num_seeds": 0}, r"^callbacks.scene_grid.num_seeds: found 0, expected at least 1$"),
    ],
)
def test_refuses_unusable_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        SceneGrid([], str(tmp_path), size=SIZE, **options)
