"""When a run writes checkpoints, and that each of them continues it exactly."""

from pathlib import Path
from typing import Any

import pytest

from checkpoint_runs import Losses, Measured, StopAt, fit, names
from comparing import equal
from spatext.callbacks.checkpoint_files import LAST, read, verify
from spatext.callbacks.checkpoints import Checkpoint
from tiny_runs import TinyData, TinyModule, make_loader

WHOLE = 10


@pytest.mark.parametrize(
    ("first", "stop_at"),
    [
        ({"max_steps": 3}, None),  # within the first epoch of four batches
        ({"max_steps": 4}, None),  # at its end
        ({"max_steps": 6}, None),
        ({"max_epochs": 1}, None),  # not known before it is over
        ({"max_steps": WHOLE}, StopAt(3)),
        ({"max_steps": WHOLE}, StopAt(3, late=True)),
        ({"max_steps": WHOLE}, StopAt(4)),
        ({"max_steps": WHOLE}, StopAt(4, at_validation=True)),
        ({"max_steps": WHOLE, "val_check_interval": 2}, StopAt(6, at_validation=True)),
    ],
    ids=str,
)
@pytest.mark.parametrize("background", [False, True], ids=["", "async"])
def test_the_last_step_is_saved_and_continues_exactly(
    tmp_path: Path, first: dict[str, Any], stop_at: StopAt | None, background: bool
) -> None:
    """Every interval is too long: what is saved is the end of the run. The continued run ends with
    the same weights, average, moments, place in the data and counters as the uninterrupted one."""
    straight, again = TinyModule(), TinyModule()
    again.load_state_dict(straight.state_dict())
    common: dict[str, Any] = {"checkpoint": {"async_save": background}}
    interval = {k: v for k, v in first.items() if k == "val_check_interval"}
    losses, parts = Losses(), Losses()
    data = TinyData(num_val=2)
    fit(straight, tmp_path / "whole", losses, data=data, max_steps=WHOLE, **interval, **common)
    stops = [stop_at] if stop_at else []
    folder = tmp_path / "parts"
    data = TinyData(num_val=2)
    before = fit(again, folder, parts, *stops, data=data, **first, **common)
    stopped = before.global_step
    assert 0 < stopped < WHOLE
    assert names(folder) == {LAST, f"step-{stopped}.ckpt"}

    data = TinyData(num_val=2)
    options = {"resume": folder / LAST, "max_steps": WHOLE, **interval, **common}
    after = fit(TinyModule(), folder, parts, data=data, **options)
    assert names(folder) == {LAST, f"step-{stopped}.ckpt", f"step-{WHOLE}.ckpt"}
    assert parts.values == losses.values
    assert len(parts.values) == WHOLE
    found, expected = read(folder / LAST), read(tmp_path / "whole" / LAST)
    assert after.global_step == WHOLE
    for part in found.keys() - {"loops", "callbacks"}:
        assert equal(found[part], expected[part]), part
    for part, counters in expected["loops"]["fit_loop"].items():
        assert found["loops"]["fit_loop"][part] == counters, part


