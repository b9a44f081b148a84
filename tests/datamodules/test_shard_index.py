"""The index on disk: what it says, when it is refused, and how it comes about."""

import json
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from spatext.datamodules import index_building
from spatext.datamodules.index_building import build_index
from spatext.datamodules.index_opening import open_index
from spatext.datamodules.locations import expand_shards
from spatext.datamodules.shard_index import ChangedShard, ShardIndex
from tars import scene, write_scenes, write_shard


def test_reads_what_was_written(data: Path) -> None:
    shards = expand_shards(data)
    index = open_index(shards)
    assert len(index) == 13
    assert index.sizes.tolist() == [5, 5, 3]
    for i in range(13):
        assert index[i].shard == shards[i // 5]
        assert index.read(i) == (f"{i // 5:05d}/{i:06d}", scene(i))
        assert index[i].read() == index.read(i)
    assert [sample.number for sample in index[3:5]] == [3, 4]
    with pytest.raises(IndexError):
        index[13]


def test_arrays_are_mapped_and_take_17_bytes_a_sample(data: Path) -> None:
    index = open_index(expand_shards(data))
    for array in index.arrays.values():
        assert isinstance(array, np.memmap)
    assert sum(array.dtype.itemsize for array in index.arrays.values()) == 17
    assert index.folder.parent == data / ".spatext-index"
    assert sorted(p.name for p in index.folder.iterdir()) == sorted(
        ["index.json", *(f"{name}.npy" for name in index.arrays)]
    )


def test_another_process_maps_them_again(data: Path) -> None:
    index = open_index(expand_shards(data))
    index.read(0)
    pickled = pickle.dumps(index)
    assert len(pickled) < 2000
    copy = pickle.loads(pickled)
    assert isinstance(copy.arrays["offset"], np.memmap)
    assert copy.read(7) == index.read(7)


def test_the_digest_is_that_of_the_data(data: Path, tmp_path: Path) -> None:
    first = open_index(expand_shards(data)).sha256
    copy = write_scenes(tmp_path / "copy", 13)
    os.utime(copy / "00000.tar", (1, 1))
    assert open_index(expand_shards(copy)).sha256 == first
    assert open_index(expand_shards(copy)[:2]).sha256 != first
    reverse = expand_shards(copy)[::-1]
    assert open_index(reverse).sha256 != first
    build_index(expand_shards(data), tmp_path / "sums", checksums=True)
    assert ShardIndex(tmp_path / "sums", expand_shards(data)).sha256 == first
    write_shard(copy / "00001.tar", {f"{i:06d}": scene(i, (32, 50)) for i in range(5, 10)})
    assert open_index(expand_shards(copy)).sha256 != first


def test_one_shard_more_reads_one_shard(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was scanned is kept, also of a build that was stopped."""
    scanned = []
    scan = index_building.scan_shard

    def witness(shard: Path, **options: bool) -> object:
        scanned.append(shard.name)
        if shard.name == stop:
            raise KeyboardInterrupt
        return scan(shard, **options)

    monkeypatch.setattr(index_building, "scan_shard", witness)
    place = data.parent / "index"
    stop = "00002.tar"
    with pytest.raises(KeyboardInterrupt):
        build_index(expand_shards(data), place)
    assert not place.exists()
    stop = ""
    build_index(expand_shards(data), place)
    assert scanned == ["00000.tar", "00001.tar", "00002.tar", "00002.tar"]
    os.utime(data / "00001.tar", (1, 1))
    build_index(expand_shards(data), place)
    assert scanned[4:] == ["00001.tar"]


def test_processes_make_the_same_index(data: Path) -> None:
    shards = expand_shards(data)
    build_index(shards, data.parent / "one")
    build_index(shards, data.parent / "three", jobs=3)
    one, three = (ShardIndex(data.parent / name, shards) for name in ("one", "three"))
    assert one.facts == three.facts
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, three.arrays[name])


def open_and_count(shards: list[Path], counter: Path) -> None:
    scan = index_building.scan_shard

    def witness(shard: Path, **options: bool) -> object:
        with counter.open("a") as file:
            file.write("x")
        return scan(shard, **options)

    index_building.scan_shard = witness  # type: ignore[assignment]
    assert len(open_index(shards)) == 13


def test_one_process_makes_it_and_the_others_wait(data: Path) -> None:
    shards, counter = expand_shards(data), data.parent / "counter"
    context = multiprocessing.get_context("fork")
    tasks = [context.Process(target=open_and_count, args=(shards, counter)) for _ in range(6)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(60)
        assert task.exitcode == 0
    assert counter.read_text() == "xxx"  # three shards, once each


def test_an_index_made_in_passing_is_made_again(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = expand_shards(data)
    before = open_index(shards)
    write_shard(data / "00001.tar", {"a": scene(0)})
    with caplog.at_level("WARNING"):
        after = open_index(shards)
    assert (len(before), len(after)) == (13, 9)
    assert "00001.tar: changed since it was indexed" in caplog.text
    assert before.sha256 != after.sha256
    with pytest.raises(ChangedShard, match="replaced while it was in use"):
        pickle.loads(pickle.dumps(before))


def test_a_given_folder_holds_the_indexes(data: Path, tmp_path: Path) -> None:
    other = write_scenes(tmp_path / "other", 4)
    one = open_index(expand_shards(data), tmp_path / "indexes")
    two = open_index(expand_shards(other), tmp_path / "indexes")
    assert one.folder.parent == two.folder.parent == tmp_path / "indexes"
    assert (len(one), len(two)) == (13, 4)
    assert not (data / ".spatext-index").exists()


def test_where_nothing_can_be_written_the_users_cache_holds_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def refuse(self: Path, *args: object, **options: object) -> None:
        if self.is_relative_to(data):
            raise PermissionError(13, "Permission denied")
        mkdir(self, *args, **options)

    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", refuse)
    index = open_index(expand_shards(data))
    assert index.folder.parent == tmp_path / "cache" / "spatext" / "index"


def test_the_facts_of_a_shard_are_json(data: Path) -> None:
    index = open_index(expand_shards(data))
    facts = json.loads((index.folder / "index.json").read_text())
    assert [entry["num_samples"] for entry in facts["shards"]] == [5, 5, 3]
    assert facts["made_by"] == "datamodule"
    stat = (data / "00002.tar").stat()
    entry = facts["shards"][2]
    assert (entry["bytes"], entry["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)
