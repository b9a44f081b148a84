import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from annotating import RECIPE, SHAPES, Halves, annotate, load_tiny, picture, raw_samples, write_raw
from spatext.datamodules.annotation_engines import Engine
from spatext.datamodules.annotation_files import manifest_path, read_manifest, sidecar_path
from spatext.datamodules.annotation_work import Annotator, LostLease, Reading, Source
from spatext.datamodules.crops import crop_planes
from spatext.datamodules.images import decode_ids
from spatext.datamodules.online import fit_whole
from spatext.datamodules.panoptic_models import PanopticModel
from spatext.datamodules.segmenters import GraphSegmenter
from tars import png, write_shard


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PanopticModel:
    return load_tiny(tmp_path_factory.mktemp("model") / "mask2former")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(tmp_path_factory.mktemp("raw")) / "0.tar"


def members(sidecar: Path) -> dict[str, bytes]:
    with tarfile.open(sidecar) as tar:
        files = {m.name: tar.extractfile(m) for m in tar.getmembers()}
        return {name: file.read() for name, file in files.items() if file is not None}


def test_a_panoptic_models_own_maps_are_stored(
    model: PanopticModel, raw: Path, tmp_path: Path
) -> None:
    """Called by hand, image by image; at the model's size, the frame that training expects."""
    (manifest,) = annotate([raw], tmp_path, Engine(model))
    assert manifest == read_manifest(manifest_path(tmp_path, "0"))
    found = members(sidecar_path(tmp_path, "0"))
    num = 0
    for i, shape in enumerate(SHAPES):
        whole, size = fit_whole(Image.open(io.BytesIO(picture(i, shape))), 64)
        ids, (info,) = model.segment(torch.from_numpy(whole).permute(2, 0, 1)[None], [size])
        stored = decode_ids(found[f"{i:03d}.panoptic.png"], 10**6)
        assert stored.shape == size
        np.testing.assert_array_equal(stored, ids[0, : size[0], : size[1]].numpy())
        entries = json.loads(found[f"{i:03d}.json"])["segments"]
        assert entries == list(info.values())
        assert [e["area"] for e in entries] == [int((stored == e["id"]).sum()) for e in entries]
        num += len(entries)
    assert (manifest.num_images, manifest.num_segments) == (8, num)
    assert num >= 8
    assert list(found) == [
        *(f"{i:03d}.{suffix}" for i in range(8) for suffix in ("json", "panoptic.png")),
        "__rows__",
    ]


def test_pixel_segments_are_stored(raw: Path, tmp_path: Path) -> None:
    annotate([raw], tmp_path, Engine(GraphSegmenter()))
    found = members(sidecar_path(tmp_path, "0"))
    for i, shape in enumerate(SHAPES):
        ids = GraphSegmenter()(np.asarray(Image.open(io.BytesIO(picture(i, shape)))))
        stored = decode_ids(found[f"{i:03d}.panoptic.png"], 10**6)
        np.testing.assert_array_equal(stored, ids)
        values, areas = np.unique(ids, return_counts=True)
        expected = [
            {"id": i, "area": n} for i, n in zip(values.tolist(), areas.tolist(), strict=True)
        ]
        assert json.loads(found[f"{i:03d}.json"])["segments"] == expected


def test_neither_threads_nor_time_change_a_byte(raw: Path, tmp_path: Path) -> None:
    engine = Engine(GraphSegmenter())
    for name, threads in (("one", 1), ("other", 5)):
        annotate([raw], tmp_path / name, engine, threads=threads)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


def test_batches_do_not_change_what_is_found(
    model: PanopticModel, raw: Path, tmp_path: Path
) -> None:
    for size in (1, 8):
        annotate([raw], tmp_path / str(size), Engine(model), batch_size=size)
    one, other = (members(sidecar_path(tmp_path / size, "0")) for size in ("1", "8"))
    maps = [name for name in one if name.endswith("png")]
    assert len(maps) == 8
    for name in maps:
        np.testing.assert_array_equal(decode_ids(one[name], 10**6), decode_ids(other[name], 10**6))


def test_bad_images_are_counted_and_the_rest_is_done(tmp_path: Path) -> None:
    samples = raw_samples(SHAPES[:5])
    samples["001"]["png"] = samples["001"]["png"][:-40]
    samples["003"]["png"] = b"<html>"
    samples["004"]["png"] = png(np.zeros((64, 64, 3), dtype=np.uint8))
    shard = write_shard(tmp_path / "0.tar", samples)
    segmenter = Halves()
    (manifest,) = annotate([shard], tmp_path / "out", Engine(segmenter))
    assert manifest.bad == {"image truncated or invalid": 1, "not JPEG|PNG|WEBP": 1}
    assert (manifest.num_samples, manifest.num_images) == (5, 3)
    assert (manifest.num_segments, manifest.num_empty) == (4, 1)
    assert segmenter.num_images == [3]
    found = members(sidecar_path(tmp_path / "out", "0"))
    assert [name for name in found if name.endswith("png")] == [
        f"{key}.panoptic.png" for key in ("000", "002", "004")
    ]
    assert not decode_ids(found["004.panoptic.png"], 10**6).any()
    assert json.loads(found["004.json"])["segments"] == []
    assert set(np.unique(decode_ids(found["000.panoptic.png"], 10**6))) == {1, 300}
    rows = np.frombuffer(found["__rows__"], dtype="<u8").reshape(5, 3)
    assert rows.any(axis=1).tolist() == [True, False, True, False, True]


