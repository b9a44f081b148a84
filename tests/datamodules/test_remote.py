"""Shards of a store: the same samples, by ranges or through the cache, however it fails."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from spatext.datamodules import remote
from spatext.datamodules.index_building import DamagedShards
from spatext.datamodules.index_opening import open_index
from spatext.datamodules.locations import expand_shards
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.remote import RemoteShard
from spatext.datamodules.shard_cache import ShardCache
from spatext.datamodules.shard_index import ChangedShard
from stores import Store, serve
from tars import scene, write_scenes, write_shard

PATTERN = "{00000..00002}.tar"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "data", 13)


@pytest.fixture
def store(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    with serve(data) as store:
        yield store


def make(shards: object, folder: Path, **options: Any) -> PanopticDataModule:
    options = {"image_size": 32, "crop_size": 16, "segmenter": "stored", "batch_size": 4} | options
    datamodule = PanopticDataModule(shards, index=folder, **options)
    datamodule.setup("fit")
    return datamodule


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
    elif num_workers == 0:
        assert len(gets) == 12  # one range a sample
        assert sum(gets) == sum(int(far.records.arrays["span"][i]) for i in seen(far))


def seen(datamodule: PanopticDataModule) -> list[int]:
    assert datamodule.records is not None
    return datamodule._sampler(datamodule.records).order.samples(0, 0, 12).tolist()


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


# --- the cache of a node -------------------------------------------------------------------------


def test_the_cache_keeps_to_its_bytes_and_drops_what_was_not_used(
    store: Store, data: Path, tmp_path: Path
) -> None:
    shards = [RemoteShard(f"{store.url}/0000{i}.tar") for i in range(3)]
    facts = [shard.facts() for shard in shards]
    cache = ShardCache(tmp_path / "cache", facts[0]["bytes"] + facts[1]["bytes"])

    def fetched() -> list[str]:
        names = [name for method, name, _ in store.requests if method == "GET"]
        store.requests.clear()
        return names

    for which, expected in ((0, [0]), (1, [1]), (0, []), (2, [2]), (0, []), (1, [1])):
        fetched()
        data_of = (data / f"0000{which}.tar").read_bytes()
        assert cache.read(shards[which], facts[which], 100, 900) == data_of[100:1000]
        assert fetched() == [f"0000{i}.tar" for i in expected], which
        kept = [p.stat().st_size for p in (tmp_path / "cache").iterdir() if p.suffix != ""]
        assert sum(kept) <= cache.num_bytes


def test_a_shard_that_cannot_be_kept_is_told_at_the_start(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"datamodule\.cache_bytes is 9, expected at least the"):
        make(f"{store.url}/{PATTERN}", tmp_path, cache=tmp_path / "cache", cache_bytes=9)


ROOM = 62_000  # two of the three shards


def read_all(url: str, data: Path, folder: Path, seed: int, failed: Any) -> None:
    cache = ShardCache(folder, ROOM)
    try:
        for i in range(30):
            shard = RemoteShard(f"{url}/0000{(i * 7 + seed) % 3}.tar")
            expected = (data / shard.name).read_bytes()
            assert cache.read(shard, shard.facts(), 512, 14000) == expected[512:14512]
    except BaseException as error:
        failed.put(repr(error))
        raise


@pytest.mark.slow
def test_processes_share_the_cache(store: Store, data: Path, tmp_path: Path) -> None:
    """Four at a time, with less room than they need, beside what a killed one left."""
    (tmp_path / "cache").mkdir()
    left = tmp_path / "cache" / "0123.part"
    left.write_bytes(bytes(40_000))
    context = multiprocessing.get_context("fork")
    failed = context.Queue()
    tasks = [
        context.Process(target=read_all, args=(store.url, data, tmp_path / "cache", seed, failed))
        for seed in range(4)
    ]
    sizes: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            total = 0
            for entry in os.scandir(tmp_path / "cache"):
                try:
                    total += entry.stat().st_size
                except FileNotFoundError:
                    continue
            sizes.append(total)

    watcher = threading.Thread(target=watch)
    for task in tasks:
        task.start()
    watcher.start()
    for task in tasks:
        task.join(100)
    stop.set()
    watcher.join()
    assert failed.empty(), failed.get()
    assert [task.exitcode for task in tasks] == [0] * 4
    assert not left.exists()
    assert max(sizes[5:]) <= ROOM


def test_a_changed_shard_is_another_file_of_the_cache(
    store: Store, data: Path, tmp_path: Path
) -> None:
    cache = ShardCache(tmp_path / "cache", 10**6)
    shard = RemoteShard(f"{store.url}/00001.tar")
    before = cache.read(shard, shard.facts(), 0, 4096)
    write_shard(data / "00001.tar", {"a": scene(3)})
    after = cache.read(shard, shard.facts(), 0, 4096)
    assert before != after == (data / "00001.tar").read_bytes()[:4096]
