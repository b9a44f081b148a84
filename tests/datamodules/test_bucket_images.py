"""What batches of several sizes show, and that stored and online segments are the same there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spatext.datamodules import images
from spatext.datamodules.online import fit_whole
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.streaming import StreamingDataModule
from tars import COLOURS, png, scene, scene_ids, write_shard

# (h, w) of the samples -> of their training images
SHAPES = {
    (40, 40): (40, 40),
    (32, 48): (32, 48),
    (48, 32): (48, 32),
    (35, 48): (32, 48),
    (20, 60): (32, 48),
    (80, 78): (40, 40),
}
SIZES = list(SHAPES)
NUM = 8 * len(SIZES)


def write_samples(folder: Path, per_shard: int = 11) -> Path:
    folder.mkdir(exist_ok=True)
    for first in range(0, NUM, per_shard):
        numbers = range(first, min(first + per_shard, NUM))
        samples = {f"{i:04d}": scene(i, SIZES[i % len(SIZES)]) for i in numbers}
        write_shard(folder / f"{first:05d}.tar", samples)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("shards"))


def make(shards: Path, **options: Any) -> PanopticDataModule:
    defaults = {
        "image_size": 40,
        "buckets": {"step": 8},
        "crop_size": 12,
        "segmenter": "stored",
        "batch_size": 4,
    }
    datamodule = PanopticDataModule(shards, **(defaults | options))
    datamodule.setup("fit")
    return datamodule


def as_pixels(image: torch.Tensor) -> np.ndarray:
    return ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def windows(full: np.ndarray, shape: tuple[int, int]) -> list[np.ndarray]:
    """All parts of the shape, and their mirror images."""
    places = [(y, x) for y in range(full.shape[0] - shape[0] + 1)
              for x in range(full.shape[1] - shape[1] + 1)]  # fmt: skip
    parts = [full[y : y + shape[0], x : x + shape[1]] for y, x in places]
    return parts + [part[:, ::-1] for part in parts]


def test_a_batch_has_the_size_of_its_bucket_and_shows_the_image(shards: Path) -> None:
    seen, moved = [], set()
    for batch in make(shards).train_dataloader():
        numbers = [int(key.split("/")[1]) for key in batch["key"]]
        (shape,) = {SHAPES[SIZES[i % len(SIZES)]] for i in numbers}
        assert batch["image"].shape == (4, 3, *shape)
        assert batch["ids"].shape == (4, *shape)
        assert batch["crops"].shape == (4, 3, 3, 12, 12)
        seen += numbers
        for row, i in enumerate(numbers):
            pixels = as_pixels(batch["image"][row])
            colours = COLOURS[[0] + [int(t[5:] or 0) for t in batch["texts"][row]]]
            ids = batch["ids"][row].numpy()
            if SIZES[i % len(SIZES)] in ((20, 60), (80, 78)):  # resized: edges are blurred
                error = np.abs(pixels.astype(int) - colours[ids]).max(axis=-1)[ids > 0]
                assert (error <= 50).mean() > 0.7
                continue
            full = COLOURS[scene_ids(i, SIZES[i % len(SIZES)])]
            (which, *_) = [k for k, w in enumerate(windows(full, shape)) if (w == pixels).all()]
            moved.add(which)
            assert (pixels == colours[ids])[ids > 0].all()
    assert sorted(seen) == sorted(set(seen))
    assert len(seen) == 48  # 24, 16 and 8 fill batches of 4
    assert len(moved) > 4


def test_without_random_crop_it_is_the_centre(shards: Path) -> None:
    options = {"random_crop": False, "flip": False, "shuffle": False}
    for batch in make(shards, **options).train_dataloader():
        for row, key in enumerate(batch["key"]):
            i = int(key.split("/")[1])
            if SIZES[i % len(SIZES)] == (35, 48):
                expected = COLOURS[scene_ids(i, (35, 48))][1:33]
                np.testing.assert_array_equal(as_pixels(batch["image"][row]), expected)


def test_workers_and_processes_change_nothing(shards: Path) -> None:
    def flat(batches: Any) -> dict[str, tuple[Any, ...]]:
        return {
            key: (batch["index"][row].item(), batch["image"][row].sum().item(), batch["texts"][row])
            for batch in batches
            for row, key in enumerate(batch["key"])
        }

    alone = flat(make(shards).train_dataloader())
    assert flat(make(shards, num_workers=2).train_dataloader()) == alone
    ranks: dict[str, tuple[Any, ...]] = {}
    for rank in range(2):
        datamodule = make(shards, batch_size=2)
        datamodule.rank = lambda rank=rank: (rank, 2)
        ranks |= flat(datamodule.train_dataloader())
    assert ranks == alone


def test_a_stand_in_takes_the_size_over(shards: Path, tmp_path: Path) -> None:
    samples = {f"{i}": scene(i, SIZES[i % 3]) for i in range(24)}
    for i in (4, 9):
        samples[f"{i}"]["png"] = samples[f"{i}"]["png"][:-30]
    write_shard(tmp_path / "0.tar", samples)
    datamodule = make(tmp_path, batch_size=8)
    loader = datamodule.train_dataloader()
    shapes = set()
    for batch in loader:
        shapes |= {tuple(batch["image"].shape[-2:])}
        kinds = {int(key.split("/")[1]) % 3 for key in batch["key"]}
        assert len(kinds) == 1
    assert len(shapes) == 3
    assert loader.bad.total() >= 2


def test_validation_stays_square(shards: Path) -> None:
    datamodule = make(shards, val_shards=shards)
    keys = []
    for batch in datamodule.val_dataloader():
        assert batch["image"].shape[-2:] == (40, 40)
        keys += batch["key"]
    assert len(keys) == NUM
    assert datamodule.image_sizes == [(32, 48), (40, 40), (48, 32)]


class Bands:
    """Segments by brightness, in the image as panoptic models see it."""

    input_size = 64

    def segment(
        self, pixels: torch.Tensor, sizes: list[tuple[int, int]]
    ) -> tuple[torch.Tensor, list[dict[int, dict[str, Any]]]]:
        ids = pixels[:, 0].int() // 64
        info = {i: {"id": i, "text": f"band {i}", "isthing": i == 1} for i in range(1, 4)}
        for row, (h, w) in zip(ids, sizes, strict=True):
            row[h:], row[:, w:] = 0, 0
        return ids, [info] * len(ids)


def annotated(members: dict[str, bytes]) -> dict[str, bytes]:
    whole, (h, w) = fit_whole(images.decode_image(members["png"], 10**6), Bands.input_size)
    ids, (info,) = Bands().segment(torch.from_numpy(whole).permute(2, 0, 1)[None], [(h, w)])
    meta = json.dumps({"segments": list(info.values())}).encode()
    stored = png(ids[0, :h, :w].numpy().astype(np.uint8))
    return {**members, "json": meta, "panoptic.png": stored}


def test_online_and_stored_segments_are_the_same(tmp_path: Path) -> None:
    """Among them windows that are larger than what is delivered of them, and smaller."""
    raw, stored = {}, {}
    for i in range(NUM):
        h, w = SIZES[i % len(SIZES)]
        members = scene(i, (3 * h, 3 * w) if i % 2 else (h, w))
        raw[f"{i:04d}"] = {"png": members["png"], "txt": b"a caption"}
        stored[f"{i:04d}"] = annotated(raw[f"{i:04d}"])
    for name, samples in (("raw", raw), ("stored", stored)):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "0.tar", samples)
    options = {"crop_size": 16, "batch_size": 8}
    online = make(tmp_path / "raw", segmenter=Bands(), **options)
    shapes, num_valid = set(), 0
    for one, other in zip(
        online.train_dataloader(),
        make(tmp_path / "stored", **options).train_dataloader(),
        strict=True,
    ):
        found = online.on_after_batch_transfer(one, 0)
        assert found["key"] == other["key"]
        assert found["texts"] == other["texts"]
        for name in ("image", "valid", "ids"):
            assert torch.equal(found[name], other[name]), name
        # a window that is reduced once more is no longer that of the stored path
        error = (found["crops"].int() - other["crops"].int()).abs().float()
        assert error.mean() <= 2.5
        shapes |= {tuple(one["image"].shape[-2:])}
        num_valid += int(found["valid"].sum())
    assert len(shapes) == 3
    assert num_valid > 50


def test_what_has_no_buckets_refuses_them(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"datamodule\.buckets: not for a mixture, expected"):
        make({"a": {"shards": shards, "weight": 1}})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"datamodule\.buckets: streaming knows no index"):
        StreamingDataModule(
            str(tmp_path / "x.tar"), samples_per_epoch=8, image_size=40, crop_size=8,
            segmenter=None, buckets={"step": 8},
        )  # fmt: skip
