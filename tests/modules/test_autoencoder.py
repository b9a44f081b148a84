from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch.testing import assert_close

from spatext.modules.autoencoder import Autoencoder
from spatext.modules.functional.random import Purpose, normal
from tiny import CHANNELS, LATENT_SIZE, LR_SCHEDULER, OPTIMIZER, make_vae
from tiny_runs import make_batch

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
SHAPE = (CHANNELS, LATENT_SIZE, LATENT_SIZE)


def make_module(**options: Any) -> Autoencoder:
    names = ("down_block_types", "up_block_types", "block_out_channels", "norm_num_groups")
    config = {name: make_vae().config[name] for name in names} | {"latent_channels": CHANNELS}
    return Autoencoder(config, optimizer=OPTIMIZER, lr_scheduler=LR_SCHEDULER, **options)


def smooth(*indices: int) -> dict[str, Any]:
    """Pictures that four channels at half the size can hold."""
    batch = make_batch(*indices)
    coarse = torch.nn.functional.avg_pool2d(batch["image"], 8)
    batch["image"] = torch.nn.functional.interpolate(coarse, scale_factor=8.0) * 3
    return batch


def test_the_loss_written_out() -> None:
    module, batch = make_module(kl_weight=0.3, seed=4), make_batch(2, 7, 100)
    posterior = module.model.encode(batch["image"]).latent_dist
    noise = normal(4, Purpose.POSTERIOR, batch["index"], SHAPE)
    output = module.model.decode(posterior.mean + posterior.std * noise).sample
    error = output - batch["image"]
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    expected = error.abs().mean() + error.square().mean() + 0.3 * kl
    assert_close(module.training_step(batch, 0), expected, rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss_and_raises_the_peak() -> None:
    module, batch = make_module(), smooth(*range(8))
    optimizer = OPTIMIZER(module.parameters())
    before = module.validation_step(batch, 0)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.65 * losses[0]
    assert module.validation_step(batch, 0) > before + 3


def test_the_peak_signal_to_noise_ratio() -> None:
    module, batch = make_module(), make_batch(0, 1)
    output = module.model(batch["image"]).sample.clamp(-1, 1)
    # In 0 .. 255, as it is usually told.
    error = ((output - batch["image"]) * 127.5).square().mean(dim=(1, 2, 3))
    expected = (20 * torch.log10(255 / error.sqrt())).mean()
    assert_close(module.validation_step(batch, 0), expected, rtol=1e-4, atol=1e-4)


def test_the_folder_loads_with_latents_of_unit_deviation(tmp_path: Path) -> None:
    module = make_module().eval()
    with torch.no_grad():
        module.model.quant_conv.weight[:CHANNELS] *= 20
    batches = [make_batch(*range(8)), make_batch(*range(8, 16))]
    module.save_pretrained(tmp_path, batches)
    vae = AutoencoderKL.from_pretrained(tmp_path, subfolder="vae")
    image = batches[0]["image"]
    found, expected = (m.encode(image).latent_dist.mean for m in (vae, module.model))
    assert_close(found, expected, rtol=1e-4, atol=1e-4)
    x = torch.randn(2, *SHAPE)
    assert_close(vae.decode(x).sample, module.model.decode(x).sample, rtol=1e-4, atol=1e-5)
    latents = torch.cat([vae.encode(batch["image"]).latent_dist.sample() for batch in batches])
    assert abs(latents.std() * vae.config.scaling_factor - 1) < 0.05
    assert latents.std() > 1.5


def test_a_decoder_is_trained_further_on_the_same_latents(base: Path, tmp_path: Path) -> None:
    given = AutoencoderKL.from_pretrained(base, subfolder="vae")
    options = {"optimizer": OPTIMIZER, "lr_scheduler": LR_SCHEDULER, "decoder_of": str(base)}
    module, batch = Autoencoder({}, **options), make_batch(*range(4))
    optimizer = module.configure_optimizers()["optimizer"]
    for _ in range(2):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    module.eval().save_pretrained(tmp_path, [batch])
    vae = AutoencoderKL.from_pretrained(tmp_path, subfolder="vae")
    assert vae.config.scaling_factor == given.config.scaling_factor
    image, x = batch["image"], torch.randn(2, *SHAPE)
    found, expected = (m.encode(image).latent_dist.parameters for m in (vae, given))
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (vae.decode(x).sample - given.decode(x).sample).abs().mean() > 1e-3
