"""Encodings on the disk: what is made, made again, and refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from annotating import annotate, write_raw
from cached import ALL, CENTRE, batches, config, make
from spatext.datamodules.annotation_engines import Engine
from spatext.datamodules.encoding_files import EntryWriter, read_manifest
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.segmenters import GraphSegmenter
from spatext.datamodules.shard_index import ShardIndex
from spatext.datamodules.skip_list import Skipped, write_skip_list
from spatext.datamodules.streaming import StreamingDataModule
from spatext.modules.networks.clip import Clip
from spatext.tools.cache import cache
from tars import scene, write_scenes, write_shard

MOMENTS = {"moments": True}


@pytest.fixture(scope="module")
def world(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of wide scenes, encoded unmirrored."""
    folder = write_scenes(tmp_path_factory.mktemp("encoded") / "shards", 8, per_shard=4)
    cache(config(base, folder, "datamodule.flip=false"))
    return folder


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "encodings").glob("*.*.*")}


def refused(folder: Path, message: str, encodings: Any = ALL, **options: Any) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        make(folder, encodings, **({"flip": False} | options))
    assert "\n" not in str(raised.value)


def test_embeddings_are_those_of_the_crops(world: Path, base: Path) -> None:
    clip = Clip(f"local-dir:{base / 'clip'}")
    num = 0
    for batch in batches(make(world, ALL, flip=False, k_max=2), 2):
        expected = clip.embed_images(batch["crops"].flatten(0, 1)).unflatten(0, (4, 2))
        expected[~batch["valid"]] = 0
        assert_close(batch["embeds"].float(), expected, rtol=2e-3, atol=2e-3)
        num += int(batch["valid"].sum())
    assert num > 4


def test_what_is_done_stays_and_what_is_missing_is_made(
    copy: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copy)
    assert len(before) == 2 * 2 * 3
    assert not cache(config(base, copy, "datamodule.flip=false"))
    assert "0 shards cached, 2 were done" in capsys.readouterr().out
    (copy / "encodings" / "00001.text.json").unlink()
    path = copy / "encodings" / "00000.moments.bin"
    path.write_bytes(path.read_bytes()[:-8])
    (copy / "encodings" / ".00001.text.bin.12ab.tmp").write_text("of a killed process")
    made = cache(config(base, copy, "datamodule.flip=false"))
    assert [manifest.num_entries for manifest in made] == [4, 4]
    assert not list((copy / "encodings").glob(".*.tmp"))
    assert contents(copy) == before


