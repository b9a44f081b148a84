"""spatext-export ends with one line before it loads a model, and deletes no folder but its own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spatext.callbacks.checkpoint_files import read
from spatext.callbacks.checkpoint_writer import write
from spatext.tools.export import export, main


def other_module(state: dict[str, Any]) -> None:
    state["config"]["module"]["_target_"] = "spatext.modules.autoencoder.Autoencoder"


def no_base(state: dict[str, Any]) -> None:
    state["config"]["module"]["backbone"]["path"] = "/nowhere/base"


def no_config(state: dict[str, Any]) -> None:
    del state["config"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_module, "found a spatext.modules.autoencoder.Autoencoder, expected a SpaText model"),
        (no_config, "found no configuration in it, expected a .ckpt of spatext-train"),
        (no_base, "/nowhere/base: no such folder"),
    ],
)
def test_wrong_checkpoints_are_refused(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    state = read(checkpoint)
    change(state)
    write(state, tmp_path / "wrong.ckpt")
    capsys.readouterr()
    with pytest.raises(Exception, match=message):
        export(tmp_path / "wrong.ckpt", tmp_path / "out")
    assert capsys.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.ckpt"]


def test_a_changed_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(checkpoint, tmp_path / "changed.ckpt")
    weights = changed / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"weights.safetensors: its sha256 is not the one"):
        export(changed, tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.ckpt", "out"], "checkpoint=none.ckpt: no such file, expected a .ckpt of"),
        (
            ["none.ckpt", "out", "weights"],
            "weights: expected KEY=VALUE after CHECKPOINT and OUTPUT",
        ),
        (["none.ckpt", "out", "wieghts=raw"], "wieghts: unknown option, expected one of weights, "),
        (["none.ckpt", "out", "sampling.steps=3"], "sampling.steps: unknown option, expected"),
        (["none.ckpt", "out", "weights=best"], "weights: found 'best', expected one of ('ema', "),
        (["none.ckpt", "out", "half=maybe"], "half=maybe: expected true or false"),
        (["none.ckpt", "out", "sampling.scheduler=DDMI"], "sampling.scheduler: found 'DDMI'"),
        (["none.ckpt", "out", "upsamplers=a"], "upsamplers: found 'a', expected a list of folders"),
        (["none.ckpt", "old"], "old: found a folder, expected a new name, or replace=true"),
        (["none.ckpt", "file"], "file: found a file, expected the name of a folder"),
        (["none.ckpt", "file/out"], "file/out: Not a directory, expected a folder that can be"),
        (["none.ckpt", "/proc/x"], "/proc/x: "),
    ],
)
def test_wrong_options_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    (tmp_path / "old").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "old"]


def test_upsamplers_of_a_latent_model_are_refused(
    checkpoint: Path, karlo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it is loaded."""
    with pytest.raises(
        ValueError, match=r"^upsamplers: found with a LatentSpaText, expected a Pix"
    ):
        export(checkpoint, tmp_path / "out", upsamplers=[str(karlo)])
    assert capsys.readouterr().err == ""


def test_replace_leaves_nothing_of_the_old(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "unet").mkdir(parents=True)
    (out / "unet" / "old.bin").touch()
    with pytest.raises(ValueError, match=f"^replace=true {out}: missing model_index.json; exp"):
        export(checkpoint, out, replace=True)  # it may hold anything
    assert (out / "unet" / "old.bin").exists()
    (out / "model_index.json").write_text('{"_class_name": "SpaTextPipeline"}')
    export(checkpoint, out, replace=True)
    assert not (out / "unet" / "old.bin").exists()
    assert (out / "model_index.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
