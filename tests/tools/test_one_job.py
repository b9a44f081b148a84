import os
import signal
from pathlib import Path

import pytest
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from spatext.callbacks.stops import Interrupted
from spatext.tools.launch import one_job
from tiny_runs import TinyData, TinyModule, make_trainer


class CtrlC(Callback):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        os.environ["MASTER_PORT"] = "4711"
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_in_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning exits with 1 and would ignore the next one."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    before = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(tmp_path, max_steps=2, callbacks=[CtrlC()])
    with pytest.raises(Interrupted) as error, one_job("entry", tmp_path):
        trainer.fit(TinyModule(), datamodule=TinyData())
    assert error.value.code == error.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert os.environ["WORLD_SIZE"] == "1"
    assert "MASTER_PORT" not in os.environ
