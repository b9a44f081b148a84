"""The index on disk: what it says, when it is refused, and how it comes about."""

import json
import multiprocessing
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from spatext.datamodules import index_building
from spatext.datamodules.index_building import DamagedShards, build_index, compare_index
from spatext.datamodules.index_opening import open_index
from spatext.datamodules.index_places import index_places
from spatext.datamodules.locations import expand_shards
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.shard_index import ChangedShard, ShardIndex
from spatext.datamodules.shards import BadSample, index_shard, parse_span
from tars import png, scene, write_scenes, write_shard

PIXEL = png(np.zeros((1, 1, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "data", 13)


def test_reads_what_was_written(folder: Path) -> None:
    shards = expand_shards(folder)
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


def test_arrays_are_mapped_and_take_17_bytes_a_sample(folder: Path) -> None:
    index = open_index(expand_shards(folder))
    for array in index.arrays.values():
        assert isinstance(array, np.memmap)
    assert sum(array.dtype.itemsize for array in index.arrays.values()) == 17
    assert index.folder.parent == folder / ".spatext-index"
    assert sorted(p.name for p in index.folder.iterdir()) == sorted(
        ["index.json", *(f"{name}.npy" for name in index.arrays)]
    )


def test_another_process_maps_them_again(folder: Path) -> None:
    index = open_index(expand_shards(folder))
    index.read(0)
    data = pickle.dumps(index)
    assert len(data) < 2000
    copy = pickle.loads(data)
    assert isinstance(copy.arrays["offset"], np.memmap)
    assert copy.read(7) == index.read(7)


def test_the_digest_is_that_of_the_data(folder: Path, tmp_path: Path) -> None:
    first = open_index(expand_shards(folder)).sha256
    copy = write_scenes(tmp_path / "copy", 13)
    os.utime(copy / "00000.tar", (1, 1))
    assert open_index(expand_shards(copy)).sha256 == first
    assert open_index(expand_shards(copy)[:2]).sha256 != first
    reverse = expand_shards(copy)[::-1]
    assert open_index(reverse).sha256 != first
    build_index(expand_shards(folder), tmp_path / "sums", checksums=True)
    assert ShardIndex(tmp_path / "sums", expand_shards(folder)).sha256 == first
    write_shard(copy / "00001.tar", {f"{i:06d}": scene(i, (32, 50)) for i in range(5, 10)})
    assert open_index(expand_shards(copy)).sha256 != first


def test_one_shard_more_reads_one_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was scanned is kept, also of a build that was stopped."""
    scanned = []
    scan = index_building.scan_shard

    def witness(shard: Path, **options: bool) -> object:
        scanned.append(shard.name)
        if shard.name == stop:
            raise KeyboardInterrupt
        return scan(shard, **options)

    monkeypatch.setattr(index_building, "scan_shard", witness)
    place = folder.parent / "index"
    stop = "00002.tar"
    with pytest.raises(KeyboardInterrupt):
        build_index(expand_shards(folder), place)
    assert not place.exists()
    stop = ""
    build_index(expand_shards(folder), place)
    assert scanned == ["00000.tar", "00001.tar", "00002.tar", "00002.tar"]
    os.utime(folder / "00001.tar", (1, 1))
    build_index(expand_shards(folder), place)
    assert scanned[4:] == ["00001.tar"]


def test_processes_make_the_same_index(folder: Path) -> None:
    shards = expand_shards(folder)
    build_index(shards, folder.parent / "one")
    build_index(shards, folder.parent / "three", jobs=3)
    one, three = (ShardIndex(folder.parent / name, shards) for name in ("one", "three"))
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


def test_one_process_makes_it_and_the_others_wait(folder: Path) -> None:
    shards, counter = expand_shards(folder), folder.parent / "counter"
    context = multiprocessing.get_context("fork")
    tasks = [context.Process(target=open_and_count, args=(shards, counter)) for _ in range(6)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(60)
        assert task.exitcode == 0
    assert counter.read_text() == "xxx"  # three shards, once each


@pytest.mark.parametrize("change", ["bytes", "mtime_ns"])
def test_a_changed_shard_is_refused_by_name(folder: Path, change: str) -> None:
    shards = expand_shards(folder)
    build_index(shards, index_places(shards)[0])
    if change == "bytes":
        write_shard(folder / "00001.tar", {"a": scene(0)})
    else:
        os.utime(folder / "00001.tar", (1, 1))
    with pytest.raises(
        ChangedShard, match=rf"00001\.tar: changed since .* \({change} was"
    ) as error:
        open_index(shards)
    assert "run spatext-index build" in str(error.value)
    assert "\n" not in str(error.value)
    build_index(shards, index_places(shards)[0])
    assert len(open_index(shards)) == (9 if change == "bytes" else 13)


def test_an_index_made_in_passing_is_made_again(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = expand_shards(folder)
    before = open_index(shards)
    write_shard(folder / "00001.tar", {"a": scene(0)})
    with caplog.at_level("WARNING"):
        after = open_index(shards)
    assert (len(before), len(after)) == (13, 9)
    assert "00001.tar: changed since it was indexed" in caplog.text
    assert before.sha256 != after.sha256
    with pytest.raises(ChangedShard, match="replaced while it was in use"):
        pickle.loads(pickle.dumps(before))


def test_verify_finds_what_neither_size_nor_time_tell(folder: Path) -> None:
    shards = expand_shards(folder)
    build_index(shards, folder.parent / "index", checksums=True)
    index = ShardIndex(folder.parent / "index", shards)
    assert compare_index(index) == []
    path, times = shards[1], (shards[1].stat().st_atime_ns, shards[1].stat().st_mtime_ns)
    data = bytearray(path.read_bytes())
    data[index_shard(path)[2].members["png"][0] + 60] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=times)
    index.check()
    ((shard, fault),) = compare_index(index)
    assert shard == path
    assert str(fault) == "changed since it was indexed (sha256 differ from the index)"


def test_damage_is_told_of_all_shards_at_once(folder: Path) -> None:
    shards = expand_shards(folder)
    shards[0].write_bytes(shards[0].read_bytes()[:3000])
    (folder / "00001_stats.json").write_text('{"successes": 5}')
    with pytest.raises(DamagedShards) as error:
        open_index(shards)
    assert [(shard.name, fault.kind) for shard, fault in error.value.faults] == [
        ("00000.tar", "cut at a member boundary"),
        ("00000.tar", "without statistics, which other shards have"),
        ("00002.tar", "without statistics, which other shards have"),
    ]
    assert "\n" not in str(error.value)
    place = index_places(shards)[0]
    assert not place.exists()
    faults = build_index(shards, place, allow_damaged=True)
    assert len(faults) == 3
    assert len(open_index(shards)) == 8  # the first shard's cut hit its first sample


def test_of_damaged_shards_whole_samples_are_read(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "0.tar", {f"{i}": scene(i) for i in range(6)})
    path.write_bytes(path.read_bytes()[: index_shard(path)[4].members["txt"][0] - 512])
    build_index([path], tmp_path / "index", allow_damaged=True)
    index = ShardIndex(tmp_path / "index", [path])
    assert [index.read(i) for i in range(len(index))] == [(f"0/{i}", scene(i)) for i in range(4)]


@pytest.mark.parametrize("array", ["offset", "flags"])
def test_a_damaged_index_is_refused(folder: Path, array: str) -> None:
    index = open_index(expand_shards(folder))
    path = index.folder / f"{array}.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=rf"{array}\.npy: damaged .*run spatext-index build"):
        open_index(expand_shards(folder))
    np.save(path, np.zeros(3))
    with pytest.raises(ValueError, match=r"found float64 \[3\], expected uint\d+ \[13\]"):
        open_index(expand_shards(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "no index of shards"), ('{"version": 9}', "found version 9"), ("[]", "found version")],
)
def test_another_document_is_refused(folder: Path, text: str, message: str) -> None:
    index = open_index(expand_shards(folder))
    (index.folder / "index.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_index(expand_shards(folder))


def test_other_shards_are_refused(folder: Path) -> None:
    shards = expand_shards(folder)
    index = open_index(shards)
    with pytest.raises(ValueError, match=r"index of 3 shards .* expected the 2 from 00000\.tar on"):
        ShardIndex(index.folder, shards[:2])


def test_a_given_folder_holds_the_indexes(folder: Path, tmp_path: Path) -> None:
    other = write_scenes(tmp_path / "other", 4)
    one = open_index(expand_shards(folder), tmp_path / "indexes")
    two = open_index(expand_shards(other), tmp_path / "indexes")
    assert one.folder.parent == two.folder.parent == tmp_path / "indexes"
    assert (len(one), len(two)) == (13, 4)
    assert not (folder / ".spatext-index").exists()


def test_where_nothing_can_be_written_the_users_cache_holds_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def refuse(self: Path, *args: object, **options: object) -> None:
        if self.is_relative_to(folder):
            raise PermissionError(13, "Permission denied")
        mkdir(self, *args, **options)

    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", refuse)
    index = open_index(expand_shards(folder))
    assert index.folder.parent == tmp_path / "cache" / "spatext" / "index"


@pytest.mark.parametrize("where", [0, 700, -1])
def test_bytes_that_are_not_the_sample_are_a_bad_sample(folder: Path, where: int) -> None:
    index = open_index(expand_shards(folder))
    data = bytearray(index.shards[0].read_bytes())
    first, span = int(index.arrays["offset"][1]), int(index.arrays["span"][1])
    part = data[first : first + span]
    assert parse_span(bytes(part), "0").name == "0/000001"
    for wrong in (part[1:], part[:-1], part + b"x", part[512:], b"", bytes(1024)):
        with pytest.raises(BadSample, match="not the one indexed"):
            parse_span(bytes(wrong), "0")


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_nothing_in_a_shard_runs_or_leaves_it(tmp_path: Path) -> None:
    """Through index, verification and batches: pickles, arrays of objects, links, paths."""
    canary, data = tmp_path / "ran", tmp_path / "data"
    data.mkdir()
    live = pickle.dumps(Canary(canary))
    np.save(tmp_path / "object.npy", np.array([Canary(canary)]), allow_pickle=True)
    objects = (tmp_path / "object.npy").read_bytes()
    bad = {s: live for s in ("pyd", "pickle", "pkl", "pth", "pt")} | {"npy": objects}
    samples = {f"{i}": {**scene(i), **bad} for i in range(4)}
    samples["../../escape"] = scene(4)
    samples["/tmp/absolute"] = scene(5)
    path = write_shard(data / "0.tar", samples)
    with tarfile.open(path, "a") as tar:
        for name, kind, target in (
            ("6.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("7.txt", tarfile.LNKTYPE, "../../ran"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    before = {p for p in tmp_path.rglob("*") if ".spatext-index" not in str(p)}
    datamodule = PanopticDataModule(
        data, image_size=32, crop_size=16, segmenter="stored", batch_size=6
    )
    datamodule.setup("fit")
    (batch,) = datamodule.train_dataloader()
    assert set(batch["key"]) == {f"0/{key}" for key in samples}
    assert compare_index(open_index(datamodule.shards)) == []
    assert {p for p in tmp_path.rglob("*") if ".spatext-index" not in str(p)} == before
    assert not canary.exists()
    pickle.loads(live)
    assert canary.exists()  # the payload was live


def test_a_pipe_is_no_shard(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pipe:touch .* cannot be read by position"):
        expand_shards(f"pipe:touch {tmp_path / 'ran'}")
    assert not (tmp_path / "ran").exists()


def test_the_facts_of_a_shard_are_json(folder: Path) -> None:
    index = open_index(expand_shards(folder))
    facts = json.loads((index.folder / "index.json").read_text())
    assert [entry["num_samples"] for entry in facts["shards"]] == [5, 5, 3]
    assert facts["made_by"] == "datamodule"
    stat = (folder / "00002.tar").stat()
    entry = facts["shards"][2]
    assert (entry["bytes"], entry["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)
