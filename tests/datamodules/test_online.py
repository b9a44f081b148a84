"""Segments found on the device, through the Trainer, beside the same segments stored."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from annotating import Halves
from spatext.datamodules import images
from spatext.datamodules.online import fit_whole
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.panoptic_models import PanopticModel
from spatext.datamodules.segmenters import DeviceSegmenter
from tars import png, write_shard
from tiny_panoptic import INPUT_SIZE, LABELS, OPTIONS, THINGS, WRITERS, assert_near, write_model

# (h, w): windows up to 64 pixels are kept as they are, 4 crops of 16 a side
SHAPES = [(64, 64), (48, 64), (64, 40), (33, 57), (60, 62), (64, 64), (20, 50), (41, 64)]
SIZES: dict[str, Any] = {"image_size": 32, "crop_size": 16, "k_max": 3, "batch_size": 4}


def pictures(shapes: list[tuple[int, int]]) -> dict[str, dict[str, bytes]]:
    samples = {}
    for number, (h, w) in enumerate(shapes):
        rng = np.random.default_rng(number)
        blocks = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        pixels = np.asarray(blocks.resize((w, h), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (pixels + rng.integers(-9, 9, pixels.shape)).clip(0, 255).astype(np.uint8)
        samples[f"{number:03d}"] = {"png": png(noisy), "txt": f"caption {number}".encode()}
    return samples


def annotate(
    samples: dict[str, dict[str, bytes]], model: PanopticModel
) -> dict[str, dict[str, bytes]]:
    """As annotating does: the whole image at the model's size, one by one."""
    annotated = {}
    for key, members in samples.items():
        whole, size = fit_whole(images.decode_image(members["png"], 10**6), model.input_size)
        pixels = torch.from_numpy(whole).permute(2, 0, 1)[None].contiguous()
        ids, (info,) = model.segment(pixels, [size])
        meta = json.dumps({"segments": list(info.values())}).encode()
        stored = png(ids[0].numpy().astype(np.uint8))
        annotated[key] = {**members, "json": meta, "panoptic.png": stored}
    return annotated


