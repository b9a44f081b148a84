"""Shards and indexes that are damaged, changed or hostile."""

import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from spatext.datamodules.index_building import DamagedShards, build_index, compare_index
from spatext.datamodules.index_opening import open_index
from spatext.datamodules.index_places import index_places
from spatext.datamodules.locations import expand_shards
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.shard_index import ChangedShard, ShardIndex
from spatext.datamodules.shards import BadSample, index_shard, parse_span
from tars import Canary, scene, write_shard


@pytest.mark.parametrize("change", ["bytes", "mtime_ns"])
def test_a_changed_shard_is_refused_by_name(data: Path, change: str) -> None:
    shards = expand_shards(data)
    build_index(shards, index_places(shards)[0])
    if change == "bytes":
        write_shard(data / "00001.tar", {"a": scene(0)})
    else:
        os.utime(data / "00001.tar", (1, 1))
    with pytest.raises(
        ChangedShard, match=rf"00001\.tar: changed since .* \({change} was"
    ) as error:
        open_index(shards)
    assert "run spatext-index build" in str(error.value)
    assert "\n" not in str(error.value)
    build_index(shards, index_places(shards)[0])
    assert len(open_index(shards)) == (9 if change == "bytes" else 13)


def test_verify_finds_what_neither_size_nor_time_tell(data: Path) -> None:
    shards = expand_shards(data)
    build_index(shards, data.parent / "index", checksums=True)
    index = ShardIndex(data.parent / "index", shards)
    assert compare_index(index) == []
    path, times = shards[1], (shards[1].stat().st_atime_ns, shards[1].stat().st_mtime_ns)
    content = bytearray(path.read_bytes())
    content[index_shard(path)[2].members["png"][0] + 60] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=times)
    index.check()
    ((shard, fault),) = compare_index(index)
    assert shard == path
    assert str(fault) == "changed since it was indexed (sha256 differ from the index)"


def test_damage_is_told_of_all_shards_at_once(data: Path) -> None:
    shards = expand_shards(data)
    shards[0].write_bytes(shards[0].read_bytes()[:3000])
    (data / "00001_stats.json").write_text('{"successes": 5}')
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
def test_a_damaged_index_is_refused(data: Path, array: str) -> None:
    index = open_index(expand_shards(data))
    path = index.folder / f"{array}.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=rf"{array}\.npy: damaged .*run spatext-index build"):
        open_index(expand_shards(data))
    np.save(path, np.zeros(3))
    with pytest.raises(ValueError, match=r"found float64 \[3\], expected uint\d+ \[13\]"):
        open_index(expand_shards(data))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "no index of shards"), ('{"version": 9}', "found version 9"), ("[]", "found version")],
)
def test_another_document_is_refused(data: Path, text: str, message: str) -> None:
    index = open_index(expand_shards(data))
    (index.folder / "index.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_index(expand_shards(data))


def test_other_shards_are_refused(data: Path) -> None:
    shards = expand_shards(data)
    index = open_index(shards)
    with pytest.raises(ValueError, match=r"index of 3 shards .* expected the 2 from 00000\.tar on"):
        ShardIndex(index.folder, shards[:2])


@pytest.mark.parametrize("where", [0, 700, -1])
def test_bytes_that_are_not_the_sample_are_a_bad_sample(data: Path, where: int) -> None:
    index = open_index(expand_shards(data))
    content = bytearray(index.shards[0].read_bytes())
    first, span = int(index.arrays["offset"][1]), int(index.arrays["span"][1])
    part = content[first : first + span]
    assert parse_span(bytes(part), "0").name == "0/000001"
    for wrong in (part[1:], part[:-1], part + b"x", part[512:], b"", bytes(1024)):
        with pytest.raises(BadSample, match="not the one indexed"):
            parse_span(bytes(wrong), "0")


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
