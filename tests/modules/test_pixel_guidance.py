"""The third condition of a decoder that sees a CLIP embedding of the whole image."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from painted import FREE, NUM, everything
from painted import paint as paint_eight
from pixel_scenes import IDS, LOCAL, PROMPTS, SEEDS, load, paint
from spatext.modules.functional.conditions import Conditions
from spatext.modules.functional.sampling import initial_noise
from spatext.modules.painting import null_conditions
from spatext.modules.pixel_spatext import PixelSpaText
from spatext.modules.sampling_options import Sampling, make_scheduler
from tiny import LATENT_SIZE

ONE = {"num_steps": 1, "append_texts": False, "latent": True}
X_T = initial_noise(SEEDS, (3, LATENT_SIZE, LATENT_SIZE))
CLOSE = {"rtol": 1e-3, "atol": 2e-3}


@pytest.fixture(scope="module")
def model(karlo: Path) -> PixelSpaText:
    return load(karlo)


@pytest.fixture(scope="module")
def eps(model: PixelSpaText) -> dict[str, Tensor]:
    """Mean channels at the first of one step, of the conditions that the names say."""
    conditions = model.scene_conditions(PROMPTS, IDS, LOCAL, SEEDS)
    null = model.null_conditions()
    t = torch.full((3,), 999)
    spoken = ("", "text", "segments", "image_embed", "text image_embed")

    def ask(names: str) -> Tensor:
        off = torch.zeros(3, dtype=torch.bool)
        keep = {name: off for name in conditions.names if name not in names.split()}
        given: Conditions = conditions.where(keep, null)
        return model.backbone.denoise(X_T, t, given)[:, :3]

    with torch.no_grad():
        return {names: ask(names) for names in spoken}


def stepped(model: PixelSpaText, eps: Tensor) -> Tensor:
    scheduler = make_scheduler(Sampling(num_steps=1), model.backbone.scheduler_config)
    scheduler.set_timesteps(1)
    step = scheduler.step(eps, scheduler.timesteps[0], X_T, use_clipped_model_output=True)
    return step.prev_sample


def test_the_image_embedding_goes_with_the_text_or_stands_alone(
    model: PixelSpaText, eps: dict[str, Tensor]
) -> None:
    none = eps[""]

    def found(**scales: float) -> Tensor:
        return paint(model, form="full", scales=scales, **ONE)

    expected = none + 0.2 * (eps["text image_embed"] - none) + 0.3 * (eps["segments"] - none)
    assert_close(found(text=0.2, segments=0.3), stepped(model, expected), **CLOSE)
    expected = none + 0.2 * (eps["text"] - none) + 0.4 * (eps["image_embed"] - none)
    assert_close(found(text=0.2, image_embed=0.4), stepped(model, expected), **CLOSE)
    alone = found(text=0.2, segments=0.3, image_embed=0.0)
    expected = none + 0.2 * (eps["text"] - none) + 0.3 * (eps["segments"] - none)
    assert_close(alone, stepped(model, expected), **CLOSE)
    assert (alone - found(text=0.2, segments=0.3)).abs().max() > 5e-3


def test_outside_the_interval_it_speaks_where_it_is_asked(model: PixelSpaText) -> None:
    """One branch, of all that has a scale."""
    options: dict[str, Any] = {"form": "full", "guidance_interval": (0.0, 0.0), **ONE}
    both = paint(model, scales={"text": 3.0, "segments": 3.0}, **options)
    assert torch.equal(both, paint(model, scale=3.0, **(options | {"form": "fast"})))
    silent = paint(model, scales={"text": 3.0, "segments": 3.0, "image_embed": 0.0}, **options)
    assert (silent - both).abs().max() > 1e-3


def test_what_is_not_wanted_has_no_image_embedding_of_its_own(model: PixelSpaText) -> None:
    found = null_conditions(model, ["a blue circle", "", ""])
    assert model.backbone.null_image_embed is not None
    assert found.image_embed is not None
    assert torch.equal(found.image_embed, model.backbone.null_image_embed.expand(3, -1))
    assert (found.text[0] - found.text[1]).abs().max() > 1e-3


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "UnCLIPScheduler"])
def test_all_that_a_scene_may_ask_for_at_once(model: PixelSpaText, scheduler: str) -> None:
    options: dict[str, Any] = {"form": "full", "scheduler": scheduler, "num_steps": 3}
    _, together = paint_eight(model, range(NUM), everything(), **options)
    for part in ([1], [2, 5]):
        _, images = paint_eight(model, part, everything(), **options)
        assert_close(images, together[part], rtol=1e-3, atol=5e-3)
    plain, _ = paint_eight(model, [2], **options)
    found, _ = paint_eight(model, [2], everything(), **options)
    assert_close(found[-1], plain[-1], **CLOSE)  # image 2 asks for nothing
    free = (FREE | (torch.arange(NUM) % 2 == 0)[:, None, None])[:, None].expand_as(together)
    assert (~free).any()
    assert together.abs().max() <= 1
