"""spatext-preflight on small shards: what it counts, what it finds, and what it writes."""

import json
from pathlib import Path

import pytest
from PIL import Image

from datamodules.tars import scene, write_scenes, write_shard
from preflights import Outcome, preflight
from spatext.modules.networks.text_tower import train_tokenizer

LONG = "one two three four five six seven eight nine ten"


def write_odd_shard(path: Path) -> None:
    """Five scenes of 32 x 48: a plain one, the same image again, and three odd ones."""
    crowd = {"id": 1, "iscrowd": True, "isthing": True}
    wide = scene(3, (16, 64))
    write_shard(
        path,
        {
            "a": scene(1),
            "same": scene(1) | {"txt": LONG.encode()},
            "bytes": scene(2) | {"txt": b"\xff\xfe caption"},
            "wide": wide | {"txt": b"", "json": json.dumps({"segments": [crowd]}).encode()},
            "cut": scene(4) | {"png": scene(4)["png"][:60]},
        },
    )


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Six usual samples in two shards and five odd ones."""
    folder = tmp_path_factory.mktemp("preflight")
    write_scenes(folder / "data", 6, per_shard=3)
    write_odd_shard(folder / "data" / "00009.tar")
    tokenizer = train_tokenizer([LONG, "caption"], vocab_size=560, max_length=9)
    tokenizer.save_pretrained(folder / "base" / "tokenizer")
    options = (f"module.backbone.path={folder / 'base'}", "trainer.accumulate_grad_batches=2")
    more = (f"datamodule.val_shards={folder / 'data' / '00000.tar'}", "trainer.max_steps=6")
    return preflight(folder / "out", folder / "data", *options, *more)


def test_the_index_is_told_whole(odd: Outcome) -> None:
    train = odd.report["train"]
    assert (train["num_shards"], train["num_samples"], train["num_left_out"]) == (3, 11, 0)
    assert (train["samples_per_shard"]["min"], train["samples_per_shard"]["max"]) == (3, 5)
    assert train["height"] == {"min": 16, "5 %": 16} | dict.fromkeys(
        ("25 %", "50 %", "75 %", "95 %", "max"), 32
    )
    assert train["num_enlarged"] == 1  # the wide one is 16 high
    assert {k: v for k, v in train["aspects"].items() if v} == {"3:2 to 2:1": 10, "3:1 and over": 1}
    assert (train["num_without_caption"], train["num_without_stored_segments"]) == (0, 0)
    assert odd.report["val"]["num_samples"] == 3


def test_the_layout_is_that_of_the_run(odd: Outcome) -> None:
    layout = odd.report["layout"]
    assert layout["global_batch_size"] == 2
    assert layout["samples_per_step"] == 4
    assert (layout["batches_per_epoch"], layout["steps_per_epoch"]) == (5, 3)
    assert (layout["samples_per_epoch"], layout["dropped"]) == (10, 1)
    assert layout["epochs"] == 2.0
    assert layout["validation_batches"] == 2
    assert any("5 batches an epoch are no multiple" in what for what in odd.findings("note"))


def test_what_is_in_the_samples_is_counted(odd: Outcome) -> None:
    facts = odd.report["samples"]
    assert (facts["num"], facts["num_bad"]) == (11, 1)
    assert facts["bad"] == {"image truncated or invalid": 1}
    assert facts["bad_shards"] == {"00009": 1}
    # scenes 1 and 2 are in 00000.tar too
    assert facts["num_identical_images"] == 3
    assert facts["repeated_keys"] == {}
    captions = facts["captions"]
    assert (captions["num"], captions["num_empty"], captions["num_not_utf8"]) == (11, 1, 1)
    # "caption 1" of a and of 000001, "caption 4" of cut and of 000004
    assert captions["num_identical"] == 2
    assert captions["letters"]["max"] == len(LONG)
    assert captions["tokens"]["limit"] == 9
    assert captions["tokens"]["num_cut"] >= 1
    assert captions["tokens"]["max"] > 9


def test_segments_are_those_that_training_chooses(odd: Outcome) -> None:
    segments = odd.report["samples"]["segments"]
    assert segments["num_images"] == 10
    assert sum(segments["chosen"].values()) == 10
    assert segments["num_without"] == segments["chosen"].get("0", 0)
    assert set(segments["chosen"]) <= {"0", "1", "2", "3"}
    assert segments["area"]["min"] >= 0.05
    assert segments["stored"] == {"things": 20, "stuff": 20, "crowds": 1}


def test_what_would_stop_the_run_is_told(odd: Outcome) -> None:
    """One of eleven is surely more than a share of 0.01."""
    assert odd.code == 1
    assert odd.report["fatal"]
    (what,) = odd.findings("fatal")
    assert what.startswith(
        "1 of 11 (9.1%) samples cannot be used, datamodule.max_bad_share is 0.01"
    )
    warnings = odd.findings("warning")
    assert "3 of 11 (27.3%) images are byte for byte another's" in warnings
    assert "1 of 11 (9.1%) captions are not UTF-8" in warnings


def test_the_table_and_the_findings_are_printed(odd: Outcome) -> None:
    lines = [line.strip() for line in odd.text.splitlines()]
    assert "training shards" in lines
    assert any(line.split() == ["samples", "11", "in", "3", "shards"] for line in lines)
    assert any("3:2" in line and "10 (90.9%)" in line for line in lines)
    assert sum(line.startswith(("fatal ", "warning ", "note ")) for line in lines) == len(
        odd.report["findings"]
    )
    assert lines[-1].endswith("contact_sheet.png")


def test_the_sheet_shows_all_that_can_be_used(odd: Outcome) -> None:
    """Ten cards in two columns: the one that is cut has none."""
    with Image.open(odd.sheet) as image:
        width, height = image.size
    assert 1500 < width < 1800
    assert 5 * 256 < height < 5 * 420


def test_the_same_samples_are_drawn_again(odd: Outcome, tmp_path: Path) -> None:
    data = odd.sheet.parents[1] / "data"
    options = ("--num-samples", "4", "--num-shown", "2", "datamodule.max_bad_share=1.0")
    first, second = (preflight(tmp_path / name, data, *options) for name in "ab")
    assert first.report["samples"]["num"] == 4
    assert first.report["samples"] == second.report["samples"]
    assert first.sheet.read_bytes() == second.sheet.read_bytes()
    assert first.sheet.stat().st_size < odd.sheet.stat().st_size
