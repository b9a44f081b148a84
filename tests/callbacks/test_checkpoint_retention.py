"""Which checkpoints stay, and when they go."""

import logging
from pathlib import Path

import pytest

from checkpoint_states import make_state, seal, write_run
from spatext.callbacks.checkpoint_files import LAST, newest_valid
from spatext.callbacks.checkpoint_folder import CheckpointFolder
from spatext.callbacks.checkpoint_orphans import hidden
from spatext.callbacks.checkpoint_retention import Entry, Retention, entries_of


def entry(step: int, score: float | None = None, created: float | None = None) -> Entry:
    scores = {} if score is None else {"val/loss": score}
    created = float(step) if created is None else created
    return Entry(Path(f"step-{step}.ckpt"), step, created, scores)


ENTRIES = [entry(1, 0.3), entry(2), entry(3, 0.1), entry(4, 0.2), entry(5, float("nan")), entry(6)]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (Retention(last=1), {6}),
        (Retention(last=3), {4, 5, 6}),
        (Retention(last=1, best=1, monitor="val/loss"), {3, 6}),
        (Retention(last=1, best=2, monitor="val/loss"), {3, 4, 6}),
        (Retention(last=1, best=9, monitor="val/loss"), {1, 3, 4, 6}),  # never the NaN
        (Retention(last=1, best=1, monitor="val/loss", mode="max"), {1, 6}),
        (Retention(last=1, best=1, monitor="other"), {6}),
        (Retention(last=1, every=2), {2, 4, 6}),
    ],
)
def test_a_rule_keeps(rule: Retention, kept: set[int]) -> None:
    gone = {path.name for path in rule.surplus(ENTRIES)}
    assert gone == {f"step-{step}.ckpt" for step in {1, 2, 3, 4, 5, 6} - kept}


def test_the_newest_is_by_time_not_by_step() -> None:
    """After a resume from further back the first of the new ones has a lower step."""
    entries = [entry(3, created=1.0), entry(9, created=2.0), entry(6, created=3.0)]
    assert Retention(last=2).surplus(entries) == [Path("step-3.ckpt")]


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        (Retention(best=2, monitor="val/loss"), 0.15, True),
        (Retention(best=2, monitor="val/loss"), 0.2, False),
        (Retention(best=4, monitor="val/loss"), 0.9, True),  # there are three
        (Retention(best=4, monitor="val/loss"), float("nan"), False),
        (Retention(best=1, monitor="val/loss", mode="max"), 0.31, True),
        (Retention(best=1, monitor="val/loss", mode="max"), 0.29, False),
        (Retention(best=0, monitor="val/loss"), 0.0, False),
        (Retention(), 0.0, False),
    ],
)
def test_among_the_best(rule: Retention, value: float, expected: bool) -> None:
    assert rule.is_among_best(value, ENTRIES) is expected


def steps_in(folder: Path) -> list[int]:
    return sorted(int(p.stem.removeprefix("step-")) for p in folder.glob("step-*.ckpt"))


@pytest.mark.parametrize("background", [False, True])
def test_a_folder_keeps_the_newest_and_the_best(tmp_path: Path, background: bool) -> None:
    rule = Retention(last=1, best=1, monitor="val/loss", every=4)
    folder = CheckpointFolder(tmp_path, "r", rule, background=background)
    for step, value in enumerate((0.3, 0.1, 0.2, 0.4, 0.5, 0.05), start=1):
        assert folder.save(make_state(step), f"step-{step}.ckpt")
        folder.score(f"step-{step}.ckpt", "val/loss", value)
    folder.wait()
    assert steps_in(tmp_path) == [4, 6]
    best = folder.best()
    assert (best.step, best.scores) == (6, {"val/loss": 0.05})
    assert newest_valid(tmp_path) == (tmp_path / LAST).resolve() == tmp_path / "step-6.ckpt"
    folder.close()


def test_checkpoints_of_another_run_are_let_be(tmp_path: Path) -> None:
    write_run(tmp_path, 1, 2, run="other")
    folder = CheckpointFolder(tmp_path, "r", Retention(last=1))
    for step in (3, 4):
        folder.save(make_state(step), f"step-{step}.ckpt")
    assert steps_in(tmp_path) == [1, 2, 4]
    assert [e.step for e in entries_of(tmp_path, "other")] == [1, 2]


def test_the_one_just_written_stays_though_the_clock_went_back(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, "r", Retention(last=1))
    folder.save(make_state(3), "step-3.ckpt")
    seal(tmp_path / "step-3.ckpt", created=1e12)
    folder.save(make_state(6), "step-6.ckpt")
    assert 6 in steps_in(tmp_path)
    assert (tmp_path / LAST).resolve().name == "step-6.ckpt"


def test_an_orphan_that_cannot_be_cleared_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder cannot be given back its name where a link has it."""
    hidden(tmp_path / "step-3.ckpt", "old").mkdir()
    (tmp_path / "step-3.ckpt").symlink_to("nowhere")
    folder = CheckpointFolder(tmp_path, "r")
    folder.sweep()
    assert "what stopped writers left is not cleared: " in caplog.text
    assert folder.save(make_state(6), "step-6.ckpt")


def test_a_deletion_that_fails_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder cannot be renamed to what is a file."""
    folder = CheckpointFolder(tmp_path, "r", Retention(last=1))
    folder.save(make_state(3), "step-3.ckpt")
    hidden(tmp_path / "step-3.ckpt", "tmp").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert folder.save(make_state(6), "step-6.ckpt")
    assert "checkpoint not deleted: " in caplog.text
    assert steps_in(tmp_path) == [3, 6]
    assert newest_valid(tmp_path).name == "step-6.ckpt"
