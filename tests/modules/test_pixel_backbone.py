import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from spatext.modules.functional.conditions import Conditions, drop_conditions
from spatext.modules.functional.packed_text import pack_text, unpack_text
from spatext.modules.functional.resampling import downsample, upsample
from spatext.modules.functional.st import Segments
from spatext.modules.networks.backbone import Backbone
from spatext.modules.networks.pixel import PixelBackbone
from tiny import EMBED_DIM, LATENT_SIZE, MAX_LENGTH, SIZE, TEXTS
from tiny_karlo import FACTOR, NUM_CONTEXT_TOKENS, load_pipeline, load_pixel_backbone

X_0 = (2, 3, LATENT_SIZE, LATENT_SIZE)
STEPS = torch.tensor([3, 700])
LONG = " ".join(["red"] * 2 * MAX_LENGTH)


@pytest.fixture(scope="module")
def backbone(karlo: Path) -> PixelBackbone:
    """Nothing may be changed in it."""
    return load_pixel_backbone(karlo)


def no_segments() -> Segments:
    return Segments.null(2, 1, EMBED_DIM, (1, 1))


def some_segments() -> Segments:
    ids = torch.randint(0, 3, (2, SIZE, SIZE), dtype=torch.uint8)
    return Segments(ids, torch.randn(2, 2, EMBED_DIM), torch.ones(2, 2, dtype=torch.bool))


def conditions(backbone: PixelBackbone, segments: Segments | None = None) -> Conditions:
    text = backbone.embed_text(TEXTS[:2])
    return Conditions(text, segments or no_segments(), torch.randn(2, EMBED_DIM))


def test_sizes_and_kind(backbone: PixelBackbone) -> None:
    assert isinstance(backbone, Backbone)
    assert (backbone.factor, backbone.multiple, backbone.channels) == (FACTOR, 2 * FACTOR, 3)
    assert (backbone.embed_dim, backbone.learned_variance) == (EMBED_DIM, True)
    assert backbone.prediction_type == "epsilon"
    assert backbone.scheduler_config["variance_type"] == "learned_range"
    assert backbone.scheduler_config["clip_sample"] is True


def test_x_0_is_the_image_made_smaller(backbone: PixelBackbone) -> None:
    image = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    x_0 = backbone.encode(image)
    assert x_0.shape == X_0
    assert_close(x_0, downsample(image, FACTOR), rtol=0, atol=0)
    loud = 2 * torch.randn(X_0)
    expected = upsample(loud, FACTOR)
    assert_close(backbone.decode(loud), expected.clamp(-1, 1), rtol=0, atol=0)
    assert backbone.decode(loud).max() == 1 < expected.max()


