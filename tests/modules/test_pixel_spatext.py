"""What PixelSpaText adds to SpaText: the image embedding, its null, and the upsamplers it holds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from spatext.modules.functional.random import Purpose, derive_seeds, uniform
from spatext.modules.networks.clip import Clip
from spatext.modules.networks.diffusion_prior import DiffusionPrior
from spatext.modules.networks.priors import IdentityPrior
from spatext.modules.networks.upsampler import UpsamplerNet
from spatext.modules.pixel_spatext import PixelSpaText
from spatext.modules.spatext import LatentSpaText
from tiny import EMBED_DIM, LR_SCHEDULER, OPTIMIZER, SIZE, load_backbone, unchecked
from tiny_karlo import FACTOR, load_pixel_backbone, make_pixel_model
from tiny_runs import make_batch

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
NULL = "backbone.projection.learned_classifier_free_guidance_embeddings"
RATES = {"text": 0.5, "segments": 0.5, "image_embed": 0.5}


def record(model: PixelSpaText) -> list[Any]:
    """The conditions that the denoiser is called with from now on."""
    calls = []
    denoise = model.backbone.denoise

    def recorded(x_t: Tensor, t: Tensor, conditions: Any) -> Tensor:
        calls.append(conditions)
        return denoise(x_t, t, conditions)

    model.backbone.denoise = recorded  # type: ignore[method-assign]
    return calls


def test_the_decoder_sees_the_embedding_of_the_image(karlo: Path) -> None:
    model, batch = make_pixel_model(karlo, drop_rates={}), make_batch(0, 2, 3)
    found = model.conditions(batch)
    for row in range(3):
        pixels = (batch["image"][row : row + 1] + 1) / 2
        expected = model.clip.embed_images(pixels)[0]
        assert_close(found.image_embed[row], expected, rtol=1e-4, atol=1e-4)
    assert (found.image_embed[0] - found.image_embed[1]).abs().max() > 1e-2
    assert torch.equal(found.text, model.backbone.embed_text(batch["caption"]))
    crops = model.clip.embed_images(batch["crops"].flatten(0, 1)).unflatten(0, (3, -1))
    assert_close(found.segments.embeds, crops, rtol=1e-4, atol=1e-4)
    calls = record(model)
    model.training_step(batch, 0)
    assert_close(calls[0].image_embed, found.image_embed, rtol=1e-4, atol=1e-4)


def test_of_a_wide_image_clip_sees_the_middle(karlo: Path) -> None:
    model, batch = make_pixel_model(karlo), make_batch(0, 2)
    wide = nn.functional.pad(batch["image"], (6, 6), value=0.7)
    ids = nn.functional.pad(batch["ids"], (6, 6))
    found = model.conditions(batch | {"image": wide, "ids": ids}).image_embed
    assert_close(found, model.conditions(batch).image_embed, rtol=1e-4, atol=1e-4)


def test_each_condition_is_dropped_by_its_own_coin(karlo: Path) -> None:
    model = make_pixel_model(karlo, drop_rates=RATES, seed=3)
    with torch.no_grad():
        model.get_parameter(NULL).copy_(torch.arange(float(EMBED_DIM)))
    batch = make_batch(*range(1, 64, 2))
    calls = record(model)
    model.training_step(batch, 0)
    found, full, null = calls[0], model.conditions(batch), model.null_conditions()
    assert null.image_embed.tolist() == [[*range(EMBED_DIM)]]
    purposes = (Purpose.DROP_TEXT, Purpose.DROP_SEGMENTS, Purpose.DROP_IMAGE_EMBED)
    coins = torch.stack([uniform(3, purpose, batch["index"]) < 0.5 for purpose in purposes], 1)
    assert len({*map(tuple, coins.tolist())}) == 8
    for row, (text, segments, image_embed) in enumerate(coins.tolist()):
        assert torch.equal(found.text[row], null.text[0] if text else full.text[row])
        expected = null.image_embed[0] if image_embed else full.image_embed[row]
        assert torch.equal(found.image_embed[row], expected)
        assert found.segments.valid[row].any() == (batch["valid"][row].any() and not segments)


def test_the_null_embedding_learns_where_it_is_used_alone(karlo: Path) -> None:
    batch = make_batch(*range(8))
    dropped = uniform(3, Purpose.DROP_IMAGE_EMBED, batch["index"]) < 0.5
    assert 0 < dropped.sum() < 8
    for rows, expected in ((dropped, True), (~dropped, False)):
        model = make_pixel_model(karlo, drop_rates=RATES, seed=3)
        own = [i for i in range(8) if rows[i]]
        model.training_step(make_batch(*own), 0).backward()
        grad = model.get_parameter(NULL).grad  # zeros, not None, which DDP would wait for
        assert grad is not None
        assert grad.any() == expected


def test_a_null_that_no_coin_asks_for_is_kept(karlo: Path) -> None:
    model = make_pixel_model(karlo, drop_rates={"text": 0.1, "image_embed": 0.0})
    model.training_step(make_batch(1, 2), 0).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {NULL}
    assert not model.get_parameter(NULL).requires_grad
    assert NULL in model.state_dict()


class Drawn(nn.Module):
    """A prior that says what it was asked for: its rows hold their seed."""

    stochastic = True

    def forward(self, text: Any, seeds: Tensor) -> Tensor:
        return text.embeds + (seeds % 2**20)[:, None].float()


def paint(model: PixelSpaText, prompts: list[str], seeds: list[int]) -> Any:
    ids = torch.ones(len(prompts), SIZE, SIZE, dtype=torch.uint8)
    texts = [[prompt] for prompt in prompts]
    return model.scene_conditions(prompts, ids, texts, torch.tensor(seeds))


def test_the_prior_draws_the_image_embedding_of_a_prompt(karlo: Path) -> None:
    model = make_pixel_model(karlo, prior=Drawn())
    prompts = ["two dogs", "a blue sea", "two dogs", "two dogs"]
    found = paint(model, prompts, [7, 7, 8, 7]).image_embed
    assert found.shape == (4, EMBED_DIM)
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[2])
    # The embedding of the prompt, and a number that is the image's own, not its region's.
    numbers = (found - model.clip.embed_texts(prompts)).round()
    own = derive_seeds(torch.tensor([7, 7, 8, 7]), Purpose.IMAGE_SEED, 1)
    assert torch.equal(numbers, (own % 2**20).float().expand_as(numbers))
    regions = paint(model, prompts, [7, 7, 8, 7]).segments.embeds[:, 0]
    assert ((found - regions).abs() > 1).all()
    for row, seed in ((1, 7), (2, 8)):  # whatever else is in the batch
        fresh = make_pixel_model(karlo, prior=Drawn())
        alone = paint(fresh, prompts[row : row + 1], [seed]).image_embed
        assert_close(alone[0], found[row], rtol=1e-5, atol=0.1)  # of a number of six digits


def test_karlos_own_prior_paints_the_prompt(karlo: Path) -> None:
    prior = DiffusionPrior.from_pretrained(karlo, num_steps=2)
    model = make_pixel_model(karlo, prior=prior)
    found = paint(model, ["two dogs", "a blue sea"], [5, 6]).image_embed
    model.drawn.clear()
    alone = paint(model, ["a blue sea"], [6]).image_embed
    assert_close(alone[0], found[1], rtol=1e-4, atol=1e-4)
    model.drawn.clear()
    assert (paint(model, ["a blue sea"], [7]).image_embed - alone).abs().max() > 1e-2


def upsampler(karlo: Path, scale: int = FACTOR) -> UpsamplerNet:
    return UpsamplerNet.from_pretrained(str(karlo), scale)


def test_upsamplers_are_held_not_owned(karlo: Path) -> None:
    held = upsampler(karlo)
    model = make_pixel_model(karlo, upsamplers=[held])
    plain = make_pixel_model(karlo)
    assert model.upsamplers == (held,)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert plain.upsamplers == ()
    assert not any(p.requires_grad for p in held.parameters())
    model.double()
    assert {p.dtype for p in held.parameters()} == {torch.float64}
    model.train()
    assert not held.training
    model.use_upsamplers([])
    assert model.upsamplers == ()


@pytest.mark.parametrize(("scales", "found"), [((4,), "4"), ((2, 2), "2 x 2")])
def test_scales_that_miss_the_image_are_refused(
    karlo: Path, scales: tuple[int, ...], found: str
) -> None:
    message = (
        rf"^module\.upsamplers: found scales {found}, expected a product of 2, which is "
        r"module\.backbone\.factor$"
    )
    with pytest.raises(ValueError, match=message):
        make_pixel_model(karlo, upsamplers=[upsampler(karlo, scale) for scale in scales])


def test_a_decoder_for_another_clip_is_refused(karlo: Path) -> None:
    """Its folder has a projection of its own width, which ST need not have."""
    model = make_pixel_model(karlo)
    wider = nn.Parameter(torch.zeros(EMBED_DIM + 1))
    model.backbone.projection.learned_classifier_free_guidance_embeddings = wider
    message = (
        rf"^module\.clip: found embeddings of width {EMBED_DIM} of .*, expected {EMBED_DIM + 1}"
    )
    options = {"optimizer": OPTIMIZER, "lr_scheduler": LR_SCHEDULER, "drop_rates": {}}
    with pytest.raises(ValueError, match=message):
        PixelSpaText(model.backbone, model.clip, IdentityPrior(), **options)


def test_a_checkpoint_knows_its_embeddings(karlo: Path) -> None:
    checkpoint: dict[str, Any] = {}
    model = make_pixel_model(karlo, scale="unit")
    model.on_save_checkpoint(checkpoint)
    assert checkpoint["embeddings"] == {**model.clip.fingerprint}
    with pytest.raises(ValueError, match=r"^checkpoint: scale .* is 'unit', expected 'raw'"):
        make_pixel_model(karlo).on_load_checkpoint(checkpoint)


def test_null_conditions_are_those_of_dropout(karlo: Path) -> None:
    model, batch = make_pixel_model(karlo, drop_rates=dict.fromkeys(RATES, 1.0)), make_batch(1, 2)
    calls = record(model)
    found = model.training_step(batch, 0)
    null = model.null_conditions().repeat(2)
    assert torch.equal(calls[0].text, null.text)
    assert torch.equal(calls[0].image_embed, null.image_embed)
    assert_close(found, model.loss(batch, null, 0), rtol=1e-4, atol=1e-5)
    other = replace(null, image_embed=null.image_embed + 3)
    assert abs(model.loss(batch, other, 0) - found) > 1e-4


def test_module_and_backbone_of_two_kinds_are_refused(karlo: Path, base: Path) -> None:
    parts: dict[str, Any] = {"clip": Clip(f"local-dir:{karlo / 'clip'}"), "prior": IdentityPrior()}
    options: dict[str, Any] = {"optimizer": OPTIMIZER, "lr_scheduler": LR_SCHEDULER}
    latent: Any = load_backbone(base)
    refusal = r"module\.backbone: found a LatentBackbone, expected a PixelBackbone"
    with unchecked(), pytest.raises(ValueError, match=refusal):
        PixelSpaText(latent, **parts, drop_rates={}, **options)
    pixel = load_pixel_backbone(karlo)
    with pytest.raises(ValueError, match=r"module\._target_: found LatentSpaText, expected Pixel"):
        LatentSpaText(pixel, **parts, drop_rates={}, **options)
