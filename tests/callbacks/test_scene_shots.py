"""Samples that several processes paint together, in bounded batches."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import distributed, multiprocessing

from spatext.callbacks.scene_grid import SceneGrid
from spatext.callbacks.scene_shots import evaluating, paint_shared
from spatext.callbacks.tracking import Tracker
from spatext.modules.sampling_options import Sampling
from spatext.modules.spatext import SpaText
from tiny import SIZE, load_spatext
from wandb_logs import offline_runs

SAMPLING = Sampling(num_steps=2, form="full")
PAIRS = [{"text": 1.0, "segments": 3.0}, {"text": 4.0, "segments": 0.0}]
SCENE = "{prompt: dogs, size: 16, seed: %d, regions: [{text: a red circle, box: [0, 0, %d, 9]}]}"


@pytest.fixture(scope="module")
def folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes, and the weights of a model whose pictures differ after few steps."""
    folder = tmp_path_factory.mktemp("shots")
    (folder / "scenes").mkdir()
    for i in range(3):
        (folder / "scenes" / f"{i}.yaml").write_text(SCENE % (10 * i, 5 + 4 * i))
    model = load_spatext(base)
    with torch.no_grad():
        model.backbone.unet.conv_out.weight *= 4
    torch.save(model.state_dict(), folder / "model.pt")
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes: sums are in the order of the threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def load(base: Path, folder: Path) -> SpaText:
    model = load_spatext(base)
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return model


def make_grid(folder: Path, max_batch: int) -> SceneGrid:
    scenes = str(folder / "scenes")
    options: dict[str, Any] = {"sampling": SAMPLING, "scales": PAIRS, "max_batch": max_batch}
    return SceneGrid(scenes, str(folder / "pictures"), size=SIZE, num_seeds=2, **options)


def paint(model: SpaText, folder: Path, max_batch: int) -> np.ndarray:
    images = paint_shared(model, make_grid(folder, max_batch).batches, SAMPLING)
    assert images is not None
    return np.stack(images)


def meet(rank: int, base: Path, folder: Path) -> list[np.ndarray] | None:
    """What one of two processes does."""
    file = f"file://{folder / 'meet'}"
    distributed.init_process_group("gloo", file, timedelta(minutes=2), rank=rank, world_size=2)
    images = paint_shared(load(base, folder), make_grid(folder, 4).batches, SAMPLING)
    tracker = Tracker("project", str(folder / "tracked"))
    tracker.log_metrics({"rank": float(rank)}, step=0)
    tracker.finalize("success")
    distributed.destroy_process_group()
    return images


def second_main(_: int, base: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    rank_zero_only.rank = 1
    assert meet(1, base, folder) is None


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_wandb")
def test_two_processes_paint_what_one_does(base: Path, folder: Path) -> None:
    """Byte for byte; three batches for two, so the second has less to do. And rank 0 tracks."""
    second = multiprocessing.spawn(second_main, (base, folder), join=False, daemon=True)
    images = meet(0, base, folder)
    assert second.join(timeout=60)
    expected = paint(load(base, folder), folder, 4)
    assert expected.shape == (12, SIZE, SIZE, 3)
    assert images is not None
    np.testing.assert_array_equal(np.stack(images), expected)
    for i, j in ((0, 1), (0, 2), (0, 4)):  # seed, scales, scene
        assert (expected[i] != expected[j]).mean() > 0.1
    (tracked,) = offline_runs(folder / "tracked")  # one for both
    assert tracked.logged("rank") == {0: 0}


def test_batches_are_bounded(base: Path, folder: Path) -> None:
    """A network call has a row per sample and branch of guidance; pictures are the same but for
    rounding."""
    model = load(base, folder)
    sizes: set[int] = set()
    unet = model.backbone.unet
    hook = unet.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
    whole = paint(model, folder, 4)
    assert sizes == {3 * 4}
    sizes.clear()
    split = paint(model, folder, 1)
    hook.remove()
    assert sizes == {3, 2}  # alone, a condition of scale 0 costs no branch
    difference = np.abs(whole.astype(int) - split.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_modes_and_random_state_are_left_alone(base: Path, folder: Path) -> None:
    model = load(base, folder).train()
    model.backbone.unet.conv_in.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    paint(model, folder, 4)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_come_back_after_an_error(base: Path) -> None:
    model = load_spatext(base).train()
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError(model.training)
    assert model.training
    assert model.backbone.unet.training
