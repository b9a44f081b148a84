"""What a user who is wrong sees: one line with the option or file, what was found and expected."""

import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from open_clip.model import set_model_preprocess_cfg
from open_clip.push_to_hf_hub import save_for_hf
from PIL import Image
from transformers import CLIPTokenizer

from datamodules.tars import scene as tar_scene
from datamodules.tars import write_shard
from runs import compose_config, fit, latent
from spatext.callbacks.checkpoint_files import read
from spatext.callbacks.checkpoint_writer import write
from spatext.tools.console import one_line_errors
from spatext.tools.sample import sample_scenes
from tiny import PREPROCESS, clip_config, unchecked

Fails = Callable[..., str]


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fails:
    """The one line that the command with these overrides ends with.

    `early`: nothing else has been written, no bar of a loading model for one.
    """
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    commands: dict[str, Callable[[Any], object]] = {"train": fit, "sample": sample_scenes}

    def call(name: str, overrides: list[str], *, early: bool = True) -> str:
        config = compose_config(name, overrides)
        with unchecked(), pytest.raises(SystemExit) as stop, one_line_errors():
            commands[name](config)
        assert stop.value.code == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("error: ")
        assert len(lines) == 1 or not early, lines
        assert not any("Traceback" in line for line in lines)
        return lines[-1].removeprefix("error: ")

    return call


# --- training ------------------------------------------------------------------------------------

NOWHERE = "/nowhere/base"  # a model loaded too early would fail there


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


# --- scenes --------------------------------------------------------------------------------------

REGION = "{text: a red circle, mask: mask.png}"
SCENE = "{{prompt: a dusk sky, size: 16, regions: [{region}]}}"


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (
            "{text: a star, mask: star.png}",
            "regions[0].mask: file 'star.png' not found (looked in {folder})",
        ),
        (
            "{text: a star, mask: wide.png}",
            "regions[0].mask: 'wide.png' is 16x20 (height x width), expected 16x16",
        ),
        ("{text: ' ', box: [1, 1, 9, 9]}", "regions[0].text: empty, expected words"),
        (
            "{text: a star, boxx: [1, 1, 9, 9]}",
            "regions[0].boxx: unknown key, did you mean 'box'?",
        ),
    ],
)
def test_wrong_scenes(tmp_path: Path, fails: Fails, region: str, message: str) -> None:
    """Before the checkpoint is looked at, which is missing here."""
    Image.new("L", (20, 16), 255).save(tmp_path / "wide.png")
    path = tmp_path / "scene.yaml"
    path.write_text(SCENE.format(region=region))
    line = fails("sample", [f"scene={path}", "checkpoint=none.ckpt", f"out={tmp_path}/out"])
    assert line.startswith(f"{path}: {message.format(folder=tmp_path)}")
    assert not (tmp_path / "out").exists()


def test_no_scene(tmp_path: Path, fails: Fails) -> None:
    line = fails("sample", [f"scene={tmp_path}", "checkpoint=none.ckpt"])
    assert line == f"scene={tmp_path}: found no *.yaml in this folder, expected scenes"
    line = fails("sample", ["scene=sea.yaml", "checkpoint=none.ckpt"])
    assert line == "sea.yaml: no such scene file"


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.yaml"
    path.write_text(SCENE.format(region="{text: a star, box: [1, 1, 9, 9]}"))
    return path


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "sampling.scheduler=DDMI",
            "sampling.scheduler: found 'DDMI', expected the name of a diffusers scheduler",
        ),
        ("sampling.form=slow", "sampling.form: found 'slow', expected one of ('fast', 'full')"),
        ("sampling.num_steps=0", "sampling.num_steps: found 0, expected at least 1"),
        ("num_images=0", "num_images=0: expected at least 1"),
    ],
)
def test_wrong_sampling(scene: Path, fails: Fails, option: str, message: str) -> None:
    line = fails("sample", [f"scene={scene}", "checkpoint=none.ckpt", option])
    assert line.startswith(message)


# --- checkpoints ---------------------------------------------------------------------------------


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


# --- what passes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("ours"), KeyError("ours"), TypeError("ours")])
def test_our_own_mistakes_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    with pytest.raises(type(error), match="ours"), one_line_errors():
        raise error
    with pytest.raises(InstantiationException, match="at most 1"), one_line_errors():
        instantiate({"_target_": "builtins.dict", "_args_": [{}, {}]})


def test_a_message_of_many_lines_becomes_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    with pytest.raises(SystemExit), one_line_errors():
        raise ValueError("found 1,\n    expected 2\n")
    assert capsys.readouterr().err == "error: found 1, expected 2\n"


def test_full_errors_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="found 1"), one_line_errors():
        raise ValueError("found 1")


# --- the scripts ---------------------------------------------------------------------------------


def script(cwd: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    command = [str(Path(sysconfig.get_path("scripts"), f"spatext-{name}")), *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_script_refuses_an_unknown_option(tmp_path: Path) -> None:
    """In the words of Hydra."""
    result = script(tmp_path, "train", "module.learning_rate=1")
    assert result.returncode == 1
    assert "Could not override 'module.learning_rate'" in result.stderr
    assert "Key 'learning_rate' is not in struct" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        (
            "train",
            ["datamodule.shards=/nowhere/*.tar", "module.backbone.path=/nowhere"],
            "error: datamodule.shards: no .tar file matches '/nowhere/*.tar'\n",
        ),
        (
            "sample",
            ["scene=sea.yaml", "checkpoint=none.ckpt"],
            "error: sea.yaml: no such scene file\n",
        ),
    ],
)
def test_script_says_one_line(tmp_path: Path, name: str, arguments: list[str], line: str) -> None:
    result = script(tmp_path, name, *arguments)
    assert result.returncode == 1
    assert result.stderr == line
    assert result.stdout == ""
