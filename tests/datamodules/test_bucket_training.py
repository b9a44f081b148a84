"""Steps of training on images of two sizes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spatext.datamodules.panoptic import PanopticDataModule
from spatext.modules.spatext import LatentSpaText
from tars import scene, write_shard
from tiny import load_spatext, write_base
from tiny_runs import make_trainer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def make_data(folder: Path, step: int) -> PanopticDataModule:
    samples = {f"{i}": scene(i, (16, 16) if i % 2 else (24, 40)) for i in range(8)}
    write_shard(folder / "0.tar", samples)
    return PanopticDataModule(
        folder,
        image_size=16,
        buckets={"step": step},
        crop_size=16,
        segmenter="stored",
        batch_size=2,
        min_area=0.02,
    )


def record(model: LatentSpaText) -> list[tuple[tuple[int, ...], Tensor]]:
    """(sizes of the images, loss) of each step to come."""
    seen: list[tuple[tuple[int, ...], Tensor]] = []
    step = model.training_step

    def training_step(batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = step(batch, batch_idx)
        seen.append((tuple(batch["image"].shape[-2:]), loss.detach()))
        return loss

    model.training_step = training_step
    return seen


def test_latents_of_two_sizes_are_trained_on(base: Path, tmp_path: Path) -> None:
    model = load_spatext(base)
    before = model.backbone.unet.conv_in.weight.detach().clone()
    seen = record(model)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(model, make_data(tmp_path, 4))
    assert sorted(shape for shape, _ in seen) == [(12, 20)] * 2 + [(16, 16)] * 2
    assert all(torch.isfinite(loss) and loss > 0 for _, loss in seen)
    assert trainer.global_step == 4
    assert (model.backbone.unet.conv_in.weight != before).any()


def test_sizes_that_the_network_cannot_take_are_refused(base: Path, tmp_path: Path) -> None:
    model = load_spatext(base)
    seen = record(model)
    message = r"images of 14 x 18 pixels, expected sides that are multiples of 4 for this model"
    data = make_data(tmp_path, 2)
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, max_epochs=1).fit(model, data)
    assert not seen
