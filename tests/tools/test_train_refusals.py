"""What a user who trains with a wrong option or file sees: one line that names it."""

import shutil
from pathlib import Path

import pytest

from datamodules.tars import scene as tar_scene
from datamodules.tars import write_shard
from refusals import NOWHERE, Fails
from runs import latent


def without_captions(folder: Path) -> Path:
    samples = {"a": {"png": tar_scene(0)["png"]}}
    return write_shard(folder / "mute.tar", samples)


def without_segments(folder: Path) -> Path:
    members = {name: tar_scene(0)[name] for name in ("png", "txt")}
    return write_shard(folder / "plain.tar", {"a": tar_scene(0), "b": members})


def test_no_shard_matches(workspace: Path, tmp_path: Path, fails: Fails) -> None:
    options = (f"base={NOWHERE}", "datamodule.shards=/nowhere/*.tar")
    line = fails("train", latent(workspace, tmp_path, *options))
    assert line == "datamodule.shards: no .tar file matches '/nowhere/*.tar'"


def test_shard_without_captions(workspace: Path, tmp_path: Path, fails: Fails) -> None:
    shard = without_captions(tmp_path)
    options = (f"base={NOWHERE}", f"datamodule.shards={shard}")
    line = fails("train", latent(workspace, tmp_path / "run", *options))
    assert line.startswith(f"{shard}: no sample with an image and a caption (members found: .png);")
    assert "expected <key>.jpg|jpeg|png|webp with <key>.txt" in line
    assert not (tmp_path / "run").exists()


def test_shard_without_stored_segments(workspace: Path, tmp_path: Path, fails: Fails) -> None:
    shard = without_segments(tmp_path)
    options = (f"base={NOWHERE}", f"datamodule.shards={shard}")
    line = fails("train", latent(workspace, tmp_path / "run", *options))
    assert line.startswith(f"{shard}: sample b has no b.panoptic.png (1 of 2 samples have none);")
    assert "datamodule=graph" in line


def test_options_without_a_value(fails: Fails) -> None:
    line = fails("train", ["experiment=demo_latent", "run_dir=RUN"])
    assert line == "missing datamodule.shards, base: expected datamodule.shards=VALUE"
    line = fails("sample", ["scene=x"])
    assert line == "missing checkpoint: expected checkpoint=VALUE"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("callbacks.ema.decay=1.5", "callbacks.ema.decay: found 1.5, expected 0 <= decay < 1"),
        ("datamodule.min_area=5.0", "datamodule.min_area = 5.0, expected a share of the image"),
        ("datamodule.segmenter=sam", "datamodule.segmenter is 'sam', expected \"stored\""),
        ("trainer.limit_val_batches=2.5", "invalid value 2.5 for limit_val_batches"),
        ("resume=none.ckpt", "resume=none.ckpt: no such file, expected a .ckpt of spatext-train"),
    ],
)
def test_wrong_options_come_before_the_models(
    workspace: Path, tmp_path: Path, fails: Fails, option: str, message: str
) -> None:
    line = fails("train", latent(workspace, tmp_path, f"base={NOWHERE}", option))
    assert message in line


def test_base_that_lacks_a_part(workspace: Path, tmp_path: Path, fails: Fails) -> None:
    base = tmp_path / "base"
    shutil.copytree(workspace / "base", base)
    shutil.rmtree(base / "vae")
    line = fails("train", latent(workspace, tmp_path / "run", f"base={base}"))
    parts = "unet, vae, text_encoder, tokenizer, scheduler"
    assert line == f"backbone.path={base}: missing vae; expected a folder with {parts}"
    line = fails("train", latent(workspace, tmp_path / "run", f"base={NOWHERE}"))
    assert line == f"backbone.path={NOWHERE}: no such folder; expected {parts} in it"


def test_clip_of_another_width(workspace: Path, tmp_path: Path, fails: Fails) -> None:
    options = latent(workspace, tmp_path, "module.backbone.embed_dim=12")
    line = fails("train", options, early=False)
    assert line.startswith("module.backbone.embed_dim: found 12, expected 8, the embedding width")
