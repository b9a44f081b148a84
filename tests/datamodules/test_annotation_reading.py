"""Training from sidecars, beside the same segments found while training."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from annotating import RECIPE, annotate, load_tiny, raw_samples, write_raw
from spatext.datamodules.annotation_engines import Engine
from spatext.datamodules.annotation_files import MERGED, manifest_path, read_manifest, sidecar_path
from spatext.datamodules.batches import GlobalBatchSampler
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.panoptic_models import PanopticModel
from spatext.datamodules.remote import RemoteShard
from spatext.datamodules.segmenters import GraphSegmenter
from spatext.tools.annotate_report import merge
from tars import write_scenes, write_shard

SIZES: dict[str, Any] = {"image_size": 32, "crop_size": 16, "k_max": 3, "batch_size": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PanopticModel:
    return load_tiny(tmp_path_factory.mktemp("model") / "mask2former")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, annotated by the graph segmenter."""
    folder = write_raw(tmp_path_factory.mktemp("raw") / "shards", 2)
    annotate(sorted(folder.glob("*.tar")), folder / "annotations", Engine(GraphSegmenter()))
    return folder


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def make(folder: Path, segmenter: Any, **options: Any) -> PanopticDataModule:
    datamodule = PanopticDataModule(folder, segmenter=segmenter, **(SIZES | options))
    datamodule.setup("fit")
    return datamodule


def batches(datamodule: PanopticDataModule) -> list[dict[str, Any]]:
    found = [
        datamodule.on_after_batch_transfer(batch, 0) for batch in datamodule.train_dataloader()
    ]
    assert len(found) == 4
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any], crop_error: int) -> None:
    assert one.keys() == other.keys()
    for name in ("caption", "key", "texts"):
        assert one[name] == other[name]
    for name in ("image", "index", "valid", "ids"):
        assert torch.equal(one[name], other[name]), name
    assert one["ids"].dtype == torch.uint8
    assert (one["crops"].int() - other["crops"].int()).abs().max() <= crop_error


def test_as_found_by_the_graph_segmenter_while_training(shards: Path) -> None:
    """With random crop and flip; beside the shards without being named, in workers too."""
    online = batches(make(shards, GraphSegmenter()))
    for options in ({}, {"sidecars": shards / "annotations", "num_workers": 1}):
        for one, other in zip(online, batches(make(shards, "stored", **options)), strict=True):
            assert_same(one, other, 0)
    assert sum(int(batch["valid"].sum()) for batch in online) >= 16


def test_as_found_by_a_panoptic_model_while_training(
    shards: Path, model: PanopticModel, tmp_path: Path
) -> None:
    annotate(sorted(shards.glob("*.tar")), tmp_path, Engine(model))
    online = batches(make(shards, model))
    stored = batches(make(shards, "stored", sidecars=tmp_path))
    for one, other in zip(online, stored, strict=True):
        assert_same(one, other, 1)
    assert any(text for batch in online for texts in batch["texts"] for text in texts)


def test_shards_in_a_store(shards: Path, tmp_path: Path) -> None:
    """Whose sidecars lie in a folder here."""
    remote = [RemoteShard(f"file://{path}") for path in sorted(shards.glob("*.tar"))]
    manifests = annotate(remote, tmp_path / "out", Engine(GraphSegmenter()))
    assert all("sha256" not in m.source and "etag" in m.source for m in manifests)
    options: dict[str, Any] = {"sidecars": tmp_path / "out", "index": tmp_path / "index"}
    datamodule = PanopticDataModule(
        [shard.url for shard in remote], segmenter="stored", **(SIZES | options)
    )
    datamodule.setup("fit")
    for one, other in zip(batches(make(shards, "stored")), batches(datamodule), strict=True):
        assert_same(one, other, 0)


def test_shards_with_maps_of_their_own_keep_them(tmp_path: Path) -> None:
    """Unless sidecars are named."""
    folder = write_scenes(tmp_path / "scenes", 12, per_shard=4)
    own = batches_of(make(folder, "stored"))
    annotate(sorted(folder.glob("*.tar")), folder / "annotations", Engine(GraphSegmenter()))
    assert batches_of(make(folder, "stored")) == own
    assert own > 0
    named = make(folder, "stored", sidecars=folder / "annotations")
    assert batches_of(named) == 0


def batches_of(datamodule: PanopticDataModule) -> int:
    """Segments with a text, which the graph segmenter has no words for."""
    return sum(bool(t) for b in datamodule.train_dataloader() for ts in b["texts"] for t in ts)


def test_what_the_json_of_the_shard_says_stays(shards: Path) -> None:
    datamodule = make(shards, "stored")
    assert datamodule.records is not None
    name, members = datamodule.records[9].read()
    assert name == "1/009"
    assert json.loads(members["json"])["own"] == 7
    assert json.loads(members["annotation"])["segments"]


