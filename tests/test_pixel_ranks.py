"""A decoder whose text is trained with it, and an upsampler that sees ST: two processes of a
data-parallel run are one, and no parameter is left waiting for a gradient."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch.testing import assert_close

from ranks import DDP, run_two
from runs import glide, load_last, read_metrics, run, shared
from tiny import EMBED_DIM
from tiny_upsampler import TINY_UPSAMPLER

NUM_STEPS = 3  # DDP finds out about a parameter that was left out at the second
MakeOptions = Callable[[Path, Path, Path], list[str]]


def upsampler(workspace: Path, karlo: Path, run_dir: Path) -> list[str]:
    """With all that it may learn: a variance, and ST."""
    clip = f"{{_target_: spatext.modules.networks.clip.Clip, name: 'local-dir:{karlo}/clip'}}"
    return [
        "experiment=upsampler_tiny",
        *shared(workspace, run_dir),
        *TINY_UPSAMPLER,
        "callbacks.export=null",
        "module.net.scheduler.variance_type=learned_range",
        f"module.net.embed_dim={EMBED_DIM}",
        f"module.clip={clip}",
        "module.drop_rate=0.5",
        "datamodule.segmenter=stored",
    ]


def train(make: MakeOptions, workspace: Path, karlo: Path, run_dir: Path, *more: str) -> None:
    own = ("trainer.log_every_n_steps=1", "trainer.accumulate_grad_batches=1")
    steps = (f"trainer.max_steps={NUM_STEPS}", "datamodule.val_shards=null")
    run([*make(workspace, karlo, run_dir), *own, *steps, *more])


@pytest.mark.slow
@pytest.mark.parametrize("make", [glide, upsampler], ids=["glide", "upsampler"])
def test_two_processes_learn_what_one_does(
    workspace: Path, karlo: Path, tmp_path: Path, make: MakeOptions
) -> None:
    train(make, workspace, karlo, tmp_path / "one")
    options = (*DDP, "datamodule.batch_size=2")
    run_two(train, make, workspace, karlo, tmp_path / "two", *options)
    expected, found = (load_last(tmp_path / name) for name in ("one", "two"))
    # AdamW divides a gradient by its own size: where that is nearly zero, rounding shows.
    for part in ("current_model_state", "state_dict"):  # the weights, and their average
        assert_close(dict(found[part]), dict(expected[part]), rtol=1e-4, atol=1e-4)
    assert_close(found["optimizer_states"], expected["optimizer_states"], rtol=1e-4, atol=1e-5)
    one, two = (read_metrics(tmp_path / name)["train/grad_norm"] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)
    assert len(one) == NUM_STEPS
