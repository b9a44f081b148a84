"""Checkpoints that the Trainer writes and reads itself."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from checkpoint_states import flip, make_state, put_bomb, write_run
from comparing import equal
from spatext.callbacks.checkpoint_files import WEIGHTS, read
from spatext.callbacks.checkpoint_io import AtomicCheckpointIO
from tiny_runs import TinyModule, make_loader, make_trainer


def test_a_trainer_writes_reads_and_removes_with_it(tmp_path: Path) -> None:
    io, module, path = AtomicCheckpointIO(), TinyModule(), tmp_path / "new" / "asked.ckpt"
    trainer = make_trainer(tmp_path, max_steps=2, plugins=[io])
    trainer.fit(module, make_loader(8))
    trainer.save_checkpoint(path)
    assert_close(read(path)["state_dict"], dict(module.state_dict()), rtol=0, atol=0)
    assert equal(io.load_checkpoint(path), read(path))

    again = TinyModule()
    trainer = make_trainer(tmp_path, max_steps=2, plugins=[io])
    trainer.fit(again, make_loader(8), ckpt_path=path, weights_only=True)
    assert trainer.global_step == 2
    assert_close(dict(again.state_dict()), dict(module.state_dict()), rtol=0, atol=0)
    trainer.strategy.remove_checkpoint(path)
    assert [*path.parent.iterdir()] == []


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    state = make_state()
    state["state_dict"]["a"][0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"new.ckpt: state_dict.a is not finite, expected no such"):
        AtomicCheckpointIO().save_checkpoint(state, tmp_path / "new.ckpt")
    assert [*tmp_path.iterdir()] == []


def test_a_damaged_one_is_refused_unless_it_was_verified(tmp_path: Path) -> None:
    (path,) = write_run(tmp_path, 3)
    flip(path / WEIGHTS)
    with pytest.raises(ValueError, match=rf"^{path}: weights.safetensors: its sha256 is not the"):
        AtomicCheckpointIO().load_checkpoint(path)
    assert AtomicCheckpointIO(verified=path).load_checkpoint(path)["global_step"] == 3


def test_code_is_refused_even_where_it_is_asked_for(tmp_path: Path) -> None:
    (path,) = write_run(tmp_path, 3)
    put_bomb(path, tmp_path / "canary")
    with pytest.raises(ValueError, match=rf"^{path}: state.pt: found .*; nothing was run$"):
        AtomicCheckpointIO(verified=path).load_checkpoint(path, weights_only=False)
    assert not (tmp_path / "canary").exists()
