from pathlib import Path

import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from spatext.callbacks.ema import Ema
from spatext.callbacks.record import RecordConfig
from tiny_runs import TinyModule, make_loader, make_trainer

CONFIG = {"seed": 3, "module": {"rates": [0.1, None, True], "name": "a"}, "folder": "x/y"}


def test_the_configuration_is_in_every_checkpoint(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_last=True
    )
    trainer = make_trainer(
        tmp_path,
        max_steps=2,
        enable_checkpointing=True,
        callbacks=[RecordConfig(CONFIG), Ema(), checkpoint],
    )
    trainer.fit(TinyModule(), make_loader(4))
    for name in ("step=1.ckpt", "step=2.ckpt", "last.ckpt"):
        assert torch.load(tmp_path / name, weights_only=True)["config"] == CONFIG