def test_a_shard_of_bad_images_alone(tmp_path: Path) -> None:
    samples = {"a": {"png": b"no", "txt": b"text"}}
    (manifest,) = annotate([write_shard(tmp_path / "0.tar", samples)], tmp_path, Engine(Halves()))
    assert (manifest.num_images, sum(manifest.bad.values())) == (0, 1)


def test_damaged_shards_are_refused_or_taken_as_far_as_they_go(tmp_path: Path, raw: Path) -> None:
    shard = tmp_path / "0.tar"
    data = raw.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"0\.tar: cut .* or set allow_damaged=true"):
        annotate([shard], tmp_path / "out", Engine(Halves()))
    (manifest,) = annotate(
        [shard], tmp_path / "out", Engine(Halves()), reading=Reading(allow_damaged=True)
    )
    assert 0 < manifest.num_images < 8


def test_captions_do_not_matter(tmp_path: Path) -> None:
    samples = {"a": {"png": picture(0, (64, 64))}}
    (manifest,) = annotate([write_shard(tmp_path / "0.tar", samples)], tmp_path, Engine(Halves()))
    assert manifest.num_images == 1


class Means:
    """Embeds a crop as the mean of each channel."""

    crop_size = 16

    def __init__(self) -> None:
        self.crops: list[torch.Tensor] = []

    def __call__(self, crops: torch.Tensor) -> torch.Tensor:
        self.crops.append(crops)
        return crops.float().mean(dim=(2, 3))


@pytest.mark.parametrize("kind", ["model", "graph"])
def test_embeddings_are_those_of_the_segments_crops(
    model: PanopticModel, raw: Path, tmp_path: Path, kind: str
) -> None:
    means = Means()
    segmenter: Any = model if kind == "model" else GraphSegmenter()
    eligible = {"min_area": 0.1, "things": True, "stuff": True}
    engine = Engine(segmenter, embedder=means, max_regions=2, eligible=eligible)
    assert engine.whole_size == 64
    annotate([raw], tmp_path, engine)
    found = members(sidecar_path(tmp_path, "0"))
    num = 0
    for i, shape in enumerate(SHAPES):
        entries = json.loads(found[f"{i:03d}.json"])["segments"]
        ids = decode_ids(found[f"{i:03d}.panoptic.png"], 10**6)
        large = sorted(
            (e for e in entries if e["area"] >= 0.1 * ids.size), key=lambda e: -e["area"]
        )
        chosen = sorted(e["id"] for e in large[:2])
        assert [e["id"] for e in entries if "embed" in e] == chosen
        assert [e["embed"] for e in entries if "embed" in e] == list(range(len(chosen)))
        assert (f"{i:03d}.embeds.npy" in found) == bool(chosen)
        if not chosen:
            continue
        embeds = np.load(io.BytesIO(found[f"{i:03d}.embeds.npy"]), allow_pickle=False)
        assert embeds.dtype == np.float16
        whole, (h, w) = fit_whole(Image.open(io.BytesIO(picture(i, shape))), 64)
        small = ids[np.arange(h) * ids.shape[0] // h][:, np.arange(w) * ids.shape[1] // w]
        for row, k in zip(embeds, chosen, strict=True):
            if small.shape == ids.shape:
                crop = crop_planes(whole[:h, :w], small == k, 16)
                np.testing.assert_allclose(row, crop.mean((1, 2)), atol=0.5)
                num += 1
    assert num >= 3


@pytest.mark.parametrize("swept", [False, True])
def test_a_lost_lease_writes_nothing(raw: Path, tmp_path: Path, swept: bool) -> None:
    """Also where its file is gone, which who has taken the shard over sweeps."""

    def sweep(num_images: int) -> None:
        for path in tmp_path.iterdir() if swept else []:
            path.unlink()

    with Annotator(Engine(Halves()), threads=1) as annotator:
        source = Source(raw, annotator)
        with pytest.raises(LostLease):
            annotator.annotate(source, tmp_path, RECIPE, held=lambda: False, told=sweep)
        source.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_process_left_is_swept(raw: Path, tmp_path: Path) -> None:
    left = [".0.tar.0123456789abcdef.tmp", ".0.annotation.json.4711.tmp"]
    others = [".00.tar.0123456789abcdef.tmp", "0.tar.tmp"]
    for name in left + others:
        (tmp_path / name).write_bytes(b"half")
    annotate([raw], tmp_path, Engine(Halves()))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"0.tar", "0.annotation.json", *others}


def test_a_shard_that_changes_meanwhile_is_refused(raw: Path, tmp_path: Path) -> None:
    shard = tmp_path / "0.tar"
    shard.write_bytes(raw.read_bytes())
    with Annotator(Engine(Halves()), threads=1) as annotator:
        source = Source(shard, annotator)
        with shard.open("ab") as file:
            file.write(bytes(512))
        with pytest.raises(ValueError, match="changed while it was annotated"):
            annotator.annotate(source, tmp_path / "out", RECIPE)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_next_shard_is_opened_before_this_one_is_written(raw: Path, tmp_path: Path) -> None:
    seen: list[bool] = []
    with Annotator(Engine(Halves()), threads=1) as annotator:
        annotator.annotate(
            Source(raw, annotator),
            tmp_path,
            RECIPE,
            then=lambda: seen.append(sidecar_path(tmp_path, "0").exists()),
        )
    assert seen == [False]