def test_what_cannot_be_cached_is_refused(karlo: Path, backbone: PixelBackbone) -> None:
    with pytest.raises(ValueError, match=r"^datamodule.encodings.moments: found true"):
        backbone.draw(torch.randn(2, 2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"^datamodule.encodings.moments: found true"):
        backbone.fingerprint("moments")
    assert backbone.fingerprint("text")["max_length"] == MAX_LENGTH
    with pytest.raises(ValueError, match=r"^datamodule.encodings.text: found true, exp"):
        load_pixel_backbone(karlo, train_text=True).fingerprint("text")


def test_text_is_that_of_transformers(karlo: Path, backbone: PixelBackbone) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(karlo / "tokenizer")
    encoder = CLIPTextModelWithProjection.from_pretrained(karlo / "text_encoder").eval()
    captions = [TEXTS[0], LONG, "", TEXTS[0]]
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    expected = encoder(tokens.input_ids)
    text = backbone.embed_text(captions)
    assert text.shape == (4, 1 + MAX_LENGTH, EMBED_DIM)
    pooled, states, mask = unpack_text(text)
    assert_close(mask, tokens.attention_mask.bool())
    assert mask.sum(dim=1).tolist()[1:3] == [MAX_LENGTH, 2]
    assert_close(pooled, expected.text_embeds, rtol=1e-4, atol=1e-5)
    assert_close(states[mask], expected.last_hidden_state[mask], rtol=1e-4, atol=1e-5)
    assert (states[~mask] == 0).all()
    assert backbone.embed_text([""]) is backbone.embed_text([""])
    assert_close(backbone.embed_text([""]), text[2:3], rtol=1e-4, atol=1e-5)


def test_denoise_is_the_decoder_of_diffusers(karlo: Path, backbone: PixelBackbone) -> None:
    pipeline, x_t = load_pipeline(karlo), torch.randn(X_0)
    image_embed = torch.randn(2, EMBED_DIM)
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    pooled, states, mask = pipeline._encode_prompt(list(TEXTS[:2]), **options)
    context, embedding = pipeline.text_proj(
        image_embeddings=image_embed,
        prompt_embeds=pooled,
        text_encoder_hidden_states=states,
        do_classifier_free_guidance=False,
    )
    expected = pipeline.decoder(
        x_t,
        STEPS,
        encoder_hidden_states=context,
        class_labels=embedding,
        attention_mask=nn.functional.pad(mask, (NUM_CONTEXT_TOKENS, 0), value=True),
    ).sample
    given = Conditions(backbone.embed_text(TEXTS[:2]), no_segments(), image_embed)
    assert expected.shape == (2, 6, LATENT_SIZE, LATENT_SIZE)
    assert_close(backbone.denoise(x_t, STEPS, given), expected, rtol=1e-4, atol=1e-5)


def test_padding_has_no_say(backbone: PixelBackbone) -> None:
    """Whatever its length: with 14 states, and the 2 tokens before them, a context would be as long
    as the 16 cells of a level, which diffusers takes for these cells."""
    x_t, given = torch.randn(X_0), conditions(backbone)
    outputs = []
    for length in (8, MAX_LENGTH, 14, 30):
        padding = length + 1 - given.text.shape[1]
        text = nn.functional.pad(given.text, (0, 0, 0, padding))
        own = Conditions(text, given.segments, given.image_embed)
        outputs.append(backbone.denoise(x_t, STEPS, own))
    assert (given.text[:, 9:] == 0).all()
    for output in outputs[1:]:
        assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)
    filled = given.text.clone()
    filled[:, -1] = 0.01  # a state, no longer padding
    seen = backbone.denoise(x_t, STEPS, Conditions(filled, given.segments, given.image_embed))
    assert (seen - outputs[0]).abs().max() > 1e-3


def test_every_condition_has_a_say(backbone: PixelBackbone) -> None:
    x_t, given = torch.randn(X_0), conditions(backbone, some_segments())
    output = backbone.denoise(x_t, STEPS, given)
    pooled, states, mask = unpack_text(given.text)
    changed = {
        "pooled": Conditions(pack_text(-pooled, states, mask), given.segments, given.image_embed),
        "states": Conditions(pack_text(pooled, -states, mask), given.segments, given.image_embed),
        "segments": Conditions(given.text, no_segments(), given.image_embed),
        "image_embed": Conditions(given.text, given.segments, backbone.null_image_embed[[0, 0]]),
    }
    for name, other in changed.items():
        change = (backbone.denoise(x_t, STEPS, other) - output).abs().amax(dim=(2, 3))
        assert change.min() > 1e-3, name


def gradients(backbone: PixelBackbone, **inputs: Any) -> dict[str, Tensor | None]:
    backbone.zero_grad()
    output = backbone.denoise(inputs["x_t"], STEPS, inputs["conditions"])
    (output * inputs["weight"]).sum().backward()
    return {name: p.grad for name, p in backbone.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [
        {"st_conv": "dense"},
        {"channels_last": False},
        {"gradient_checkpointing": True},
    ],
)
def test_numbers_do_not_depend_on_how(karlo: Path, options: dict[str, Any]) -> None:
    found = []
    x_t, segments, weight = torch.randn(X_0), some_segments(), torch.randn(2, 6, 8, 8)
    for given in ({}, options):
        torch.manual_seed(0)
        backbone = load_pixel_backbone(karlo, **given)
        own = conditions(backbone, segments)
        found.append(gradients(backbone, x_t=x_t, conditions=own, weight=weight))
    null = "projection.learned_classifier_free_guidance_embeddings"
    assert found[0].pop(null) is found[1].pop(null) is None
    assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)
    new = found[0]["unet.conv_in.weight"]
    assert new is not None
    assert new[:, 3:].abs().max() > 1e-3


