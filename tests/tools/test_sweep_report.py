"""The table and the figure of a sweep, from its folder."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.axes import Axes

from spatext.tools.results import write_result
from spatext.tools.sweep_command import recorded_overrides
from spatext.tools.sweep_figure import draw
from spatext.tools.sweep_folder import read_sweep
from spatext.tools.sweep_report import main, to_csv

LRS, KINDS = (0.001, 0.1, 0.01), ("b", "a", "b")


def write_sweep(folder: Path, task: list[str], **sweeper: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    hydra = {"overrides": {"task": task}, "sweeper": {"params": None, **sweeper}}
    config = {"optimized_metric": "val/loss", "hydra": hydra}
    (folder / "multirun.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three trials that ended well, one that failed, and one that was killed."""
    task = ["+module.lr=tag(log,interval(1e-4,1))", "module.kind=a,b", "seed=range(0,9)", "name=x"]
    write_sweep(tmp_path, task, direction="minimize")
    for i, (lr, kind) in enumerate(zip(LRS, KINDS, strict=True)):
        write_result(
            tmp_path / str(i), "ok", objective=(i - 1) ** 2 + 0.5,
            metrics={"val/loss": 0.5, "val/iou": i / 4}, seconds=12.3, trial=i,
            overrides=[f"+module.lr={lr}", f"module.kind={kind}", f"seed={i}", "name=x"],
        )  # fmt: skip
    overrides = ["+module.lr=0.5", "module.kind=a", "seed=3", "name=x"]
    write_result(tmp_path / "3", "failed", 1, "RuntimeError: a, b", trial=3, overrides=overrides)
    (tmp_path / "10" / ".hydra").mkdir(parents=True)
    overrides = ["+module.lr=0.6", "module.kind=a", "seed=3", "name=x", "resume=true"]
    (tmp_path / "10" / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    return tmp_path


def test_the_table_has_a_row_for_each_trial(folder: Path) -> None:
    rows = list(csv.DictReader(to_csv(read_sweep(folder)).splitlines()))
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3", "10"]
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "failed", "unfinished"]
    assert [float(row["module.lr"]) for row in rows] == [*LRS, 0.5, 0.6]
    assert [row["module.kind"] for row in rows] == [*KINDS, "a", "a"]
    assert [row["val/loss"] for row in rows] == ["1.5", "0.5", "1.5", "", ""]
    assert [row["val/iou"] for row in rows] == ["0.0", "0.25", "0.5", "", ""]
    assert rows[3]["reason"] == "RuntimeError: a, b"
    assert (rows[0]["seconds"], rows[3]["exit_code"], rows[4]["folder"]) == ("12.3", "1", "10")
    assert "name" not in rows[0], "not swept"


def test_the_command_writes_and_prints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(folder)])
    printed = capsys.readouterr().out
    assert "RuntimeError: a, b" in printed
    assert "unfinished" in printed
    assert (folder / "summary.csv").read_text() == to_csv(read_sweep(folder))
    assert (folder / "summary.png").read_bytes().startswith(b"\x89PNG")


def points(axes: Axes, label: str) -> list[tuple[float, float]]:
    (found,) = (c for c in axes.collections if c.get_label() == label)
    return [(float(x), float(y)) for x, y in np.asarray(found.get_offsets())]


def test_the_figure_shows_each_parameter(folder: Path) -> None:
    figure = draw(read_sweep(folder))
    assert figure is not None
    lr, kind, seed = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == ["module.lr", "module.kind", "seed"]
    assert lr.get_ylabel() == "val/loss"
    assert points(lr, "trials") == [(0.001, 1.5), (0.1, 0.5), (0.01, 1.5)]
    assert lr.get_xscale() == "log"
    assert [label.get_text() for label in kind.get_xticklabels()] == ["a", "b"]
    assert points(kind, "trials") == [(1, 1.5), (0, 0.5), (1, 1.5)]
    assert seed.get_xscale() == "linear"
    assert points(seed, "trials") == [(0, 1.5), (1, 0.5), (2, 1.5)]
    for axes, x in ((lr, 0.1), (kind, 0), (seed, 1)):
        assert points(axes, "best") == [(x, 0.5)]
    assert [x for x, _ in points(lr, "no objective")] == [0.5, 0.6]


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1, 2, 3], "linear"), ([1, 10, 100], "log"), ([0, 10, 100], "linear"), ([1, 100], "linear")],
)
def test_wide_numbers_are_in_log_scale(tmp_path: Path, values: list[int], scale: str) -> None:
    write_sweep(tmp_path, [f"seed={','.join(map(str, values))}"])
    for i, value in enumerate(values):
        write_result(tmp_path / str(i), "ok", objective=1.0, overrides=[f"seed={value}"])
    figure = draw(read_sweep(tmp_path))
    assert figure is not None
    assert figure.axes[0].get_xscale() == scale
    labels = {collection.get_label() for collection in figure.axes[0].collections}
    assert labels == {"trials"}, "a grid has no direction, and hence no best trial"


def test_booleans_and_null_are_categories(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["a=true,false,null"])
    for i, value in enumerate(("true", "false", "null")):
        write_result(tmp_path / str(i), "ok", objective=float(i), overrides=[f"a={value}"])
    figure = draw(read_sweep(tmp_path))
    assert figure is not None
    names = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert names == ["False", "None", "True"]
    assert points(figure.axes[0], "trials") == [(2, 0), (0, 1), (1, 2)]


def test_nothing_to_draw(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["seed=1,2"])
    for i in range(2):
        write_result(tmp_path / str(i), "ok", overrides=[f"seed={i}"])
    assert draw(read_sweep(tmp_path)) is None


def test_no_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    line = capsys.readouterr().err.strip()
    assert line == f"error: {tmp_path}: no multirun.yaml, expected the folder of a sweep"
    (tmp_path / "multirun.yaml").write_text("a: 1\n")
    with pytest.raises(ValueError, match=r"multirun\.yaml: no hydra\.overrides, expected what"):
        read_sweep(tmp_path)


def test_overrides_with_interpolations(tmp_path: Path) -> None:
    """They are read as they were given: what they refer to is not known here."""
    write_sweep(tmp_path, ["seed=1,2", "name=x-${seed}", "+note=${nowhere}"])
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    overrides = ["seed=1", "name=x-${seed}", "+note=${nowhere}"]
    (tmp_path / "0" / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    (trial,) = read_sweep(tmp_path).trials
    assert trial.params == {"seed": 1}
    assert recorded_overrides(tmp_path / "0") == overrides


def test_objectives_that_the_sweep_does_not_know(tmp_path: Path) -> None:
    """A trial's own experiment may name one."""
    write_sweep(tmp_path, ["experiment=a,b"])
    path = tmp_path / "multirun.yaml"
    path.write_text(path.read_text().replace("val/loss", "null"))
    for i, name in enumerate("ab"):
        write_result(tmp_path / str(i), "ok", objective=1.0, overrides=[f"experiment={name}"])
    sweep = read_sweep(tmp_path)
    assert draw(sweep) is None
    rows = list(csv.DictReader(to_csv(sweep).splitlines()))
    assert [(row["experiment"], row["exit_code"]) for row in rows] == [("a", "0"), ("b", "0")]
