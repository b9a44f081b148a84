"""Upsamplers through the real command: default callbacks, resume, export, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from runs import load_last, read_metrics, run, shared
from spatext.callbacks.scene_grid import SceneGrid
from spatext.modules.networks.clip import Clip
from spatext.modules.networks.upsampler import UpsamplerNet
from tiny import EMBED_DIM, SIZE
from tiny_karlo import FACTOR, load_pixel_backbone
from tiny_runs import make_trainer
from tiny_upsampler import TINY_UPSAMPLER, make_module, make_net

NUM_STEPS, STOPPED_AT = 4, 2


def tiny(workspace: Path, run_dir: Path, *overrides: str) -> list[str]:
    return [
        "experiment=upsampler_tiny",
        *shared(workspace, run_dir),
        *TINY_UPSAMPLER,
        f"module.lr_scheduler.num_steps={NUM_STEPS}",
        "trainer.log_every_n_steps=1",
        f"trainer.check_val_every_n_epoch={STOPPED_AT}",
        *overrides,
    ]


@pytest.fixture(scope="module")
def whole(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not stopped."""
    run_dir = tmp_path_factory.mktemp("whole")
    run(tiny(workspace, run_dir, f"trainer.max_steps={NUM_STEPS}", "callbacks.export.half=false"))
    return run_dir


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_not_stopped(
    workspace: Path, whole: Path, tmp_path: Path
) -> None:
    for steps in (STOPPED_AT, NUM_STEPS):
        run(tiny(workspace, tmp_path, "resume=true", f"trainer.max_steps={steps}"))
    found, expected = load_last(tmp_path), load_last(whole)
    for part in ("current_model_state", "state_dict"):
        assert found[part].keys() == expected[part].keys()
        assert all(torch.equal(found[part][name], expected[part][name]) for name in found[part])
    assert found["PanopticDataModule"] == expected["PanopticDataModule"]
    before, after = (
        read_metrics(tmp_path, name)["train/loss"] for name in ("metrics-1.csv", "metrics.csv")
    )
    assert before | after == read_metrics(whole)["train/loss"]
    assert len(read_metrics(whole)["throughput/samples_per_second"]) == 1


def test_what_is_exported_upsamples_for_a_decoder(karlo: Path, whole: Path) -> None:
    net = UpsamplerNet.from_pretrained(str(whole / "export"), FACTOR)
    average = load_last(whole)["state_dict"]
    assert {f"net.{name}" for name in net.state_dict()} == average.keys()
    for name, weight in net.state_dict().items():
        assert_close(weight, average[f"net.{name}"], rtol=0, atol=0)
    assert net.embed_dim == 0
    assert net.scale == load_pixel_backbone(karlo).factor


@pytest.mark.slow
def test_published_weights_are_trained_further_with_st(
    workspace: Path, karlo: Path, tmp_path: Path
) -> None:
    """By the overrides that conf/module/upsampler.yaml names."""
    target = "spatext.modules.networks.upsampler.UpsamplerNet.from_pretrained"
    clip = f"{{_target_: spatext.modules.networks.clip.Clip, name: 'local-dir:{karlo}/clip'}}"
    options = [
        f"module.net._target_={target}",
        f"+module.net.path={karlo}",
        *("~module.net.unet", "~module.net.scheduler"),
        f"module.net.embed_dim={EMBED_DIM}",
        f"module.clip={clip}",
        "datamodule.segmenter=stored",
        "trainer.max_steps=2",
    ]
    tiny_unet = [option for option in tiny(workspace, tmp_path) if ".unet." not in option]
    module = run([*tiny_unet, *options])["module"]
    published = UpsamplerNet.from_pretrained(str(karlo), FACTOR)
    weight = module.net.unet.conv_in.weight
    assert weight.shape[1] == 6 + EMBED_DIM
    assert not torch.equal(weight[:, :6], published.unet.conv_in.weight)
    exported = UpsamplerNet.from_pretrained(str(tmp_path / "export"), FACTOR)
    assert exported.embed_dim == EMBED_DIM
    for found, expected in zip(
        exported.last.parameters(), published.last.parameters(), strict=True
    ):
        assert_close(found, expected.half().float(), rtol=0, atol=0)
    assert load_last(tmp_path)["embeddings"]["embed_dim"] == EMBED_DIM


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["module.crop=32"], "module.crop: found 32, expected at most 16, the shorter side"),
        (
            ["module.crop=null", "module.net.scale=3"],
            r"datamodule.image_size: found 16, expected a multiple of 6 for this network",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(
    workspace: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tiny(workspace, tmp_path, *overrides))


class Encoded:
    """All of a trainer and its datamodule that `setup` asks for."""

    def __init__(self, *kinds: str) -> None:
        self.encoded_kinds, self.datamodule = kinds, self


@pytest.mark.parametrize("kind", ["moments", "text", "embeds"])
def test_cached_encodings_are_refused(kind: str) -> None:
    module: Any = make_module()
    module._trainer = Encoded(kind)
    with pytest.raises(ValueError, match=rf"datamodule\.encodings\.{kind}: found true, expected"):
        module.setup("fit")


def test_st_without_segments_is_refused(base: Path) -> None:
    """As experiment=upsampler_256 is: it reads none."""
    clip = Clip(f"local-dir:{base / 'clip'}")
    module: Any = make_module(make_net(embed_dim=EMBED_DIM), clip=clip)
    module._trainer = Encoded()
    module.trainer.segmenter = None
    message = f"^datamodule.segmenter: found null, expected one: .* is {EMBED_DIM}, so that ST"
    with pytest.raises(ValueError, match=message):
        module.setup("fit")
    module.trainer.segmenter = "stored"
    module.setup("fit")


def test_pictures_of_scenes_are_refused(tmp_path: Path) -> None:
    grid = SceneGrid([], str(tmp_path), size=SIZE)
    with pytest.raises(ValueError, match="found module Upsampler, which paints no scenes"):
        grid.setup(make_trainer(tmp_path), make_module(), "fit")
