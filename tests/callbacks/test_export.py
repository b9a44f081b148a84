from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch.testing import assert_close

from spatext.callbacks.checkpoint_orphans import hidden
from spatext.callbacks.ema import Ema
from spatext.callbacks.export import Export
from spatext.modules.autoencoder import Autoencoder
from tiny import CHANNELS, LR_SCHEDULER, OPTIMIZER, make_vae
from tiny_runs import TinyData, TinyModule, make_trainer


class Exported(TinyModule):
    """Writes a folder and a file, and keeps what it was given."""

    def save_pretrained(self, folder: Path, batches: list[dict[str, Any]]) -> None:
        self.batches, self.was_training = batches, self.training
        (folder / "part").mkdir(parents=True)
        torch.save(self.state_dict(), folder / "part" / "weights.pt")
        (folder / "note.txt").write_text("new")


class FinishedOnDevice(TinyData):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch | {"finished": True}


class Stop(pl.Callback):
    def on_train_batch_end(self, *_: Any) -> None:
        raise KeyboardInterrupt


def old_folder(folder: Path) -> Path:
    for name in ("part/old.pt", "part/weights.pt", "other/kept.pt", "note.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_parts_are_written_and_replaced(tmp_path: Path) -> None:
    folder = old_folder(tmp_path / "base")
    stale = hidden(folder, "tmp") / "part"
    stale.mkdir(parents=True)
    (stale / "half.pt").touch()
    module, ema = Exported(), Ema(0.5)
    trainer = make_trainer(tmp_path, max_steps=4, callbacks=[ema, Export(str(folder), 3)])
    trainer.fit(module, TinyData())
    assert names(folder) == ["note.txt", "other/kept.pt", "part/weights.pt"]
    assert (folder / "other" / "kept.pt").read_text() == "old"
    assert (folder / "note.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    # The average, out of training mode.
    found = torch.load(folder / "part" / "weights.pt", weights_only=True)
    assert_close(found, dict(ema._average_model.module.state_dict()), rtol=0, atol=0)
    assert (found["layer.weight"] - ema.last_weights["layer.weight"]).abs().max() > 1e-4
    assert not module.was_training


@pytest.mark.parametrize(("num_batches", "expected"), [(3, 3), (16, 4)])
def test_training_batches_are_handed_over(tmp_path: Path, num_batches: int, expected: int) -> None:
    module = Exported()
    export = Export(str(tmp_path / "base"), num_batches)
    make_trainer(tmp_path, max_steps=1, callbacks=[export]).fit(module, data := TinyData())
    assert len(module.batches) == expected
    for found, batch in zip(module.batches, data.train_dataloader(), strict=False):
        assert torch.equal(found["image"], batch["image"])


def test_an_interrupted_run_exports_nothing(tmp_path: Path) -> None:
    folder = old_folder(tmp_path / "base")
    before = names(folder)
    trainer = make_trainer(tmp_path, max_steps=4, callbacks=[Stop(), Export(str(folder))])
    with pytest.raises(SystemExit):
        trainer.fit(Exported(), TinyData())
    assert trainer.interrupted
    assert names(folder) == before
    assert (folder / "note.txt").read_text() == "old"


def test_an_autoencoder_is_exported_as_it_validates(tmp_path: Path) -> None:
    keys = ("down_block_types", "up_block_types", "block_out_channels", "norm_num_groups")
    config = {key: make_vae().config[key] for key in keys} | {"latent_channels": CHANNELS}
    module = Autoencoder(config, optimizer=OPTIMIZER, lr_scheduler=LR_SCHEDULER)
    export = Export(str(tmp_path / "base"), 2)
    make_trainer(tmp_path, max_steps=2, callbacks=[Ema(0.5), export]).fit(module, TinyData())
    vae = AutoencoderKL.from_pretrained(tmp_path / "base", subfolder="vae")
    assert_close(dict(vae.state_dict()), dict(module.model.state_dict()), rtol=0, atol=0)
    assert vae.config.scaling_factor == module.model.config.scaling_factor


def test_half_files_hold_the_rounded_weights(tmp_path: Path) -> None:
    parts = ("half", "whole")
    for part in parts:
        (tmp_path / part).mkdir()
    vae = make_vae()
    module = Exported()
    module.save_pretrained = lambda folder, _: vae.save_pretrained(folder / "vae")
    for part in parts:
        export = Export(str(tmp_path / part), 1, half=part == "half")
        make_trainer(tmp_path, max_steps=1, callbacks=[export]).fit(module, TinyData())
    half, whole = (
        load_file(tmp_path / part / "vae" / "diffusion_pytorch_model.safetensors") for part in parts
    )
    assert {value.dtype for value in half.values()} == {torch.float16}
    assert_close(half, {name: value.half() for name, value in whole.items()}, rtol=0, atol=0)
    loaded = AutoencoderKL.from_pretrained(tmp_path / "half", subfolder="vae")
    assert_close(dict(loaded.state_dict()), dict(vae.state_dict()), rtol=1e-3, atol=1e-4)


def test_batches_are_those_that_training_sees(tmp_path: Path) -> None:
    """Whole, where the datamodule finishes them on the device."""
    module = Exported()
    export = Export(str(tmp_path / "base"), 2)
    make_trainer(tmp_path, max_steps=1, callbacks=[export]).fit(module, FinishedOnDevice())
    assert [batch["finished"] for batch in module.batches] == [True, True]
