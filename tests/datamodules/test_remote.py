"""Shards of a store: the same samples, by ranges or through the cache, however it fails."""

import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from spatext.datamodules.index_building import DamagedShards
from spatext.datamodules.index_opening import open_index
from spatext.datamodules.locations import expand_shards
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.shard_index import ChangedShard, ShardIndex
from stores import PATTERN, Store, make


def batches(datamodule: PanopticDataModule) -> list[dict[str, Any]]:
    return list(datamodule.train_dataloader())


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one["key"] == other["key"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["crops"], other["crops"])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_batches_are_those_of_the_files(
    data: Path, store: Store, tmp_path: Path, num_workers: int, cached: bool
) -> None:
    options = {"cache": tmp_path / "cache"} if cached else {}
    far = make(f"{store.url}/{PATTERN}", tmp_path / "index", num_workers=num_workers, **options)
    near = make(data, tmp_path / "index")
    assert far.records is not None
    assert near.records is not None
    assert far.records.sha256 == near.records.sha256
    store.requests.clear()
    assert_same(batches(far), batches(near))
    gets = [size for method, _, size in store.requests if method == "GET"]
    if cached:
        assert sorted(gets) == sorted(path.stat().st_size for path in data.glob("*.tar"))
    else:  # one range for what a batch has of a shard
        keys = [batch["key"] for batch in batches(near)]
        assert len(gets) == sum(len({key.split("/")[0] for key in batch}) for batch in keys)


def test_samples_apart_come_by_ranges_of_their_own(
    data: Path, store: Store, tmp_path: Path
) -> None:
    far = make(f"{store.url}/{PATTERN}", tmp_path / "index", range_gap=0)
    store.requests.clear()
    assert_same(batches(far), batches(make(data, tmp_path / "index")))
    gets = [size for method, _, size in store.requests if method == "GET"]
    assert isinstance(far.records, ShardIndex)
    seen = far.training_sampler(far.records).order.samples(0, 0, 12)
    assert sorted(gets) == sorted(far.records.arrays["span"][seen].tolist())


def test_indexing_reads_each_shard_once(store: Store, data: Path, tmp_path: Path) -> None:
    open_index(expand_shards(f"{store.url}/{PATTERN}"), tmp_path)
    gets = [(name, size) for method, name, size in store.requests if method == "GET"]
    sizes = {path.name: path.stat().st_size for path in data.glob("*.tar")}
    assert sorted((n, s) for n, s in gets if n.endswith(".tar")) == sorted(sizes.items())


@pytest.mark.parametrize("failure", ["503", "429", "cut"])
@pytest.mark.parametrize("cached", [False, True])
def test_every_third_request_may_fail(
    data: Path, store: Store, tmp_path: Path, failure: str, cached: bool
) -> None:
    store.fail_every, store.failure = 3, failure
    options = {"cache": tmp_path / "cache"} if cached else {}
    far = make(f"{store.url}/{PATTERN}", tmp_path / "index", **options)
    assert_same(batches(far), batches(make(data, tmp_path / "index")))
    assert len(store.requests) > 3


def test_a_store_that_is_gone_stops_the_run(store: Store, tmp_path: Path) -> None:
    """And replaces no sample: the run goes on later with the same data."""
    loader = make(f"{store.url}/{PATTERN}", tmp_path).train_dataloader()
    store.fail_every = 1
    with pytest.raises(OSError, match=r"0000\d\.tar: 6 attempts failed, the last by .*503"):
        next(iter(loader))
    assert not loader.bad
    store.failure = "403"
    with pytest.raises(OSError, match=r"1 attempts failed, the last by .*403"):
        next(iter(loader))


def test_what_does_not_exist_is_told(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DamagedShards, match=r"http://.*/none\.tar: unreadable") as error:
        open_index(expand_shards(f"{store.url}/none.tar"), tmp_path)
    assert "\n" not in str(error.value)
    assert len(store.requests) <= 3


def test_a_changed_shard_is_refused_by_its_etag(store: Store, data: Path, tmp_path: Path) -> None:
    shards = expand_shards(f"{store.url}/{PATTERN}")
    index = open_index(shards, tmp_path)
    path = data / "00001.tar"
    path.write_bytes(path.read_bytes().replace(b"caption 7", b"caption X"))
    with pytest.raises(ChangedShard, match=r"00001\.tar: changed since it was indexed \(etag was"):
        index.check()


def test_a_server_without_ranges_is_refused(store: Store, tmp_path: Path) -> None:
    index = open_index(expand_shards(f"{store.url}/{PATTERN}"), tmp_path)
    store.ranges = False
    with pytest.raises(NotImplementedError, match="does not serve ranges"):
        index.read(2)


def test_statistics_are_read_beside(store: Store, data: Path, tmp_path: Path) -> None:
    for name in ("00000", "00001"):
        (data / f"{name}_stats.json").write_text('{"successes": 5}')
    with pytest.raises(DamagedShards, match=r"00002\.tar: without statistics"):
        open_index(expand_shards(f"{store.url}/{PATTERN}"), tmp_path)


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_other_stores_of_fsspec(data: Path, tmp_path: Path, scheme: str) -> None:
    root = f"memory://{tmp_path.name}" if scheme == "memory" else f"file://{data}"
    if scheme == "memory":
        for path in data.glob("*.tar"):
            with fsspec.open(f"{root}/{path.name}", "wb") as file:
                file.write(path.read_bytes())
    near = batches(make(data, tmp_path / "index"))
    for shards in (f"{root}/{PATTERN}", f"{root}/", f"{root}/*.tar"):
        assert_same(batches(make(shards, tmp_path / "index")), near)


def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"s3://bucket/0\.tar: .*spatext\[stores\]"):
        open_index(expand_shards("s3://bucket/0.tar"), tmp_path)
