from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback

from spatext.callbacks.overfit import Overfit
from tiny_runs import TinyData, TinyModule, make_trainer


class Seen(Callback):
    def __init__(self) -> None:
        self.indices: list[list[int]] = []

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.indices.append(batch["index"].tolist())


def test_the_first_batches_over_and_over(tmp_path: Path) -> None:
    seen = Seen()
    trainer = make_trainer(tmp_path, max_steps=6, callbacks=[Overfit(2), seen])
    trainer.fit(TinyModule(), datamodule=TinyData())
    first, second = seen.indices[:2]
    assert first != second
    assert seen.indices == [first, second] * 3


def test_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"callbacks\.overfit\.num_batches: found 0, expected"):
        Overfit(0)