def test_an_index_with_sidecars_is_another_data_set(shards: Path, tmp_path: Path) -> None:
    """So that a run is not resumed on other segments."""
    plain, annotated = make(shards, None), make(shards, "stored")
    engine = Engine(GraphSegmenter(max_segments=2))
    annotate(sorted(shards.glob("*.tar")), tmp_path, engine)
    third = make(shards, "stored", sidecars=tmp_path)
    sums = [d.records.sha256 for d in (plain, annotated, third) if d.records is not None]
    assert len(set(sums)) == 3
    again = pickle.loads(pickle.dumps(annotated.records))
    assert again.sha256 == sums[1]
    assert again[3].read().members.keys() == annotated.records[3].read().members.keys()
    sampler = annotated.train_dataloader().batch_sampler
    assert isinstance(sampler, GlobalBatchSampler)
    assert sampler.facts["index_sha256"] == sums[1]


def refused(folder: Path, message: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=message):
        make(folder, "stored")


def test_a_shard_that_is_another_now(copy: Path) -> None:
    write_shard(copy / "1.tar", raw_samples([(64, 64)] * 8))
    refused(copy, r"1\.tar: annotates another 1\.tar \((bytes|samples|layout) was .*annotate run")


def test_a_shard_without_sidecar(copy: Path) -> None:
    manifest_path(copy / "annotations", "1").unlink()
    refused(copy, r"no 1\.annotation\.json \(1 of 2 shards are not annotated\)", FileNotFoundError)


def test_a_sidecar_that_was_cut(copy: Path) -> None:
    path = sidecar_path(copy / "annotations", "0")
    path.write_bytes(path.read_bytes()[:-10240])
    refused(copy, r"0\.tar: found \d+ bytes, expected \d+; run spatext-annotate run again")


def test_sidecars_of_two_recipes(copy: Path) -> None:
    recipe = RECIPE | {"segmenter": "another"}
    annotate([copy / "1.tar"], copy / "annotations", Engine(GraphSegmenter()), recipe)
    refused(copy, r"1\.tar: made with segmenter = 'another', now \"a test's\" in the first shard")


def test_another_image_under_the_same_key_is_a_bad_sample(copy: Path) -> None:
    """Of the same size to the byte, so that nothing but its content tells."""
    datamodule = make(copy, "stored", batch_size=1, shuffle=False, max_bad_share=1.0)
    assert datamodule.records is not None
    path = copy / "0.tar"
    members = datamodule.records[2].read().members
    data = bytearray(path.read_bytes())
    place = data.index(members["png"])
    data[place + len(members["png"]) - 30] ^= 1
    path.write_bytes(data)
    shutil.rmtree(copy / ".spatext-index")
    datamodule = make(copy, "stored", batch_size=1, shuffle=False, max_bad_share=1.0)
    loader = datamodule.train_dataloader()
    keys = [batch["key"][0] for batch in loader]
    assert len(keys) == 16
    assert keys[2] != "0/002"
    assert dict(loader.bad) == {"0: annotated as another image": 1}


def test_images_without_entry_are_bad_samples(tmp_path: Path) -> None:
    samples = raw_samples([(64, 64)] * 6)
    samples["004"]["png"] = b"broken"
    shard = write_shard(tmp_path / "0.tar", samples)
    (manifest,) = annotate([shard], tmp_path / "annotations", Engine(GraphSegmenter()))
    assert manifest.num_images == 5
    loader = make(tmp_path, "stored", batch_size=6, max_bad_share=1.0).train_dataloader()
    (batch,) = loader
    assert "0/004" not in batch["key"]
    assert dict(loader.bad) == {"0: not annotated": 1}


def test_merged_manifests_are_read_instead(copy: Path) -> None:
    expected = batches(make(copy, "stored"))
    places = merge(sorted(copy.glob("*.tar")), None)
    assert places == [copy / "annotations" / MERGED]
    manifest = read_manifest(manifest_path(copy / "annotations", "0"))
    for path in (copy / "annotations").glob("*.annotation.json"):
        path.unlink()
    found = batches(make(copy, "stored"))
    for one, other in zip(expected, found, strict=True):
        assert_same(one, other, 0)
    assert manifest.num_images == 8
    places[0].write_text("{")
    refused(copy, r"merged\.json: damaged")


def test_areas_are_in_the_maps_own_pixels(shards: Path) -> None:
    datamodule = make(shards, "stored")
    assert datamodule.records is not None
    for number in range(8):
        entries = json.loads(datamodule.records[number].read().members["annotation"])["segments"]
        assert np.all([entry["area"] > 0 for entry in entries])
