"""The cache of a node for shards of a store."""

import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from spatext.datamodules.remote import RemoteShard
from spatext.datamodules.shard_cache import ShardCache
from stores import PATTERN, Store, make
from tars import scene, write_shard


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