@pytest.mark.parametrize(
    ("stops", "accumulate", "num_val"),
    [((4, 5, 7, 8, 12, 13), 1, 2), ((4, 6, 9), 1, 0), ((1, 2, 3, 6, 7), 2, 2)],
)
def test_a_chain_of_resumes_is_the_uninterrupted_run(
    tmp_path: Path, stops: tuple[int, ...], accumulate: int, num_val: int
) -> None:
    """Stopped at the end of an epoch, just after it, within one and at the end of another."""
    straight, module = TinyModule(), TinyModule()
    module.load_state_dict(straight.state_dict())
    losses, parts, resume = Losses(), Losses(), None
    options = {"accumulate_grad_batches": accumulate}
    data = TinyData(num_val=num_val)
    fit(straight, tmp_path / "whole", losses, data=data, max_steps=stops[-1], **options)
    folder, epochs = tmp_path / "parts", []
    for stop in stops:
        options |= {"data": TinyData(num_val=num_val), "max_steps": stop}
        trainer = fit(module, folder, parts, resume=resume, **options)
        epochs.append(trainer.current_epoch)
        module, resume = TinyModule(), folder / LAST
    assert parts.values == losses.values
    batches = [accumulate * stop for stop in stops]
    assert epochs == [-(-n // 4) for n in batches]  # Lightning counts the one that was cut short
    found, expected = read(folder / LAST), read(tmp_path / "whole" / LAST)
    for part, counters in expected["loops"]["fit_loop"].items():
        if "val_loop" not in part:  # validation begins with its own counters
            assert found["loops"]["fit_loop"][part] == counters, part
    assert equal(found["optimizer_states"], expected["optimizer_states"])


def test_intervals(tmp_path: Path) -> None:
    fit(TinyModule(), tmp_path, every=3, max_steps=7, checkpoint={"keep_last": 9})
    assert names(tmp_path) == {LAST, "step-3.ckpt", "step-6.ckpt", "step-7.ckpt"}
    assert (tmp_path / LAST).resolve().name == "step-7.ckpt"
    steps = [verify(tmp_path / name)["global_step"] for name in ("step-3.ckpt", LAST)]
    assert steps == [3, 7]


def test_a_step_is_saved_once_and_never_between_micro_batches(tmp_path: Path) -> None:
    """Eight batches, two a step; asked to stop after the fifth, which ends no step: the sixth
    does. The interval is too long by then."""
    seen: list[tuple[int, int]] = []

    class Spy(Checkpoint):
        def save(self, trainer: Any) -> bool:
            seen.append((trainer.fit_loop.epoch_loop.batch_idx, trainer.global_step))
            return super().save(trainer)

    class StopBetween(StopAt):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.fit_loop.epoch_loop.batch_idx == 4

    spy = Spy(str(tmp_path / "spied"), every_n_train_steps=2)
    options = {"data": make_loader(16), "max_epochs": 1, "accumulate_grad_batches": 2}
    trainer = fit(TinyModule(), tmp_path, spy, StopBetween(0), **options)
    assert seen == [(3, 2), (5, 3)]
    assert trainer.global_step == 3
    assert read(tmp_path / "spied" / LAST)["global_step"] == 3


def test_a_metric_that_is_not_measured_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"data": TinyData(num_val=2), "checkpoint": {"monitor": "val/scores"}}
    fit(Measured(), tmp_path, max_epochs=1, **options)
    line = "callbacks.checkpoint.monitor: found no metric val/scores in this validation, only "
    assert line in caplog.text
    assert "val/score" in caplog.text.split(line)[1]


@pytest.mark.gpu
def test_a_last_step_that_was_not_known_is_saved_from_a_gpu(tmp_path: Path) -> None:
    """By then the weights are on the CPU, and the average is not."""
    fit(TinyModule(), tmp_path, max_epochs=1, accelerator="gpu", devices=1)
    found = read(tmp_path / LAST)
    assert found["global_step"] == 4
    assert found["current_model_state"].keys() == found["state_dict"].keys()


def test_the_best_by_a_metric_stay(tmp_path: Path) -> None:
    """One that is measured when the step is saved already, and one that is saved for it."""
    keep = {"monitor": "val/score", "save_top_k": 2, "keep_last": 1}
    module = Measured(0.2, 0.5, 0.1, 0.4, 0.3)
    data = TinyData(num_val=2)
    trainer = fit(module, tmp_path, data=data, every=4, max_epochs=5, checkpoint=keep)
    assert names(tmp_path) == {LAST, "step-4.ckpt", "step-12.ckpt", "step-20.ckpt"}
    saver = trainer.checkpoint_callback
    assert Path(saver.best_model_path).name == "step-12.ckpt"
    assert saver.best_model_score == pytest.approx(0.1)

    folder = tmp_path / "unaligned"
    module = Measured(0.2, 0.5, 0.1)
    fit(module, folder, data=TinyData(num_val=2), every=5, max_epochs=3, checkpoint=keep)
    assert names(folder) == {LAST, "step-4.ckpt", "step-12.ckpt"}
    first = read(folder / "step-4.ckpt")
    resumed = fit(TinyModule(), tmp_path / "on", resume=folder / "step-4.ckpt", max_steps=6)
    assert (first["global_step"], resumed.global_step) == (4, 6)


def test_nothing_is_saved_before_training_or_by_a_trial(tmp_path: Path) -> None:
    options = {"data": TinyData(num_val=2), "checkpoint": {"monitor": "val/score"}}
    fit(Measured(), tmp_path / "trial", fast_dev_run=1, **options)
    assert not (tmp_path / "trial").exists()
    fit(Measured(), tmp_path / "run", max_steps=1, num_sanity_val_steps=1, **options)
    assert names(tmp_path / "run") == {LAST, "step-1.ckpt"}


def test_a_run_keeps_its_number_and_a_fresh_one_has_its_own(tmp_path: Path) -> None:
    """So that a fresh run in a used folder deletes nothing of the one before."""
    fit(TinyModule(), tmp_path, max_steps=2)
    fit(TinyModule(), tmp_path, max_steps=3, resume=tmp_path / LAST)
    runs = [verify(tmp_path / f"step-{step}.ckpt")["run"] for step in (2, 3)]
    assert runs[0] == runs[1]
    fit(TinyModule(), tmp_path, every=1, max_steps=1, checkpoint={"keep_last": 1})
    assert names(tmp_path) == {LAST, "step-1.ckpt", "step-2.ckpt", "step-3.ckpt"}
    assert verify(tmp_path / LAST)["run"] != runs[0]
    assert read(tmp_path / LAST)["global_step"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "lowest"}, "callbacks.checkpoint.mode: found lowest, expected min or max"),
        ({"every_n_train_steps": 0}, "callbacks.checkpoint: found every_n_train_steps=0, keep"),
        ({"filename": "newest"}, "callbacks.checkpoint.filename: found newest, expected a name"),
        ({"filename": "a/{step}"}, "callbacks.checkpoint.filename: found a/{step}, expected"),
        ({"filename": "{step}-{loss}"}, "callbacks.checkpoint.filename: found {step}-{loss}, exp"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Checkpoint("x", **options)