class Recorder(pl.LightningModule):
    """Trains nothing; keeps the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[dict[str, Any]] = []
        self.validated: list[dict[str, Any]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        return (self.weight * batch["ids"]).sum()  # ids may meet gradients

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.validated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(shards: Path, segmenter: Any, **options: Any) -> tuple[Recorder, PanopticDataModule]:
    """Two epochs through the Trainer."""
    datamodule = PanopticDataModule(shards, segmenter=segmenter, **(SIZES | options))
    module = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, datamodule)
    return module, datamodule


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PanopticModel]:
    base = tmp_path_factory.mktemp("models")
    options = {"input_size": INPUT_SIZE, **OPTIONS}
    return {kind: PanopticModel(str(write_model(kind, base / kind)), **options) for kind in WRITERS}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_shard(folder / "0.tar", pictures(SHAPES))
    return folder


def assert_same(online: dict[str, Any], stored: dict[str, Any], crop_error: float) -> None:
    assert online.keys() == stored.keys()
    for name in ("caption", "key", "texts"):
        assert online[name] == stored[name]
    for name in ("image", "index", "valid"):
        assert torch.equal(online[name], stored[name]), name
    assert_near(online["ids"], stored["ids"])
    assert online["crops"].dtype == torch.uint8
    error = (online["crops"].int() - stored["crops"].int()).abs().float()
    assert error.mean() <= crop_error
    assert not online["crops"][~online["valid"]].any()


@pytest.mark.parametrize("kind", WRITERS)
def test_online_and_stored_give_the_same_batches(
    models: dict[str, PanopticModel], raw: Path, tmp_path: Path, kind: str
) -> None:
    """With random crop and flip, on images of several shapes."""
    write_shard(tmp_path / "0.tar", annotate(pictures(SHAPES), models[kind]))
    online, datamodule = fit(raw, models[kind])
    stored, _ = fit(tmp_path, "stored")
    assert len(online.seen) == 4
    for one, other in zip(online.seen, stored.seen, strict=True):
        assert_same(one, other, 0.1)
        error = (one["crops"].int() - other["crops"].int()).abs()
        assert (error > 1).float().mean() < 0.005
    valid = torch.cat([batch["valid"] for batch in online.seen])
    assert valid.any(dim=1).sum() >= 10
    assert len(set(valid.sum(dim=1).tolist())) >= 2
    assert isinstance(datamodule.train_loader, torch.utils.data.DataLoader)
    assert datamodule.train_loader.dataset.segmenter is None  # workers get no model
    assert datamodule.segment_counts.num_images == 16
    assert datamodule.segment_counts.num_without == int((~valid.any(dim=1)).sum())


def test_a_window_larger_than_needed_is_reduced_once_more(
    models: dict[str, PanopticModel], tmp_path: Path
) -> None:
    samples = pictures([(120, 150), (200, 90), (99, 99), (64, 300)])
    for name, content in (("raw", samples), ("stored", annotate(samples, models["eomt"]))):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "0.tar", content)
    online, _ = fit(tmp_path / "raw", models["eomt"])
    stored, _ = fit(tmp_path / "stored", "stored")
    for one, other in zip(online.seen, stored.seen, strict=True):
        assert_same(one, other, 2.5)


@pytest.mark.parametrize("kind", WRITERS)
def test_an_image_alone_is_the_same_as_in_a_batch(
    models: dict[str, PanopticModel], raw: Path, kind: str
) -> None:
    together, _ = fit(raw, models[kind], batch_size=8)
    alone, _ = fit(raw, models[kind], batch_size=1)
    for i, one in enumerate(alone.seen):
        batch, row = together.seen[i // 8], i % 8
        for name in ("image", "index", "valid"):
            assert torch.equal(one[name][0], batch[name][row]), name
        for name in ("ids", "crops"):
            assert_near(one[name][0], batch[name][row])
        assert one["texts"][0] == batch["texts"][row]


def test_workers_change_nothing(models: dict[str, PanopticModel], raw: Path) -> None:
    one, _ = fit(raw, models["eomt"])
    other, _ = fit(raw, models["eomt"], num_workers=2)
    for a, b in zip(one.seen, other.seen, strict=True):
        assert_same(a, b, 0)


def test_validation_and_the_switches(models: dict[str, PanopticModel], raw: Path) -> None:
    names = {True: {LABELS[i] for i in THINGS}, False: {"sky", "floor wood"}}
    seen: dict[bool, Counter[str]] = {}
    for things in (True, False):
        module, datamodule = fit(
            raw, models["eomt"], val_shards=raw, things=things, stuff=not things, min_area=0.01
        )
        batches = module.seen + module.validated
        seen[things] = Counter(t for b in batches for texts in b["texts"] for t in texts if t)
        assert set(seen[things]) <= names[things]
        assert [key for batch in module.validated[:2] for key in batch["key"]] == [
            f"0/{i:03d}" for i in range(8)
        ]
        assert datamodule.segment_counts.num_images == 16  # of the training alone
    assert seen[True].total() > 5
    assert seen[False].total() > 5


def test_any_segmenter_on_the_device_will_do(tmp_path: Path) -> None:
    """And an image without segments is null ST, and counted."""
    assert isinstance(Halves(), DeviceSegmenter)
    bright = np.full((40, 40, 3), 200, dtype=np.uint8)
    bright[:, 20:] = 90
    samples = {
        "a": {"png": png(bright), "txt": b"a"},
        "b": {"png": png(bright // 8), "txt": b"b"},
    }
    write_shard(tmp_path / "0.tar", samples)
    options = {"batch_size": 2, "shuffle": False, "flip": False, "k_min": 2, "crop_size": 10}
    module, datamodule = fit(tmp_path, Halves(), **options)
    for batch in module.seen:
        assert batch["valid"].tolist() == [[True, True, False], [False] * 3]
        assert sorted(batch["texts"][0]) == ["", "left", "right"]
        assert batch["texts"][1] == [""] * 3
        left = batch["texts"][0].index("left")
        expected = torch.full((32, 32), 2 - left, dtype=torch.uint8)
        expected[:, :16] = left + 1
        assert torch.equal(batch["ids"][0], expected)
        assert not batch["ids"][1].any()
        assert not batch["crops"][1].any()
        # a half is twice as high as wide: its square shows it in the middle half of the columns
        for k, value in ((left, 200), (1 - left, 90)):
            columns = batch["crops"][0, k, 0].float().mean(dim=0)
            assert columns[4:6].tolist() == [value, value]
            assert columns[[0, 9]].tolist() == [0, 0]
    assert datamodule.segment_counts.num_images == 4
    assert datamodule.segment_counts.num_without == 2
