"""Pictures that are there already, and those that are made again."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samples import SQUARE, pixels, recipe_of, sample


def times(paths: list[Path]) -> list[int]:
    return [path.stat().st_mtime_ns for path in paths]


def forget_times(paths: list[Path]) -> None:
    for path in paths:
        os.utime(path, ns=(0, 0))


def test_a_stopped_command_goes_on(
    checkpoint: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("num_images=3", "batch_size=1")
    written = sample(checkpoint, scenes, tmp_path / "out", *options)
    expected = [path.read_bytes() for path in written]
    forget_times(written)
    written[1].unlink()
    written[2].write_bytes(expected[2][:-20])  # cut
    Image.fromarray(pixels(written[4]).astype(np.uint8)).save(written[4])  # without a recipe
    capsys.readouterr()
    assert sample(checkpoint, scenes, tmp_path / "out", *options) == written
    assert [time == 0 for time in times(written)] == [True, False, False, True, False, True]
    assert [path.read_bytes() for path in written] == expected
    assert "6 images in" in (told := capsys.readouterr()).out
    assert ", 3 of them made before;" in told.out
    assert "3.0/3 images" in told.err

    forget_times(written)
    sheet = tmp_path / "out" / "index.html"
    sheet.unlink()
    sample(checkpoint, scenes, tmp_path / "out", *options)
    assert times(written) == [0] * 6
    assert sheet.is_file()
    assert "images [" not in capsys.readouterr().err  # no bar for no work


def test_a_changed_recipe_overwrites(checkpoint: Path, scenes: Path, tmp_path: Path) -> None:
    """The option, the text of one scene; more seeds leave what is there."""
    out = tmp_path / "out"
    written = sample(checkpoint, scenes, out)
    forget_times(written)
    more = sample(checkpoint, scenes, out, "num_images=2")
    assert times(written) == [0, 0]
    assert set(written) < set(more)

    (scenes / "square.yaml").write_text(SQUARE.replace("a red circle", "a blue sea"))
    sample(checkpoint, scenes, out)
    assert [time == 0 for time in times(written)] == [False, True]
    assert recipe_of(written[0])["scene"]["regions"][0]["text"] == "a blue sea"

    forget_times(written)
    sample(checkpoint, scenes, out, "sampling.scale=2.0")
    assert 0 not in times(written)
    assert [recipe_of(path)["sampling"]["scale"] for path in written] == [2.0, 2.0]
