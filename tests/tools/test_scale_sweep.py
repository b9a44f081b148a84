import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spatext.modules.sampling_options import Sampling
from spatext.tools.demo_scores import LAYOUT_SEED, sample_layouts, score
from spatext.tools.loading import load_model
from spatext.tools.scale_sweep import MEASURES, Row, Sweep, main, run_sweep, tables
from spatext.tools.shapes_world import heldout_layouts
from tables import read_rows

FULL = Sampling(num_steps=2, form="full", append_texts=False)


def test_each_pair_of_scales_is_sampled_and_judged(checkpoint: Path, tmp_path: Path) -> None:
    sweep = Sweep(checkpoint, FULL, [0.0, 4.0], [1.0, 3.0], num=2)
    rows = run_sweep(sweep, tmp_path)
    assert [(row.text, row.segments) for row in rows] == [(1, 0), (1, 4), (3, 0), (3, 4)]
    model = load_model(checkpoint)
    layouts = heldout_layouts(LAYOUT_SEED, 2, size=64)
    sampling = replace(FULL, scales={"text": 3.0, "segments": 4.0})
    images = sample_layouts(model, layouts, torch.arange(2), sampling)
    assert rows[3].scores == score(images, layouts)
    table = read_rows(tmp_path / "sweep.csv")
    assert [(row["global"], row["local"]) for row in table] == [
        ("1", "0"),
        ("1", "4"),
        ("3", "0"),
        ("3", "4"),
    ]
    assert float(table[3]["shuffled_iou"]) == round(rows[3].scores["shuffled_iou"], 4)
    assert {row["append_texts"] for row in table} == {"False"}
    picture = np.asarray(Image.open(tmp_path / "sweep.png").convert("RGB"))
    assert picture.shape[1] > 1000
    assert np.ptp(picture) == 255


def make_rows() -> list[Row]:
    return [
        Row(t, s, {name: (t + s + i) / 20 for i, name in enumerate(MEASURES)})
        for t in (1.0, 3.0)
        for s in (0.0, 2.5)
    ]


def test_one_global_scale_is_a_table_of_all_measures(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, FULL, [0.0, 2.5], [1.0], num=2)
    lines = tables(make_rows()[:2], sweep).splitlines()
    assert lines[0] == "Global scale 1"
    assert lines[2].startswith("| local scale | local IoU | IoU with another layout | colour |")
    assert lines[4] == "| 0 | 0.050 | 0.100 | 0.150 | 0.200 | 0.250 |"
    assert lines[5] == "| 2.5 | 0.175 | 0.225 | 0.275 | 0.325 | 0.375 |"


def test_several_global_scales_are_a_table_for_each_measure(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, FULL, [0.0, 2.5], [1.0, 3.0], num=2)
    parts = tables(make_rows(), sweep).split("\n\n")
    assert parts[0] == "local IoU"
    assert parts[1].splitlines() == [
        "| global \\ local | 0 | 2.5 |",
        "| --: | --: | --: |",
        "| 1 | 0.050 | 0.175 |",
        "| 3 | 0.150 | 0.275 |",
    ]
    assert parts[2] == "colour"
    assert parts[4] == "class"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num", "1"], "num: found 1, expected at least 2 layouts"),
        (["--scales", "0", "-1"], "local_scales: found [0.0, -1.0], expected numbers of at least"),
        (["--global-scales", "-2"], "global_scales: found [-2.0], expected numbers of at least 0"),
        (["--scheduler", "Fast"], "sampling.scheduler: found 'Fast', expected the name of"),
        ([], "checkpoint=no.ckpt: no such file"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    monkeypatch.setattr(
        sys, "argv", ["spatext-scale-sweep", "no.ckpt", "--out", str(tmp_path / "out"), *arguments]
    )
    with pytest.raises(SystemExit, match="1"):
        main()
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}")
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()
