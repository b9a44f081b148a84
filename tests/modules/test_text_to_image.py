import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.testing import assert_close

from spatext.modules.functional.conditions import Conditions
from spatext.modules.functional.random import Purpose, normal, randint
from spatext.modules.functional.st import Segments
from spatext.modules.networks.latent import LatentBackbone
from spatext.modules.text_to_image import TextToImage
from tiny import CHANNELS, EMBED_DIM, LATENT_SIZE, LR_SCHEDULER, OPTIMIZER, SIZE
from tiny_runs import make_batch

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


def load(base: Path, rate: float = 0.0) -> TextToImage:
    return TextToImage(
        LatentBackbone.from_pretrained(str(base), embed_dim=0),
        optimizer=OPTIMIZER,
        lr_scheduler=LR_SCHEDULER,
        drop_rates={"text": rate},
        seed=2,
    )


def test_it_trains_the_base_unet_on_captions(base: Path) -> None:
    model, batch = load(base), make_batch(3, 1, 2**33)
    shape = (CHANNELS, LATENT_SIZE, LATENT_SIZE)
    noise, posterior = (
        normal(2, purpose, batch["index"], shape) for purpose in (Purpose.NOISE, Purpose.POSTERIOR)
    )
    t = randint(2, Purpose.TIMESTEP, batch["index"], 1000)
    x_0 = model.backbone.encode(batch["image"], posterior)
    x_t = DDPMScheduler.from_pretrained(base, subfolder="scheduler").add_noise(x_0, noise, t)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    prediction = unet(x_t, t, model.backbone.embed_text(batch["caption"])).sample
    expected = (prediction - noise).square().mean()
    assert_close(model.training_step(batch, 0), expected, rtol=1e-4, atol=1e-5)


def test_dropping_leaves_the_empty_prompt(base: Path) -> None:
    model, batch = load(base, rate=1.0), make_batch(3, 1)
    null = model.null_conditions()
    assert torch.equal(null.text, model.backbone.embed_text([""]))
    assert not null.segments.valid.any()
    assert not model.conditions(batch).segments.valid.any()
    expected = model.loss(batch, null.repeat(2), 2)
    assert_close(model.training_step(batch, 0), expected, rtol=1e-4, atol=1e-5)
    assert abs(load(base).training_step(batch, 0) - expected) > 1e-3


def test_all_and_only_the_unet_is_trained(base: Path) -> None:
    model = load(base)
    model.training_step(make_batch(1, 2), 0).backward()
    assert {*model.parameters()} == {*model.backbone.unet.parameters()}
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("new_weights", ["zero", "he"])
def test_spatext_starts_from_what_was_saved(base: Path, tmp_path: Path, new_weights: str) -> None:
    model = load(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    folder = shutil.copytree(base, tmp_path / "base")
    for part in ("unet", "scheduler"):
        shutil.rmtree(folder / part)
    model.save_pretrained(folder, [])
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    assert_close(dict(unet.state_dict()), dict(model.backbone.unet.state_dict()), rtol=0, atol=0)
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert_close(scheduler.alphas_cumprod, model.backbone.alphas_cumprod, rtol=1e-5, atol=0)

    widened = LatentBackbone.from_pretrained(
        str(folder), embed_dim=EMBED_DIM, new_weights=new_weights
    )
    assert widened.scheduler_config["steps_offset"] == 1
    x_t, t = torch.randn(2, CHANNELS, LATENT_SIZE, LATENT_SIZE), torch.tensor([5, 800])
    ids = torch.ones(2, SIZE, SIZE, dtype=torch.uint8)
    valid = torch.ones(2, 1, dtype=torch.bool)
    text = widened.embed_text(["two dogs", ""])
    painted = Conditions(text, Segments(ids, torch.randn(2, 1, EMBED_DIM), valid))
    found, expected = widened.denoise(x_t, t, painted), unet(x_t, t, text).sample
    if new_weights == "zero":
        assert_close(found, expected, rtol=1e-4, atol=1e-5)
    else:
        assert (found - expected).abs().mean() > 1e-2
