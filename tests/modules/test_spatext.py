import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from diffusers import DDPMScheduler
from pytorch_lightning.loggers import CSVLogger
from torch.testing import assert_close

from spatext.modules.functional.conditions import Conditions
from spatext.modules.functional.random import Purpose, normal, randint, uniform
from spatext.modules.functional.st import Segments, st_map
from spatext.modules.spatext import SpaText
from tables import read_rows
from tiny import CHANNELS, LATENT_SIZE, NUM_SEGMENTS, load_backbone, load_spatext, write_scheduler
from tiny_runs import make_batch, make_loader, make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
SHAPE = (CHANNELS, LATENT_SIZE, LATENT_SIZE)
SURE, NEVER = {"text": 1.0, "segments": 1.0}, {"text": 0.0, "segments": 0.0}


def rows_of(batch: dict[str, Any], row: int) -> dict[str, Any]:
    return {name: value[row : row + 1] for name, value in batch.items()}


def record(model: SpaText) -> list[tuple[torch.Tensor, torch.Tensor, Conditions]]:
    """What the denoiser is called with from now on."""
    calls = []
    denoise = model.backbone.denoise

    def recorded(x_t: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        calls.append((x_t, t, conditions))
        return denoise(x_t, t, conditions)

    model.backbone.denoise = recorded
    return calls


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("loss_weighting", ["none", "min_snr"])
def test_the_loss_is_that_of_diffusers_on_the_addressed_draws(
    base: Path, tmp_path: Path, prediction_type: str, loss_weighting: str
) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    write_scheduler(folder, prediction_type)
    model = load_spatext(folder, seed=5, loss_weighting=loss_weighting, drop_rates=NEVER)
    batch = make_batch(3, 1, 1000, 2**33 + 7)
    found = model.training_step(batch, 0)

    scheduler, backbone = (
        DDPMScheduler.from_pretrained(folder, subfolder="scheduler"),
        model.backbone,
    )
    posterior = backbone.vae.net.encode(batch["image"]).latent_dist
    x_0 = posterior.mean + posterior.std * normal(5, Purpose.POSTERIOR, batch["index"], SHAPE)
    x_0 = x_0 * backbone.vae.net.config.scaling_factor
    noise = normal(5, Purpose.NOISE, batch["index"], SHAPE)
    t = randint(5, Purpose.TIMESTEP, batch["index"], 1000)
    x_t = scheduler.add_noise(x_0, noise, t)
    velocity = scheduler.get_velocity(x_0, noise, t)
    target = {"epsilon": noise, "v_prediction": velocity, "sample": x_0}[prediction_type]
    crops = batch["crops"].flatten(0, 1)
    embeds = model.clip.embed_images(crops).unflatten(0, (4, NUM_SEGMENTS))
    # Here the map is built, and the first convolution sees it as an image.
    segments = Segments(batch["ids"], embeds, batch["valid"])
    unet = load_backbone(folder, st_conv="dense").unet
    unet.load_state_dict(backbone.unet.state_dict())
    with unet.conv_in.painting(segments):
        prediction = unet(x_t, t, backbone.embed_text(batch["caption"])).sample
    a_t = scheduler.alphas_cumprod[t]
    weight = torch.ones(4)
    if loss_weighting == "min_snr":
        snr = a_t / (1 - a_t)
        weight = snr.clamp(max=5)
        weight /= {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction_type]
    expected = (weight * (prediction - target).square().mean(dim=(1, 2, 3))).mean()
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(set(t.tolist())) == 4


def test_the_conditions_are_captions_and_crops_as_they_are(base: Path) -> None:
    model, batch = load_spatext(base), make_batch(0, 2, 3)
    conditions = model.conditions(batch)
    assert torch.equal(conditions.text, model.backbone.embed_text(batch["caption"]))
    for row in range(3):
        expected = model.clip.embed_images(batch["crops"][row])
        assert_close(conditions.segments.embeds[row], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(conditions.segments.ids, batch["ids"])
    assert torch.equal(conditions.segments.valid, batch["valid"])


def test_training_passes_the_conditions_on(base: Path) -> None:
    model, batch = load_spatext(base, drop_rates=NEVER), make_batch(1, 2, 3)
    calls = record(model)
    model.training_step(batch, 0)
    expected = model.conditions(batch)
    found = calls[0][2]
    assert torch.equal(found.text, expected.text)
    size = (LATENT_SIZE, LATENT_SIZE)
    assert torch.equal(st_map(found.segments, size), st_map(expected.segments, size))


def test_what_a_sample_trains_on_does_not_depend_on_its_batch(base: Path) -> None:
    model = load_spatext(base, drop_rates={"text": 0.5, "segments": 0.5})
    batch = make_batch(5, 0, 11, 6)
    calls = record(model)
    together = model.training_step(batch, 0)
    alone = [model.training_step(rows_of(batch, row), 9) for row in range(4)]
    assert_close(together, torch.stack(alone).mean(), rtol=1e-4, atol=1e-4)
    x_t, t, conditions = calls[0]
    for row, (x_t_row, t_row, conditions_row) in enumerate(calls[1:]):
        assert_close(x_t[row], x_t_row[0], rtol=1e-4, atol=1e-4)
        assert t[row] == t_row[0]
        assert_close(conditions.text[row], conditions_row.text[0], rtol=1e-4, atol=1e-4)
        assert torch.equal(conditions.segments.valid[row], conditions_row.segments.valid[0])


def test_each_condition_is_dropped_by_its_own_coin(base: Path) -> None:
    rates = {"text": 0.4, "segments": 0.7}
    model = load_spatext(base, drop_rates=rates, seed=3)
    batch = make_batch(*range(1, 16, 2))
    calls = record(model)
    model.training_step(batch, 0)
    found, full, null = calls[0][2], model.conditions(batch), model.null_conditions()
    text = uniform(3, Purpose.DROP_TEXT, batch["index"]) < 0.4
    segments = uniform(3, Purpose.DROP_SEGMENTS, batch["index"]) < 0.7
    assert len({*zip(text.tolist(), segments.tolist(), strict=True)}) == 4
    for row in range(len(text)):
        expected = null.text[0] if text[row] else full.text[row]
        assert torch.equal(found.text[row], expected)
        kept = batch["valid"][row] & ~segments[row]
        assert torch.equal(found.segments.valid[row], kept)


def test_dropping_all_is_the_null_of_sampling(base: Path) -> None:
    model, batch = load_spatext(base, drop_rates=SURE), make_batch(1, 2, 3)
    calls = record(model)
    found = model.training_step(batch, 0)
    null = model.null_conditions()
    assert torch.equal(null.text, model.backbone.embed_text([""]))
    assert not null.segments.valid.any()
    assert_close(found, model.loss(batch, null.repeat(3), 0), rtol=1e-4, atol=1e-5)
    assert torch.equal(calls[0][2].text, null.text.expand(3, -1, -1))
    assert not st_map(calls[0][2].segments, (4, 4)).any()
    full = load_spatext(base, drop_rates=NEVER).training_step(batch, 0)
    assert abs(found - full) > 1e-3


def test_validation_has_its_own_noise_and_drops_nothing(base: Path) -> None:
    model, batch = load_spatext(base, drop_rates=SURE, seed=7), make_batch(1, 2, 3)
    calls = record(model)
    model.training_step(batch, 0)
    found = model.validation_step(batch, 0)
    assert_close(found, model.loss(batch, model.conditions(batch), 8), rtol=1e-4, atol=1e-5)
    (x_t, t, _), (val_x_t, val_t, val_conditions) = calls[:2]
    assert torch.equal(val_t, randint(8, Purpose.TIMESTEP, batch["index"], 1000))
    assert not torch.equal(val_t, t)
    assert (val_x_t - x_t).abs().mean() > 0.1
    assert torch.equal(val_conditions.segments.valid, batch["valid"])


class Losses(pl.Callback):
    """The loss of each batch of validation, and the step at which it ran."""

    def __init__(self) -> None:
        self.found: dict[int, list[torch.Tensor]] = {}

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.found.setdefault(trainer.global_step, []).append(args[1])


def test_validation_does_not_depend_on_the_step(base: Path, tmp_path: Path) -> None:
    losses = Losses()
    trainer = make_trainer(tmp_path, max_epochs=2, callbacks=[losses])
    model = load_spatext(base, optimizer=lambda params: torch.optim.SGD(params, lr=0.0))
    trainer.fit(model, make_loader(4), make_loader(4))
    assert list(losses.found) == [2, 4]
    assert_close(losses.found[2], losses.found[4], rtol=0, atol=0)
    assert abs(losses.found[2][0] - losses.found[2][1]) > 1e-4
    mean = torch.stack(losses.found[4]).mean()
    assert_close(trainer.callback_metrics["val/loss"], mean, rtol=1e-4, atol=1e-5)


def test_the_painting_is_measured_at_the_first_step(base: Path, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="logs")
    trainer = make_trainer(tmp_path, max_steps=2, limit_val_batches=0, logger=logger)
    model = load_spatext(base, drop_rates=SURE)
    batch = make_batch(0, 1)
    x_0 = model.backbone.encode(batch["image"])
    segments = model.conditions(batch).segments
    expected = [std.item() for std in model.backbone.first_layer_std(x_0, segments)]
    trainer.fit(model, make_loader(4))
    first = read_rows(tmp_path / "logs" / "metrics.csv")[0]
    assert first["step"] == "0"
    names = ("step_0/base_preactivation", "step_0/st_preactivation")
    assert_close([float(first[name]) for name in names], expected, rtol=1e-4, atol=1e-5)


def test_only_the_unet_receives_gradients(base: Path) -> None:
    model = load_spatext(base)
    model.training_step(make_batch(1, 2, 3), 0).backward()
    names = {name for name, p in model.named_parameters() if p.grad is not None}
    assert names == {f"backbone.unet.{name}" for name, _ in model.backbone.unet.named_parameters()}
    frozen = (model.clip.model.net, model.backbone.vae.net, model.backbone.text_encoder.net)
    assert not any(p.grad is not None for net in frozen for p in net.parameters())
    optimized = model.configure_optimizers()["optimizer"].param_groups[0]["params"]
    assert {*optimized} == {*model.backbone.unet.parameters()}
    assert all(name.startswith("backbone.unet.") for name in model.state_dict())
