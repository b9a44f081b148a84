"""Samples that a list names are in no batch, and nothing else changes."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatext.datamodules.index_opening import open_index
from spatext.datamodules.locations import expand_shards
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.shard_index import ShardIndex
from spatext.datamodules.shard_records import Flag
from spatext.datamodules.skip_list import (
    KeptSamples,
    Skipped,
    read_skip_list,
    telling_names,
    without,
    write_skip_list,
)
from spatext.datamodules.streaming import StreamingDataModule
from tars import scene, write_scenes, write_shard

GONE = [0, 5, 6, 7, 8, 9, 12]  # of 13 samples, 5 a shard: all of the second shard


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    return open_index(expand_shards(write_scenes(tmp_path / "data", 13)))


def write_list(path: Path, index: ShardIndex, numbers: list[int]) -> Path:
    write_skip_list(path, index, [Skipped(i, f"{i:06d}", "an example") for i in numbers])
    return path


def make(shards: Any, skip: Path | None, **options: Any) -> PanopticDataModule:
    settings: dict[str, Any] = {"image_size": 16, "crop_size": 8, "segmenter": None} | options
    datamodule = PanopticDataModule(shards, batch_size=2, skip=skip, **settings)
    datamodule.setup("fit")
    return datamodule


def test_a_list_reads_as_it_was_written(index: ShardIndex, tmp_path: Path) -> None:
    path = write_list(tmp_path / "skip.jsonl", index, GONE)
    first = json.loads(path.read_text().splitlines()[0])
    assert first | {"span": 0} == {
        "shard": "00000.tar",
        "offset": 0,
        "span": 0,
        "key": "000000",
        "why": "an example",
    }
    assert read_skip_list(path, index).tolist() == GONE


def test_what_is_left_is_numbered_through(index: ShardIndex, tmp_path: Path) -> None:
    kept = without(index, write_list(tmp_path / "skip.jsonl", index, GONE))
    assert isinstance(kept, KeptSamples)
    left = [i for i in range(13) if i not in GONE]
    assert len(kept) == len(left)
    assert kept.sizes.tolist() == [4, 0, 2]
    assert [kept[i].number for i in range(len(kept))] == left
    assert [sample.number for sample in kept[1:3]] == left[1:3]
    assert kept[-1].read() == index.read(11)
    assert kept.column("offset").tolist() == index.arrays["offset"][left].tolist()
    with pytest.raises(IndexError):
        kept[6]
    again = pickle.loads(pickle.dumps(kept))
    assert again.sha256 == kept.sha256
    assert again[2].read() == kept[2].read()


def test_lacking_is_numbered_as_what_is_left(tmp_path: Path) -> None:
    bare = {k: v for k, v in scene(0).items() if k != "panoptic.png"}
    samples = {f"{i}": bare if i in (2, 4, 5) else scene(i) for i in range(7)}
    write_shard(tmp_path / "00000.tar", samples)
    index = open_index(expand_shards(tmp_path))
    kept = KeptSamples(index, np.array([0, 4], dtype=np.int64))
    assert index.lacking(Flag.PANOPTIC).tolist() == [2, 4, 5]
    assert kept.lacking(Flag.PANOPTIC).tolist() == [1, 3]


def test_what_is_left_out_needs_no_segments(tmp_path: Path) -> None:
    bare = {k: v for k, v in scene(0).items() if k != "panoptic.png"}
    write_shard(
        tmp_path / "00000.tar", {f"{i}": bare if i in (1, 4) else scene(i) for i in range(7)}
    )
    index = open_index(expand_shards(tmp_path))
    skip = write_list(tmp_path / "skip.jsonl", index, [1, 4])
    datamodule = make(tmp_path / "00000.tar", skip, segmenter="stored")
    seen = [key for batch in datamodule.train_dataloader() for key in batch["key"]]
    assert len(seen) == 4
    assert not {"00000/1", "00000/4"} & set(seen)
    with pytest.raises(ValueError, match=r"sample 4 has no 4\.panoptic\.png \(1 of 6 samples"):
        make(tmp_path / "00000.tar", write_list(skip, index, [1]), segmenter="stored")


def test_the_digest_is_that_of_the_samples_not_of_the_lines(
    index: ShardIndex, tmp_path: Path
) -> None:
    path = write_list(tmp_path / "skip.jsonl", index, GONE)
    kept = without(index, path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*reversed(lines), lines[0]]) + "\n")
    assert without(index, path).sha256 == kept.sha256 != index.sha256
    path.write_text("\n".join(lines[1:]) + "\n")
    assert without(index, path).sha256 not in (kept.sha256, index.sha256)
    path.write_text("")
    assert without(index, path) is index


def test_no_batch_has_a_skipped_sample(index: ShardIndex, tmp_path: Path) -> None:
    skip = write_list(tmp_path / "skip.jsonl", index, GONE)
    datamodule = make(tmp_path / "data", skip)
    seen = [key for batch in datamodule.train_dataloader() for key in batch["key"]]
    left = [f"{i // 5:05d}/{i:06d}" for i in range(13) if i not in GONE]
    assert sorted(seen) == left


def test_bad_samples_are_not_replaced_by_skipped_ones(tmp_path: Path) -> None:
    """The one that stands in comes from the same window, of what is left."""
    broken = scene(1) | {"png": b"no image"}
    samples = {"a": scene(0), "b": broken, "c": scene(2), "d": scene(3)}
    write_shard(tmp_path / "data.tar", samples)
    index = open_index(expand_shards(tmp_path / "data.tar"))
    skip = write_list(tmp_path / "skip.jsonl", index, [2, 3])
    datamodule = make(tmp_path / "data.tar", skip, max_bad_share=1.0)
    loader = datamodule.train_dataloader()
    assert [batch["key"] for _ in range(3) for batch in loader] == [["data/a"] * 2] * 3
    assert loader.bad["data: not JPEG|PNG|WEBP"] >= 3


def test_a_mixture_leaves_out_of_its_sets(index: ShardIndex, tmp_path: Path) -> None:
    """Names of shards that both sets have are told apart by their folders."""
    write_scenes(tmp_path / "other", 5)
    sets = {name: {"shards": tmp_path / name, "weight": 1} for name in ("data", "other")}
    both = open_index([*expand_shards(tmp_path / "data"), *expand_shards(tmp_path / "other")])
    assert telling_names(both.shards)[3] == "other/00000.tar"
    skip = write_list(tmp_path / "skip.jsonl", both, [13, 14, 15])
    datamodule = make(sets, skip)
    records = datamodule.records
    assert records is not None
    assert records.sizes.tolist() == [5, 5, 3, 2]
    assert len(datamodule.train_dataloader()) == 13
    with pytest.raises(ValueError, match=r"2 shards here are named 00000\.tar; make the list"):
        without(both, write_list(tmp_path / "old.jsonl", index, [1]))


def test_a_resumed_run_needs_the_same_list(index: ShardIndex, tmp_path: Path) -> None:
    skip = write_list(tmp_path / "skip.jsonl", index, [3])
    first = make(tmp_path / "data", skip)
    next(iter(first.train_dataloader()))
    state = first.state_dict()
    again = make(tmp_path / "data", skip)
    again.load_state_dict(state)
    again.train_dataloader()
    assert again.state_dict() == state
    # as many samples, another one
    other = make(tmp_path / "data", write_list(tmp_path / "other.jsonl", index, [4]))
    other.load_state_dict(state)
    with pytest.raises(
        ValueError, match=r"index_sha256 was .* datamodule\.shards or skip are others"
    ):
        other.train_dataloader()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", r"line 1: expected shard, offset and span, found 'no json\\n'"),
        ('{"shard": "00000.tar"}', r"line 1: expected shard, offset and span"),
        (
            '{"shard": "00000.tar", "offset": true, "span": 5}',
            r"line 1: expected shard, offset and span",
        ),
        (
            '{"shard": "00000.tar", "offset": 512, "span": 5}',
            r"line 1: 00000\.tar has no sample at byte 512 of 5 bytes; make the list",
        ),
        ('{"shard": "00000.tar", "offset": -512, "span": 5}', "has no sample at byte -512"),
        (
            '{"shard": "00000.tar", "offset": 99999999999999999999, "span": 5}',
            "has no sample at byte 99999999999999999999",
        ),
        (
            '{"shard": "00000.tar", "offset": 99999999, "span": 5}',
            r"line 1: 00000\.tar has no sample at byte 99999999",
        ),
        ('{"shard": "9.tar", "offset": 0, "span": 5}', r"found 1 lines, none about a shard here"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(
    index: ShardIndex, tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "skip.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        read_skip_list(path, index)


def test_lines_about_other_shards_are_passed_over(index: ShardIndex, tmp_path: Path) -> None:
    path = write_list(tmp_path / "skip.jsonl", index, [3])
    path.write_text('{"shard": "9.tar", "offset": 0, "span": 5}\n' + path.read_text())
    assert read_skip_list(path, index).tolist() == [3]


def test_a_list_that_is_missing_or_useless_is_told(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "data", 3)
    with pytest.raises(FileNotFoundError, match=r"datamodule\.skip: no file /nowhere"):
        make(folder, Path("/nowhere/skip.jsonl"))
    assert [path.name for path in folder.iterdir()] == ["00000.tar"]  # no index was made before
    with pytest.raises(ValueError, match=r"datamodule\.skip: streaming knows no index"):
        StreamingDataModule(
            str(folder / "00000.tar"),
            samples_per_epoch=2,
            image_size=8,
            crop_size=8,
            segmenter=None,
            skip=folder / "skip.jsonl",
        )