def test_decoder_and_projection_are_owned(karlo: Path) -> None:
    backbone = load_pixel_backbone(karlo)
    parts = {"unet": backbone.unet, "projection": backbone.projection}
    owned = {f"{part}.{name}" for part, net in parts.items() for name in net.state_dict()}
    assert set(backbone.state_dict()) == owned
    assert {name for name, _ in backbone.named_parameters()} == owned
    assert backbone.unet.training
    assert backbone.projection.training
    backbone.train()
    assert not backbone.text_encoder.net.training
    other = copy.deepcopy(backbone)
    assert other.text_encoder.net is backbone.text_encoder.net
    backbone.to(torch.float64)
    assert backbone.embed_text(["", "a red circle"]).dtype == torch.float64


def test_the_schedule_stays_in_float32(karlo: Path) -> None:
    backbone = load_pixel_backbone(karlo)
    schedule = backbone.alphas_cumprod.clone()
    holder = nn.ModuleList([backbone]).to(torch.bfloat16)
    assert backbone.unet.conv_out.weight.dtype == torch.bfloat16
    assert torch.equal(backbone.alphas_cumprod, schedule)
    assert "0.alphas_cumprod" in dict(holder.named_buffers())
    assert holder.to("meta")[0].alphas_cumprod.device.type == "meta"


def test_the_null_of_the_image_is_learned(karlo: Path) -> None:
    backbone = load_pixel_backbone(karlo)
    learned = backbone.projection.learned_classifier_free_guidance_embeddings
    assert_close(backbone.null_image_embed, learned[None], rtol=0, atol=0)
    assert learned.abs().max() > 0.01
    given = conditions(backbone)
    none = Segments.null(1, 1, EMBED_DIM, (1, 1))
    null = Conditions(backbone.embed_text([""]), none, backbone.null_image_embed)
    dropped = drop_conditions(given, null, {"image_embed": 1.0}, 0, torch.arange(2))
    backbone.denoise(torch.randn(X_0), STEPS, dropped).square().sum().backward()
    assert learned.grad is not None
    assert learned.grad.abs().min() > 0


def test_trained_text_gets_gradients(karlo: Path) -> None:
    backbone = load_pixel_backbone(karlo, train_text=True)
    names = {name for name in backbone.state_dict() if name.startswith("text_encoder.")}
    assert names == {f"text_encoder.{name}" for name in backbone.text_encoder.state_dict()}
    assert backbone.text_encoder.training
    backbone.denoise(torch.randn(X_0), STEPS, conditions(backbone)).square().sum().backward()
    for name, parameter in backbone.text_encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    null = backbone.embed_text([""])
    assert null.requires_grad
    with torch.no_grad():
        backbone.text_encoder.text_projection.weight.mul_(2.0)
        assert_close(backbone.embed_text([""])[:, 0], 2 * null[:, 0], rtol=1e-4, atol=1e-5)
    frozen = load_pixel_backbone(karlo)
    assert not frozen.embed_text(["", TEXTS[0]]).requires_grad


def test_the_decoder_is_that_of_the_folder(karlo: Path, backbone: PixelBackbone) -> None:
    decoder = UNet2DConditionModel.from_pretrained(karlo / "decoder").state_dict()
    own = backbone.unet.state_dict()
    own["conv_in.weight"] = own["conv_in.weight"][:, :3]
    assert_close(dict(own), dict(decoder), rtol=0, atol=0)
