"""A training step with the default callbacks asks its device for nothing."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from torch import Tensor

from runs import latent, run
from spatext.callbacks.progress import ProgressBar
from tiny_runs import TinyModule, make_loader, make_trainer
from waits import Waits


def test_a_step_between_logs_does_not_wait(workspace: Path, tmp_path: Path) -> None:
    """From the second step on: an epoch of eight, with clipping, average, guard, bar and counts.

    What the guard has decided is read a step later, once.
    """
    results = run(
        latent(
            workspace,
            tmp_path,
            *("trainer.max_steps=8", "trainer.limit_val_batches=0"),
            *("trainer.log_every_n_steps=100", "callbacks.progress.refresh_rate=20"),
            *("datamodule.batch_size=2", "datamodule.num_workers=1"),
            *("+callbacks.waits._target_=waits.Waits", "+callbacks.waits.steps=[2,7]"),
        )
    )
    (waits,) = (c for c in results["trainer"].callbacks if isinstance(c, Waits))
    assert waits.found == []
    assert waits.num_late == 7 - 2
    assert waits.num_calls > 5 * 1000  # it has looked
    # It sees what there is to see.
    waits.__enter__()
    try:
        assert torch.ones(1).sum() > 0
        torch.ones(2).tolist()
    finally:
        waits.__exit__(None, None, None)
    assert [line.split(" at ")[0] for line in waits.found] == ["__bool__", "tolist"]


class Shown(TinyModule):
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.log("train/loss", torch.tensor(10.0 + batch_idx), prog_bar=True)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.log("val/loss", torch.tensor(7.0), prog_bar=True)
        return super().validation_step(batch, batch_idx)


def test_the_bar_shows_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning's own way to bring it there would wait for the device after every batch."""
    bar = ProgressBar(refresh_rate=2, leave=True)
    trainer = make_trainer(tmp_path, max_steps=5, enable_progress_bar=True, callbacks=[bar])
    trainer.fit(Shown(), make_loader(10), make_loader(2))
    drawn = re.findall(r"train/loss=(\d\d\.\d)", capsys.readouterr().out)
    assert list(dict.fromkeys(drawn)) == ["11.0", "13.0", "14.0"]  # of the batches 2, 4 and 5
    assert trainer.callback_metrics["train/loss"] == 14
    assert trainer.progress_bar_metrics == {"val/loss": 7}
    assert bar.get_metrics(trainer, trainer.lightning_module).keys() >= {"val/loss", "train/loss"}


@pytest.mark.parametrize(
    ("callbacks", "expected"), [([TQDMProgressBar()], {"train/loss": 14}), ([], {})]
)
def test_other_bars_show_it_too(
    tmp_path: Path, callbacks: list[Any], expected: dict[str, float]
) -> None:
    """They read what Lightning has read; where there is none, nobody asks."""
    options = {"callbacks": callbacks, "enable_progress_bar": bool(callbacks)}
    trainer = make_trainer(tmp_path, max_steps=5, **options)
    trainer.fit(Shown(), make_loader(10))
    assert trainer.progress_bar_metrics == expected
