"""What a user who is wrong sees: one line with the option or file, what was found and expected."""

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from PIL import Image

from refusals import SCENE, Fails
from spatext.tools.console import one_line_errors


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


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "sampling.scheduler=DDMI",
            "sampling.scheduler: found 'DDMI', expected the name of a diffusers scheduler",
        ),
        ("sampling.form=slow", "sampling.form: found 'slow', expected one of ('fast', 'full')"),
        ("sampling.num_steps=0", "sampling.num_steps: found 0, expected at least 1"),
        ("num_images=0", "num_images: found 0, expected a whole number"),
    ],
)
def test_wrong_sampling(scene: Path, fails: Fails, option: str, message: str) -> None:
    line = fails("sample", [f"scene={scene}", "checkpoint=none.ckpt", option])
    assert line.startswith(message)


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
