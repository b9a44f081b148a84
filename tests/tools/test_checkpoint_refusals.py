"""What a user with a wrong checkpoint sees: one line, whether it is sampled from or resumed."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
from open_clip.model import set_model_preprocess_cfg
from open_clip.push_to_hf_hub import save_for_hf
from transformers import CLIPTokenizer

from refusals import NOWHERE, Fails
from runs import compose_config, latent
from spatext.callbacks.checkpoint_files import read
from spatext.callbacks.checkpoint_writer import write
from tiny import PREPROCESS, clip_config


@pytest.fixture
def other_clip(workspace: Path) -> list[str]:
    """Overrides that bring a CLIP model of width 12."""
    folder = workspace / "clip-12"
    if not folder.exists():
        tokenizer = CLIPTokenizer.from_pretrained(workspace / "base" / "tokenizer")
        config = clip_config(len(tokenizer)) | {"embed_dim": 12}
        clip = open_clip.CLIP(**config)
        set_model_preprocess_cfg(clip, PREPROCESS)
        save_for_hf(clip, tokenizer, config, folder, True)
    return [f"module.clip.name=local-dir:{folder}", "module.backbone.embed_dim=12"]


def test_checkpoint_of_another_width(
    workspace: Path, checkpoint: Path, scene: Path, tmp_path: Path, other_clip: list[str],
    fails: Fails,
) -> None:  # fmt: skip
    message = (
        "checkpoint: embed_dim of its CLIP embeddings is 8, expected 12 as configured by "
        "module.clip"
    )
    options = [f"scene={scene}", f"checkpoint={checkpoint}", "device=cpu"]
    options += [f"overrides={json.dumps(other_clip)}"]
    assert fails("sample", options, early=False) == f"{checkpoint}: {message}"
    resumed = latent(workspace, tmp_path / "run", f"resume={checkpoint}", *other_clip)
    assert fails("train", resumed, early=False) == message


def text_file(path: Path, _: Path) -> None:
    path.write_text("weights")


def cut_file(path: Path, checkpoint: Path) -> None:
    shutil.copytree(checkpoint, path)
    os.truncate(path / "weights.safetensors", 1000)


def lost_file(path: Path, checkpoint: Path) -> None:
    shutil.copytree(checkpoint, path)
    (path / "state.pt").unlink()


def other_folder(path: Path, _: Path) -> None:
    path.mkdir()


def weights_alone(path: Path, checkpoint: Path) -> None:
    write({"state_dict": read(checkpoint)["state_dict"]}, path)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (None, "no such file"),
        (text_file, "found no checkpoint folder"),
        (cut_file, "weights.safetensors: found 1000 bytes, expected [0-9]+"),
        (lost_file, "state.pt: no such file"),
        (other_folder, "manifest.json: no such file"),
        (weights_alone, "found no configuration in it"),
    ],
)
def test_no_checkpoint(
    workspace: Path,
    checkpoint: Path,
    scene: Path,
    tmp_path: Path,
    fails: Fails,
    make: Callable[[Path, Path], None] | None,
    found: str,
) -> None:
    """Where it is sampled from and where it is resumed from."""
    path = tmp_path / "found.ckpt"
    if make:
        make(path, checkpoint)
    line = fails("sample", [f"scene={scene}", f"checkpoint={path}"])
    assert re.fullmatch(f"checkpoint={path}: {found}, expected a .ckpt of spatext-train", line)
    options = (f"resume={path}", f"base={NOWHERE}")
    line = fails("train", latent(workspace, tmp_path / "run", *options))
    assert re.fullmatch(f"resume={path}: {found}, expected a .ckpt of spatext-train", line)


def flip_newest(folder: Path) -> None:
    for path in folder.glob("step-*.ckpt/weights.safetensors"):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("whole_folder", [False, True], ids=["one", "run folder"])
def test_changed_checkpoint_is_not_continued(
    workspace: Path, checkpoint: Path, tmp_path: Path, fails: Fails, whole_folder: bool
) -> None:
    """Sums are compared where training goes on from it; of a run folder none is left."""
    folder = tmp_path / "run"
    shutil.copytree(checkpoint.parents[1], folder, symlinks=True)
    flip_newest(folder / "checkpoints")
    reason = "weights.safetensors: its sha256 is not the one in manifest.json"
    path = folder if whole_folder else folder / "checkpoints" / "last.ckpt"
    line = fails("train", latent(workspace, folder, f"resume={path}", f"base={NOWHERE}"))
    if whole_folder:
        found = f"{folder}/checkpoints: found no valid checkpoint (step-2.ckpt: {reason})"
        assert line == f"resume={path}: {found}"
        line = fails("train", latent(workspace, folder, "resume=true", f"base={NOWHERE}"))
        assert line == f"resume=True: {found}"
    else:
        assert line == f"resume={path}: {reason}, expected a .ckpt of spatext-train"


def change_weights(state: dict[str, Any]) -> None:
    del state["state_dict"]["backbone.unet.conv_out.bias"]


def change_shape(state: dict[str, Any]) -> None:
    name = "backbone.unet.conv_out.bias"
    state["state_dict"][name] = state["state_dict"][name][:3]


def change_module(state: dict[str, Any]) -> None:
    module = compose_config("train", ["module=autoencoder", "run_dir=RUN"]).module
    options = {name: dict(module[name]) for name in ("optimizer", "lr_scheduler")}
    options["lr_scheduler"]["num_steps"] = 1
    model = {"block_out_channels": [32], "norm_num_groups": 8}
    state["config"]["module"] = {"_target_": module._target_, "model": model, **options}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_weights, "lacks weight backbone.unet.conv_out.bias, expected the configured"),
        (change_shape, "backbone.unet.conv_out.bias is (3,), expected (4,) for the configured"),
        (change_module, "found a Autoencoder, expected a SpaText model"),
    ],
)
def test_foreign_checkpoint(
    checkpoint: Path,
    scene: Path,
    tmp_path: Path,
    fails: Fails,
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    state = read(checkpoint)
    change(state)
    path = tmp_path / "foreign.ckpt"
    write(state, path)
    options = [f"scene={scene}", f"checkpoint={path}", "device=cpu", f"out={tmp_path}/out"]
    assert fails("sample", options, early=False).startswith(f"checkpoint={path}: {message}")
    assert not (tmp_path / "out").exists()


def test_unknown_override_of_a_checkpoint(checkpoint: Path, scene: Path, fails: Fails) -> None:
    options = [f"scene={scene}", f"checkpoint={checkpoint}"]
    options += ['overrides=["module.bakbone.path=/new"]']
    line = fails("sample", options)
    assert line.startswith("overrides=['module.bakbone.path=/new']: Key 'bakbone' is not in struct")
