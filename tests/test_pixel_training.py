"""The pixel model trains on the latent model's data by the same command, resumed and in two
processes alike."""

from pathlib import Path
from typing import Any

import pytest
from torch.testing import assert_close

from comparing import differences
from ranks import DDP, run_two
from runs import load_last, pixel, read_metrics, run
from spatext.callbacks.checkpoint_files import read
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.modules.pixel_spatext import PixelSpaText

NUM_STEPS, STOPPED_AT = 4, 2  # an epoch of four
PARTS = ("current_model_state", "state_dict", "averaging_state", "optimizer_states")
NULL = "backbone.projection.learned_classifier_free_guidance_embeddings"


def train_to(
    step: int, workspace: Path, karlo: Path, run_dir: Path, *overrides: str
) -> dict[str, Any]:
    """As if stopped after `step`: the schedule is that of the whole run."""
    options = (
        "resume=true",
        f"trainer.max_steps={step}",
        "trainer.log_every_n_steps=1",
        "trainer.val_check_interval=4",
        "module.drop_rates={text: 0.3, image_embed: 0.5, segments: 0.1}",
        f"module.lr_scheduler.num_steps={NUM_STEPS}",
        f"callbacks.checkpoint.every_n_train_steps={STOPPED_AT}",
        "+callbacks.witness._target_=runs.Witness",
        f"+callbacks.witness.folder={run_dir}",
    )
    return run(pixel(workspace, karlo, run_dir, *options, *overrides))


@pytest.fixture(scope="module")
def whole(workspace: Path, karlo: Path) -> tuple[Path, dict[str, Any]]:
    run_dir = workspace / "pixel-whole"
    return run_dir, train_to(NUM_STEPS, workspace, karlo, run_dir)


def test_the_data_are_those_of_the_latent_model(whole: tuple[Path, dict[str, Any]]) -> None:
    """Batches of the class and schema that the latent model has, at the size of the images."""
    run_dir, results = whole
    datamodule = results["datamodule"]
    assert type(datamodule) is PanopticDataModule
    assert type(results["module"]) is PixelSpaText
    batch = next(iter(datamodule.train_dataloader()))
    names = {"image", "caption", "key", "index", "ids", "valid", "crops", "texts"}
    assert batch.keys() == names
    assert batch["image"].shape == (4, 3, 16, 16)
    assert results["module"].backbone.factor == 2
    assert [upsampler.scale for upsampler in results["module"].upsamplers] == [2]

    found = read_metrics(run_dir)
    for split, steps in (("train", NUM_STEPS), ("val", 1)):
        loss, simple, vb = (found[f"{split}/{name}"] for name in ("loss", "simple", "vb"))
        assert len(loss) == steps
        for step in loss:
            assert loss[step] == pytest.approx(simple[step] + vb[step], rel=1e-4)
    assert {"step_0/base_preactivation", "step_0/st_preactivation"} < found.keys()
    state = load_last(run_dir)
    assert state["embeddings"]["scale"] == "raw"
    assert state["state_dict"][NULL].any()  # it was zero
    owned = ("backbone.unet.", "backbone.projection.")
    assert all(name.startswith(owned) for name in state["state_dict"])


def test_resumed_equals_uninterrupted(
    whole: tuple[Path, dict[str, Any]], workspace: Path, karlo: Path, tmp_path: Path
) -> None:
    train_to(STOPPED_AT, workspace, karlo, tmp_path)
    first = read(tmp_path / "checkpoints" / f"step-{STOPPED_AT}.ckpt")
    train_to(NUM_STEPS, workspace, karlo, tmp_path)
    found, expected = load_last(tmp_path), load_last(whole[0])
    for part in (*PARTS, "lr_schedulers", "PanopticDataModule"):
        assert not differences(found[part], expected[part], part)
        assert differences(first[part], expected[part], part)  # something has happened since
    losses = [read_metrics(tmp_path, name) for name in ("metrics-1.csv", "metrics.csv")]
    for name in ("train/loss", "train/vb"):
        assert losses[0][name] | losses[1][name] == read_metrics(whole[0])[name]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(
    whole: tuple[Path, dict[str, Any]], workspace: Path, karlo: Path, tmp_path: Path
) -> None:
    options = (*DDP, "datamodule.batch_size=2")
    run_two(train_to, NUM_STEPS, workspace, karlo, tmp_path, *options)
    assert (tmp_path / "witness-1.json").is_file()
    found, expected = load_last(tmp_path), load_last(whole[0])
    for part in ("current_model_state", "state_dict"):  # the weights, and their average
        # AdamW divides a gradient by its own size: where that is nearly zero, rounding shows.
        assert_close(dict(found[part]), dict(expected[part]), rtol=1e-4, atol=1e-4)
    assert_close(found["optimizer_states"], expected["optimizer_states"], rtol=1e-4, atol=1e-5)
    for name in ("val/loss", "val/simple", "val/vb", "train/grad_norm"):
        one, two = (read_metrics(folder)[name] for folder in (whole[0], tmp_path))
        assert two == pytest.approx(one, rel=1e-4), name
