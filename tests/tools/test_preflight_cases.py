"""spatext-preflight where the run is of another kind, or would not start."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.tars import scene, write_scenes, write_shard
from preflights import preflight
from spatext.datamodules.index_opening import open_index
from spatext.datamodules.locations import expand_shards
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.samples import SegmentDataset
from spatext.datamodules.skip_list import Skipped, write_skip_list
from spatext.tools.preflight import main
from spatext.tools.preflight_samples import ProbeDataset


class Halves:
    """A DeviceSegmenter that finds a left and a right half in each image."""

    input_size = 32

    def segment(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, list[dict[int, dict[str, Any]]]]:
        height, width = (max(side) for side in zip(*sizes, strict=True))
        ids = torch.ones(len(sizes), height, width, dtype=torch.int32)
        ids[:, :, width // 2 :] = 2
        entry = {"isthing": True, "label": "half"}
        return ids, [{1: entry, 2: entry} for _ in sizes]


def test_segments_found_on_the_device(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", 6)
    segmenter = "datamodule.segmenter={_target_: test_preflight_cases.Halves}"
    options = (segmenter, "datamodule.random_crop=false", "datamodule.k_min=2")
    outcome = preflight(tmp_path / "out", tmp_path / "data", *options)
    assert outcome.code == 0
    segments = outcome.report["samples"]["segments"]
    assert segments["chosen"] == {"2": 6}
    assert segments["area"]["min"] == segments["area"]["max"] == 0.5
    assert outcome.sheet.exists()


class Numbers:
    """In the place of cached encodings: what they are asked for."""

    def read(self, number: int, *_: Any, **__: Any) -> dict[str, int]:
        return {"number": number}


def test_samples_come_with_what_is_cached_of_them(tmp_path: Path) -> None:
    datamodule = PanopticDataModule(
        write_scenes(tmp_path, 6), image_size=16, crop_size=8, segmenter="stored"
    )
    datamodule.setup("fit")
    assert datamodule.records is not None
    dataset = SegmentDataset(datamodule.records, **datamodule.sample_kwargs)
    dataset.encodings = cast(Any, Numbers())
    seen = ProbeDataset(dataset, np.array([1, 4], dtype=np.int64))[1]
    assert (seen.key, seen.bad) == ("00000/000004", "")
    assert cast(Any, seen.sample)["encoded"] == {"number": 4}


def test_buckets_and_a_list_of_what_is_left_out(tmp_path: Path) -> None:
    """Wide and high images are in batches, and on the sheet, of their own."""
    samples = {f"{i}": scene(i, (32, 64) if i % 3 else (64, 32)) for i in range(9)}
    write_shard(tmp_path / "data.tar", samples)
    index = open_index(expand_shards(tmp_path / "data.tar"))
    write_skip_list(tmp_path / "skip.jsonl", index, [Skipped(0, "0", ""), Skipped(1, "1", "")])
    outcome = preflight(
        tmp_path / "out",
        tmp_path / "data.tar",
        "datamodule.buckets={step: 8}",
        f"datamodule.skip={tmp_path / 'skip.jsonl'}",
    )
    assert outcome.code == 0
    train = outcome.report["train"]
    assert (train["num_samples"], train["num_left_out"]) == (7, 2)
    assert {k: v for k, v in train["buckets"].items() if v} == {"40x24": 2, "24x40": 5}
    assert outcome.report["samples"]["num_bad"] == 0
    assert outcome.report["layout"]["batches_per_epoch"] == 3


def test_damage_ends_it_with_a_line_for_each_fault(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "data", 9, per_shard=3)
    for name in ("00000.tar", "00002.tar"):
        shard = folder / name
        shard.write_bytes(shard.read_bytes()[:-9000])
    outcome = preflight(tmp_path / "out", folder)
    assert outcome.code == 1
    fatal = outcome.findings("fatal")
    assert [Path(what.partition(":")[0]).name for what in fatal] == ["00000.tar", "00002.tar"]
    assert not outcome.sheet.exists()
    assert "train" not in outcome.report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["datamodule.batch_size=5"], "hold 4 samples, fewer than one global batch of 5"),
        (["trainer.devices=8"], "hold 4 samples, fewer than one global batch of 16"),
        (["datamodule.skip=/nowhere/skip"], "datamodule.skip: no file /nowhere/skip"),
        (["datamodule.val_shards=/nowhere"], "datamodule.val_shards: no file /nowhere"),
        (["datamodule.min_area=2.5"], "datamodule.min_area = 2.5, expected a share"),
    ],
)
def test_what_training_would_refuse_is_fatal(
    tmp_path: Path, options: list[str], message: str
) -> None:
    write_scenes(tmp_path / "data", 4)
    outcome = preflight(tmp_path / "out", tmp_path / "data", *options)
    assert outcome.code == 1
    (what,) = outcome.findings("fatal")
    assert message in what
    assert "samples" not in outcome.report


def test_missing_shards_are_told(tmp_path: Path) -> None:
    outcome = preflight(tmp_path / "out", "???")
    assert (outcome.code, outcome.findings("fatal")) == (1, ["missing datamodule.shards"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-samples", "0"], "--num-samples: found 0, expected 1 or more"),
        (["trainer.max_steps=null"], "trainer.max_steps is None, expected a number, -1 for no"),
        (["datamodule=streaming", "datamodule.samples_per_epoch=4"], "is StreamingDataModule"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    write_scenes(tmp_path / "data", 2)
    with pytest.raises(SystemExit) as end:
        main(["--out", str(tmp_path / "out"), f"datamodule.shards={tmp_path}", *arguments])
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
