"""spatext-index duplicates: the list, what training makes of it, and what is not done twice."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.pair_folders import write_rows
from datamodules.pictures import cropped, jpeg, picture, recompressed
from datamodules.tars import png, write_shard
from spatext.datamodules.pair_files import PairRows
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.tools.duplicates import THUMBNAIL
from spatext.tools.index import main

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards: a, b, c, d and then c smaller, e, a again, no image, b cut and recompressed."""
    (tmp_path / "data").mkdir()
    a, b, c, d, e = (picture(seed) for seed in range(5))
    small = c.resize((100, 75), Image.Resampling.LANCZOS)
    images = {"a": png(a), "b": jpeg(b, 95), "c": png(c), "d": png(d)}
    more = {"c2": jpeg(small), "e": png(e), "a2": png(a), "x": b"no image"}
    more["b2"] = png(cropped(recompressed(b), 8))
    for name, members in (("one", images), ("two", more)):
        samples = {
            key: {"jpg" if data[:2] == b"\xff\xd8" else "png": data, "txt": b"text"}
            for key, data in members.items()
        }
        write_shard(tmp_path / "data" / f"{name}.tar", samples)
    return tmp_path


@pytest.fixture
def call(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def duplicates(*arguments: object) -> tuple[int, str]:
        base = ["duplicates", folder / "data", "--out", folder / "near.jsonl"]
        with pytest.raises(SystemExit) as end:
            main([*map(str, [*base, *arguments])])
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out + captured.err.rpartition("error: ")[2]

    return duplicates


def read(folder: Path) -> dict[str, str]:
    """{key: why}"""
    lines = (folder / "near.jsonl").read_text().splitlines()
    return {entry["key"]: entry["why"] for entry in map(json.loads, lines)}


def test_copies_are_listed_and_left_out(call: Call, folder: Path) -> None:
    status, text = call("--max-distance", 8)
    assert status == 0
    assert "1 of 9 samples hold no image that can be read" in text
    assert "near.jsonl: 3 of 8 images (37.50%) are like another" in text
    why = read(folder)
    assert list(why) == ["c2", "a2", "b2"]
    assert why["a2"] == "like one/a (pHash: 0 of 64 bits differ)"
    assert why["c2"].startswith("like one/c (pHash: ")
    assert why["b2"].startswith("like one/b (pHash: ")
    datamodule = PanopticDataModule(
        folder / "data",
        image_size=16,
        crop_size=8,
        segmenter=None,
        batch_size=1,
        skip=folder / "near.jsonl",
        max_bad_share=1.0,
    )
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    keys = [key for _ in range(3) for batch in loader for key in batch["key"]]
    assert len(keys) == 3 * 6  # of 9 samples; that without an image is replaced
    assert set(keys) == {"one/a", "one/b", "one/c", "one/d", "two/e"}


def test_the_picture_shows_pairs_the_least_alike_first(call: Call, folder: Path) -> None:
    call("--max-distance", 8)
    with Image.open(folder / "near.jsonl.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # three cells in a row, of two squares each: b without its border, then the copies of c and a
    gaps = []
    for left in range(10, pixels.shape[1] - 10, 10 + 2 * THUMBNAIL + 6):
        squares = [pixels[-150:-70, x : x + 150] for x in (left + 2, left + 4 + THUMBNAIL)]
        assert min(square.std() for square in squares) > 10
        gaps.append(np.abs(squares[0] - squares[1]).mean())
    assert len(gaps) == 3
    assert gaps[0] > gaps[1] > gaps[2] == 0


def test_a_second_call_reads_only_what_changed(call: Call, folder: Path) -> None:
    call("--max-distance", 0, "--jobs", 2)
    assert list(read(folder)) == ["c2", "a2"]
    parts = sorted((folder / "near.jsonl.parts").iterdir())
    before = {path: path.stat().st_mtime_ns for path in parts}
    assert len(before) == 2
    call("--max-distance", 8)
    assert list(read(folder)) == ["c2", "a2", "b2"]
    assert {path: path.stat().st_mtime_ns for path in parts} == before
    write_shard(folder / "data" / "two.tar", {"e": {"png": png(picture(4)), "txt": b"text"}})
    status, text = call("--max-distance", 8)
    assert (status, read(folder)) == (0, {})
    assert "0 of 5 images" in text
    changed = [path for path in parts if path.stat().st_mtime_ns != before[path]]
    assert len(changed) == 1


def test_by_the_embeddings_of_images_alone(call: Call, folder: Path) -> None:
    """Regions do not count, and pairs may come in any order."""
    rng = np.random.default_rng(0)
    a, b, c, d, e = rng.standard_normal((5, 5)).astype(np.float32)
    one = {"one/d": d, "one/c": c, "one/b": b, "one/a": a, "one/a#1": a}
    two = {"two/e": e, "two/a2": 2 * a, "two/b2": b + 0.01, "other/z": a}
    for shard, rows in (("one", one), ("two", two)):
        keys = list(rows)
        regions = np.array(["#" in key for key in keys])
        embeds = np.stack(list(rows.values()))
        write_rows(folder / "pairs", shard, PairRows(embeds, regions, [""] * len(keys), keys))
    status, text = call("--pairs", folder / "pairs", "--min-cosine", 0.99)
    assert status == 0
    assert "pairs: has 7 of 9 images" in text
    why = read(folder)
    assert list(why) == ["a2", "b2"]
    assert why["a2"].startswith("like one/a (CLIP: cosine 1 - 0.000)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-distance", "17"], "--max-distance: found 17, expected 0..16"),
        (["--min-cosine", "0"], "--min-cosine: found 0.0, expected over 0 and up to 1"),
        (["--jobs", "0"], "--jobs: found 0, expected 1 or more"),
    ],
)
def test_mistakes_are_one_line(call: Call, arguments: list[str], message: str) -> None:
    assert call(*arguments) == (1, f"{message}\n")


def test_what_cannot_end_well_is_not_begun(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any shard is read: no index is made of them."""
    assert call("--out", folder) == (
        1,
        f"--out: {folder} is a folder, expected the name of a file\n",
    )
    monkeypatch.setitem(sys.modules, "faiss", None)
    status, text = call("--pairs", folder / "pairs")
    assert status == 1
    assert text.startswith("faiss: not installed, expected for near duplicates by embedding")
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["one.tar", "two.tar"]


def test_pairs_of_other_shards_are_refused(call: Call, folder: Path) -> None:
    embeds = np.ones((1, 5), dtype=np.float32)
    write_rows(folder / "pairs", "z", PairRows(embeds, np.array([False]), [""], ["z/1"]))
    status, text = call("--pairs", folder / "pairs")
    assert status == 1
    assert text.endswith("found no image of these shards among its 1\n")
