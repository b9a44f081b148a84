from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import webdataset

from compared import make_clip, write_pairs
from embedded import CAPTIONS, sample
from refusals import SCENE, Fails
from runs import compose_config, fit
from samples import SQUARE, WIDE, write_scenes
from spatext.tools.console import one_line_errors
from spatext.tools.sample import sample_scenes
from tiny import unchecked


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


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.yaml"
    path.write_text(SCENE.format(region="{text: a star, box: [1, 1, 9, 9]}"))
    return path


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of two wide images."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        with webdataset.TarWriter(str(folder / f"s{shard}.tar"), encoder=False, mtime=0) as tar:
            for number in (2 * shard, 2 * shard + 1):
                tar.write(sample(number, CAPTIONS[number]))
    return folder


@pytest.fixture(scope="session")
def world(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, and pairs in train/ and val/: 60 and 20 texts of each kind."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "base").symlink_to(workspace / "base")
    clip = make_clip(folder)
    order = np.random.default_rng(0).permutation(80)
    write_pairs(folder / "train", clip, order[:60], noise=0.01)
    write_pairs(folder / "val", clip, order[60:], noise=0.01)
    return folder


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes", square=SQUARE, wide=WIDE)


@pytest.fixture(scope="module")
def address(checkpoint: Path) -> Iterator[str]:
    from pages import serving  # a server is not imported by all tests of this folder

    with serving(checkpoint) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30) as client:
        yield client