def test_two_processes_share_the_shards(copy: Path, base: Path) -> None:
    before = contents(copy)
    shutil.rmtree(copy / "encodings")
    for rank in (1, 0):
        options = (f"shard_rank={rank}", "num_ranks=2", "datamodule.flip=false")
        assert len(cache(config(base, copy, *options))) == 3
    assert contents(copy) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("dtype=float32",), r"moments\.json: made with storage\.dtype = 'float16', now 'float32'"),
        (("datamodule.image_size=32",), r"made with view\.image_size = 16, now 32"),
        (("datamodule.flip=true",), r"made with storage\.flips = 1, now 2"),
        (("clip.scale=unit",), r"embeds\.json: made with encoder\.scale = 'raw', now 'unit'"),
        (("dtype=int8",), "dtype=int8: expected float16 or float32"),
        (("base=null",), "missing base"),
        (("out=s3://a/b",), r"^out is 's3://a/b', expected a folder of a file system"),
        (("moments=false", "text=false", "embeds=false"), "found no kind"),
        (("datamodule.segmenter=null",), "embeds: expected stored segments"),
        (
            ("+datamodule.buckets.step=8",),
            r"moments\.json: made with view\.buckets = None, now \{'area': 256, ",
        ),
    ],
)
def test_other_options_are_refused(
    world: Path, base: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cache(config(base, world, "datamodule.flip=false", *overrides))


def test_overwriting(copy: Path, base: Path) -> None:
    options = ("datamodule.flip=false", "dtype=float32", "text=false", "embeds=false")
    made = cache(config(base, copy, *options, "overwrite=true"))
    assert [manifest.dtype for manifest in made] == [np.dtype("<f4")] * 2
    (batch, *_) = batches(make(copy, ALL, flip=False))
    assert [batch[kind].dtype for kind in ALL] == [torch.float32, torch.float16, torch.float16]


@pytest.mark.parametrize(
    ("encodings", "options", "message"),
    [
        (MOMENTS, {"random_crop": True}, r"moments: .*expected datamodule\.random_crop=false"),
        (MOMENTS, {"flip": True}, r"no mirrored images; expected datamodule\.flip=false"),
        (MOMENTS, {"buckets": {"step": 8}}, r"made with datamodule\.buckets = None, now .*; exp"),
        (MOMENTS, {"image_size": 32}, r"made with datamodule\.image_size = 16, now 32"),
        (MOMENTS, {"crop_size": 32}, r"made with datamodule\.min_side = 64, now 128"),
        (ALL, {"min_area": 0.1}, r"embeds\.bin: made with datamodule\.min_area = 0\.05, now 0\.1"),
        (ALL, {"segmenter": None}, r"expected datamodule\.segmenter=stored"),
        ({"path": "nowhere"}, {}, "found no kind"),
        (MOMENTS | {"path": "s3://a/b"}, {}, r"\.path is 's3://a/b', expected a folder of a"),
        ({"latents": True}, {}, r"encodings\.latents: unknown, expected path, moments"),
        (
            MOMENTS | {"images": False},
            {},
            r"images are needed without .*\.embeds",
        ),
        (
            {"text": True, "images": False},
            {"segmenter": None},
            r"without .*\.moments=true",
        ),
        ({"text": 1}, {}, r"encodings\.text is 1, expected true or false"),
        ({"text": True, "path": "nowhere"}, {}, r"00000\.text\.json: missing \(2 of 2 shards"),
    ],
)
def test_contradictions_are_refused(
    world: Path, encodings: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    refused(world, message, encodings, **options)


def test_text_knows_no_view(world: Path) -> None:
    datamodule = make(world, {"text": True}, random_crop=True, flip=True, image_size=32)
    assert batches(datamodule)[0]["text"].shape == (4, 12, 16)


def test_a_stream_has_none() -> None:
    with pytest.raises(ValueError, match=r"datamodule\.encodings: streaming knows no index"):
        StreamingDataModule("pipe:x", samples_per_epoch=8, encodings={"text": True}, **CENTRE)


def test_shards_that_are_others_now(copy: Path) -> None:
    path = copy / "encodings" / "00001.embeds.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused(copy, r"00001\.embeds\.bin: found \d+ bytes, expected \d+; run spatext-cache again")
    path.write_bytes(whole)
    (copy / "encodings" / "00000.text.json").unlink()
    refused(copy, r"00000\.text\.json: missing \(1 of 2 shards")
    shutil.rmtree(copy / ".spatext-index")
    write_shard(copy / "00000.tar", {f"{i:06d}": scene(i + 9) for i in range(5)})
    refused(copy, r"00000\.moments\.json: made of another 00000\.tar: \w+ = ", MOMENTS)


def test_another_image_of_the_same_length_is_a_bad_sample(copy: Path) -> None:
    datamodule = make(copy, ALL, flip=False)
    assert datamodule.records is not None
    members, path = datamodule.records[2].read().members, copy / "00000.tar"
    data = bytearray(path.read_bytes())
    place = data.index(members["txt"])
    data[place] ^= 1
    path.write_bytes(data)
    shutil.rmtree(copy / ".spatext-index")
    loader = make(copy, ALL, flip=False, batch_size=1, max_bad_share=1.0).train_dataloader()
    keys = [batch["key"][0] for batch in loader]
    assert len(keys) == 8
    assert "00000/000002" not in keys
    assert dict(loader.bad) == {"00000: cached text are of another sample": 1}


def test_what_cannot_be_decoded_has_no_entry(base: Path, tmp_path: Path) -> None:
    samples: dict[str, dict[str, Any]] = {f"{i}": scene(i) for i in range(4)}
    samples["2"]["panoptic.png"] = b"broken"
    write_shard(tmp_path / "0.tar", samples)
    options = ("datamodule.flip=true", "datamodule.max_bad_share=1.0")
    made = cache(config(base, tmp_path, *options))
    assert [manifest.num_entries for manifest in made] == [6, 3, 6]
    assert {str(manifest.bad) for manifest in made} == {
        "{'not PNG': 1}",
    }
    loader = make(tmp_path, MOMENTS, max_bad_share=1.0).train_dataloader()
    (batch,) = loader
    assert "0/2" not in batch["key"]


def test_numbers_beyond_half_precision(tmp_path: Path) -> None:
    writer = EntryWriter(tmp_path / "x", "moments", "float16", 1)
    with pytest.raises(FloatingPointError, match=r"moments of sample 0 hold 1e\+05.*dtype=float32"):
        writer.add(0, np.full((2, 1, 1, 1), 1e5), 0)
    writer.close()


def test_segments_of_other_sidecars_are_refused(base: Path, tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "raw")
    shards, place = sorted(folder.glob("*.tar")), folder / "annotations"
    annotate(shards, place, Engine(GraphSegmenter()))
    (manifest,) = cache(config(base, folder, "moments=false", "text=false", "base=null"))
    assert read_manifest(folder / "encodings" / "0.embeds.json") == manifest
    (batch,) = batches(make(folder, {"embeds": True}, batch_size=8), 1)
    assert batch["embeds"][batch["valid"]].abs().amax(dim=1).min() > 0
    annotate(shards, place, Engine(GraphSegmenter(max_segments=2)))
    refused(folder, r"0\.embeds\.json: made of another 0\.tar: sidecar = ", {"embeds": True})


def test_mixtures_and_skip_lists_find_their_entries(copy: Path, base: Path) -> None:
    """Of the shard that a sample lies in, whatever its number in the stream."""
    (whole,) = batches(make(copy, ALL, flip=False, batch_size=8, shuffle=False), 1)
    rows = dict(zip(whole["key"], whole["moments"], strict=True))
    sets = {
        "one": {"shards": str(copy / "00001.tar"), "weight": 3},
        "two": {"shards": str(copy / "00000.tar"), "weight": 1},
    }
    mixed = PanopticDataModule(sets, encodings=MOMENTS, index=copy / "mixed", flip=False, **CENTRE)
    mixed.setup("fit")
    for batch in batches(mixed, 2):
        for key, moments in zip(batch["key"], batch["moments"], strict=True):
            assert torch.equal(moments, rows[key])
    index = make(copy, None).records
    assert isinstance(index, ShardIndex)
    write_skip_list(copy / "skip.jsonl", index, [Skipped(number, "", "") for number in (0, 5)])
    options: dict[str, Any] = {"skip": copy / "skip.jsonl", "batch_size": 6, "flip": False}
    (kept,) = batches(make(copy, ALL, **options), 1)
    assert len({*kept["key"]} & rows.keys()) == 6
    for key, moments in zip(kept["key"], kept["moments"], strict=True):
        assert torch.equal(moments, rows[key])
