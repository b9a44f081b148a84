from pathlib import Path

import pytest

from runs import latent, make_workspace, run


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="session")
def checkpoint(workspace: Path) -> Path:
    """Of a run of two steps, after which the averaged weights are not the last ones."""
    options = ("trainer.max_steps=2", "datamodule.val_shards=null", "module.optimizer.lr=0.01")
    run(latent(workspace, workspace / "run", *options))
    return workspace / "run" / "checkpoints" / "last.ckpt"
