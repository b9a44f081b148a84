import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pair_folders import SIZES, write_folder
from panoptic_batches import collect, make
from spatext.datamodules import remote
from spatext.datamodules.pair_files import PairRows
from stores import Store, serve
from tars import write_scenes


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PairRows]:
    """A folder, and what all of its shards hold in the order of their names."""
    folder = tmp_path_factory.mktemp("pairs")
    shards = [rows for _, rows in sorted(write_folder(folder, SIZES).items())]
    return folder, PairRows(
        image_embeds=np.concatenate([rows.image_embeds for rows in shards]),
        is_region=np.concatenate([rows.is_region for rows in shards]),
        texts=[text for rows in shards for text in rows.texts],
        keys=[key for rows in shards for key in rows.keys],
    )


@pytest.fixture
def copy(written: tuple[Path, PairRows], tmp_path: Path) -> Path:
    return shutil.copytree(written[0], tmp_path / "copy")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("shards"), 13)


@pytest.fixture(scope="session")
def epoch(shards: Path) -> dict[str, Any]:
    return collect(make(shards).train_dataloader())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three shards, which a test may change."""
    return write_scenes(tmp_path / "data", 13)


@pytest.fixture
def store(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    with serve(data) as store:
        yield store
