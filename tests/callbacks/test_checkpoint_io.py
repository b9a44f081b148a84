from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.testing import assert_close

from spatext.callbacks.checkpoint_io import AtomicCheckpointIO
from tiny_runs import TinyModule, make_loader, make_trainer

STATE: dict[str, Any] = {"weights": torch.arange(5.0), "step": 3}


class Unwritable:
    """Fails while it is written, after what stands before it."""

    def __reduce__(self) -> Any:
        raise OSError("No space left on device")


def test_a_checkpoint_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "last.ckpt"
    for step in (1, 2):
        AtomicCheckpointIO().save_checkpoint(STATE | {"step": step}, path)
        loaded = torch.load(path, weights_only=True)
        assert loaded["step"] == step
        assert_close(loaded["weights"], STATE["weights"])
        assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert AtomicCheckpointIO().load_checkpoint(path)["step"] == 2


def test_a_failure_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint(
            {"weights": torch.zeros(10_000), "end": Unwritable()}, path
        )
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_failure_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"end": Unwritable()}, tmp_path / "last.ckpt")
    assert [*tmp_path.iterdir()] == []


def test_a_trainer_writes_with_it(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "run", filename="{step}", every_n_train_steps=2)
    trainer = make_trainer(
        tmp_path,
        max_steps=2,
        enable_checkpointing=True,
        callbacks=[checkpoint],
        plugins=[AtomicCheckpointIO()],
    )
    module = TinyModule()
    trainer.fit(module, make_loader(4))
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["step=2.ckpt"]
    state = torch.load(tmp_path / "run" / "step=2.ckpt", weights_only=True)
    assert_close(dict(state["state_dict"]), dict(module.state_dict()), rtol=0, atol=0)
