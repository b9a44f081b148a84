from pathlib import Path

import pytest
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from spatext.callbacks.curves import Curves, draw_curves, parts, read_curves
from tables import read_rows
from tiny_runs import Logging, TinyData, make_trainer


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text.split()) + "\n")


def test_parts_of_a_resumed_run_are_one(tmp_path: Path) -> None:
    """The second part began at step 4, from a checkpoint older than the end of the first."""
    write(tmp_path / "metrics-1.csv", "epoch,loss,step 0,1.0,1 0,2.0,3 ,3.0,5")
    write(tmp_path / "metrics-2.csv", "epoch,loss,step,val 1,4.0,4, ,,4,0.5 1,nan,6,")
    write(tmp_path / "metrics.csv", "loss,step 5.0,8")
    found = read_curves(tmp_path)
    assert list(found) == ["loss", "val"]
    assert repr(found["loss"]) == "{1: 1.0, 3: 2.0, 4: 4.0, 6: nan, 8: 5.0}"
    assert found["val"] == {4: 0.5}


def test_parts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (2, 10, 1):
        write(tmp_path / f"metrics-{number}.csv", "step")
    assert [path.stem for path in parts(tmp_path)] == ["metrics-1", "metrics-2", "metrics-10"]


def test_a_panel_for_each_scalar(tmp_path: Path) -> None:
    nan = float("nan")
    curves = {f"scalar/{i}": {0: 1.0, 10: float(i), 20: nan} for i in range(6)}
    draw_curves(curves, tmp_path / "curves.png")
    draw_curves({"scalar/0": curves["scalar/0"]}, tmp_path / "one.png")
    with Image.open(tmp_path / "curves.png") as six, Image.open(tmp_path / "one.png") as one:
        assert (six.width, six.height) == (4 * one.width, 2 * one.height)
        assert len(one.convert("RGB").getcolors(1 << 16) or []) > 2


def run(folder: Path, curves: Curves) -> None:
    trainer = make_trainer(
        folder,
        max_steps=3,
        log_every_n_steps=1,
        logger=CSVLogger(folder, name="", version="logs"),
        callbacks=[curves],
    )
    trainer.fit(Logging(), TinyData())


def test_a_run_ends_with_its_curves(tmp_path: Path) -> None:
    run(tmp_path, Curves(str(tmp_path)))
    assert Image.open(tmp_path / "curves.png").width > 200
    rows = read_rows(tmp_path / "curves.csv")
    assert [(row["step"], row["train/number"]) for row in rows] == [
        ("0", "0.0"),
        ("1", "1.0"),
        ("2", "2.0"),
    ]


def test_a_picture_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    run(tmp_path, Curves(str(tmp_path / "file")))
    (message,) = [r.getMessage() for r in caplog.records if r.name == "spatext.callbacks.curves"]
    assert message.startswith("no curves.png: FileExistsError: ")
    assert (tmp_path / "logs" / "metrics.csv").is_file()
