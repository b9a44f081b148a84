"""Whole runs: the experiments of conf/ on tiny models and a small world."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import wandb
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch.testing import assert_close

import spatext
from datamodules.tars import png, write_shard
from runs import compose_config, fit, latent, load_last, read_metrics, run
from spatext.tools.provenance import PACKAGES

NUM_STEPS = 16  # four epochs of four batches


@pytest.fixture(scope="module")
def config(workspace: Path) -> DictConfig:
    overrides = (
        f"trainer.max_steps={NUM_STEPS}",
        "trainer.log_every_n_steps=5",
        "module.optimizer.lr=1e-2",
    )
    return compose_config("train", latent(workspace, workspace / "latent", *overrides))


@pytest.fixture(scope="module")
def results(config: DictConfig) -> dict[str, Any]:
    return fit(config)


def test_loss_of_unseen_scenes_falls(config: DictConfig, results: dict[str, Any]) -> None:
    pl.seed_everything(config.seed)
    untrained = instantiate(config.module, _convert_="all")
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
    judge = pl.Trainer(accelerator="cpu", enable_progress_bar=False, **options)
    before, after = (
        judge.validate(module, results["datamodule"], verbose=False)[0]["val/loss"]
        for module in (untrained, results["module"])
    )
    assert 0 < after < 0.9 * before


def test_metrics_are_returned_and_logged(config: DictConfig, results: dict[str, Any]) -> None:
    logged = read_metrics(Path(config.run_dir))
    assert list(logged["val/loss"]) == [3, 7, 11, 15]  # after each epoch, counted from 0
    assert list(logged["train/loss"]) == list(logged["train/grad_norm"]) == [4, 9, 14]
    for name in ("train/loss", "val/loss"):
        assert np.isfinite(list(logged[name].values())).all()
    assert results["metrics"]["val/loss"] == pytest.approx(logged["val/loss"][15], rel=1e-5)
    # Two steps of warm-up, then half a cosine to the last step.
    expected = 0.01 * 0.5 * (1 + np.cos(np.pi * (9 - 2) / (NUM_STEPS - 2)))
    assert logged["lr-AdamW"][9] == pytest.approx(expected, rel=1e-5)


def test_loudness_of_the_new_weights_is_logged_at_step_0(
    config: DictConfig, results: dict[str, Any]
) -> None:
    logged = read_metrics(Path(config.run_dir))
    for name in ("step_0/base_preactivation", "step_0/st_preactivation"):
        assert list(logged[name]) == [0]
        assert 0.01 < logged[name][0] < 100


def test_run_folder_holds_the_resolved_configuration(
    config: DictConfig, results: dict[str, Any]
) -> None:
    run_dir = Path(config.run_dir)
    written = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"), resolve=False)
    assert written == OmegaConf.to_container(config, resolve=True)
    assert "${" not in (run_dir / "config.yaml").read_text()


def test_run_folder_says_what_ran(config: DictConfig, results: dict[str, Any]) -> None:
    facts = json.loads((Path(config.run_dir) / "provenance.json").read_text())
    assert facts["command"] == sys.argv
    assert set(facts["packages"]) == set(PACKAGES)
    assert facts["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["packages"]["spatext"] == spatext.__version__
    assert "not installed" not in facts["packages"].values()


def test_checkpoint_holds_the_configuration_and_the_trained_weights_alone(
    config: DictConfig, results: dict[str, Any]
) -> None:
    checkpoint = load_last(Path(config.run_dir))
    assert checkpoint["global_step"] == NUM_STEPS
    assert checkpoint["config"] == OmegaConf.to_container(config, resolve=True)
    average, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert all(name.startswith("backbone.unet.") for name in average)  # nothing that is frozen
    assert_close(average, dict(results["module"].state_dict()), rtol=0, atol=0)
    assert all(not torch.equal(average[name], current[name]) for name in average)


def blotches(seed: int) -> dict[str, bytes]:
    """A picture of smooth noise with a caption: no id map, no names."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((40, 32), Image.Resampling.BICUBIC)
    return {"png": png(image), "txt": b"blotches"}


def test_images_without_segments_train_with_the_graph_segmenter(
    workspace: Path, tmp_path: Path
) -> None:
    samples = {f"{seed:03d}": blotches(seed) for seed in range(8)}
    shard = write_shard(tmp_path / "noise.tar", samples)
    options = (f"datamodule.shards={shard}", "datamodule.val_shards=null", "datamodule=graph")
    results = run(latent(workspace, tmp_path / "run", *options, "trainer.max_steps=2"))
    assert np.isfinite(results["metrics"]["train/loss"])
    batches = list(results["datamodule"].train_dataloader())
    valid = torch.cat([batch["valid"] for batch in batches])
    assert valid.any(dim=1).all()
    assert valid.sum(dim=1).max() > 1
    for batch in batches:
        shown = [set(ids.unique().tolist()) - {0} for ids in batch["ids"]]
        assert shown == [set(range(1, int(n) + 1)) for n in batch["valid"].sum(dim=1)]
        assert batch["crops"].flatten(2).any(dim=2).equal(batch["valid"])
        assert batch["texts"] == [[""] * batch["valid"].shape[1]] * 4


@pytest.mark.slow
def test_wandb_works_offline_inside_the_run_folder(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "run"
    options = ("logger=wandb", "trainer.max_steps=2", "trainer.log_every_n_steps=1")
    run(latent(workspace, run_dir, *options))
    wandb.finish()
    (offline,) = (run_dir / "wandb").glob("offline-run-*")
    (log,) = offline.glob("run-*.wandb")
    deadline = time.monotonic() + 30  # `finish` does not wait for the disk
    while b"train/loss" not in log.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    content = log.read_bytes()
    assert b"train/loss" in content
    assert b"demo-latent" in content  # name of the run, configuration
    assert read_metrics(run_dir)["train/loss"].keys() == {0, 1}  # and the table is still there
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
