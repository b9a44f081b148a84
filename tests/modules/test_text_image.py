import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel
from torch import Tensor
from torch.testing import assert_close

from spatext.modules.networks.text_image import TextImageProjection
from tiny_karlo import shaken

OPTIONS = {
    "clip_extra_context_tokens": 3,
    "clip_embeddings_dim": 8,
    "time_embed_dim": 20,
    "cross_attention_dim": 12,
}
NULL = "learned_classifier_free_guidance_embeddings"


def pair() -> tuple[TextImageProjection, UnCLIPTextProjModel]:
    theirs = shaken(UnCLIPTextProjModel(**OPTIONS))
    own = TextImageProjection(**OPTIONS)
    own.load_state_dict(theirs.state_dict())
    return own, theirs


def inputs(width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    given = torch.randn(4, width), torch.randn(4, 5, width), torch.randn(4, 8)
    return tuple(x.requires_grad_() for x in given)  # type: ignore[return-value]


def call(theirs: UnCLIPTextProjModel, given: tuple[Tensor, ...], **options: Any) -> Any:
    pooled, states, image_embed = given
    return theirs(
        image_embeddings=image_embed,
        prompt_embeds=pooled,
        text_encoder_hidden_states=states,
        do_classifier_free_guidance=options.get("guided", False),
    )


def test_values_and_gradients_are_those_of_diffusers() -> None:
    (own, theirs), given = pair(), inputs()
    found, expected = own(*given), call(theirs, given)
    assert [x.shape for x in found] == [(4, 8, 12), (4, 20)]
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # Weights of their own for every number, or tokens could change places unseen.
    weights = [torch.randn_like(x) for x in expected]
    gradients = []
    for net, output in ((own, found), (theirs, expected)):
        loss = sum((x * w).sum() for x, w in zip(output, weights, strict=True))
        wanted = [*given, *(p for name, p in sorted(net.named_parameters()) if name != NULL)]
        gradients.append(torch.autograd.grad(loss, wanted))
    assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients[0])


def test_the_learned_null_is_that_of_diffusers() -> None:
    (own, theirs), (pooled, states, image_embed) = pair(), inputs()
    null = getattr(own, NULL)
    given = torch.cat([null.expand(2, -1), image_embed[:2]])
    expected = call(theirs, (pooled, states, image_embed[:2]), guided=True)
    assert_close(own(pooled, states, given), expected, rtol=1e-5, atol=1e-5)
    assert null.abs().max() > 0.01


def test_each_class_loads_what_the_other_saved(tmp_path: Path) -> None:
    own, theirs = pair()
    own.save_pretrained(tmp_path / "own")
    theirs.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "own" / "config.json").read_text())["_class_name"] == (
        "UnCLIPTextProjModel"
    )
    for kind, folder in ((UnCLIPTextProjModel, "own"), (TextImageProjection, "theirs")):
        loaded, info = kind.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(info.values())
        assert_close(dict(loaded.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)
        assert {name: loaded.config[name] for name in OPTIONS} == OPTIONS


@pytest.mark.parametrize("text_embeddings_dim", [None, 6])
def test_without_an_image(tmp_path: Path, text_embeddings_dim: int | None) -> None:
    own = {"image_embed": False, "text_embeddings_dim": text_embeddings_dim}
    net = shaken(TextImageProjection(**OPTIONS, **own))
    pooled, states, image_embed = inputs(text_embeddings_dim or 8)
    context, embedding = net(pooled, states)
    assert (context.shape, embedding.shape) == ((4, 5, 12), (4, 20))
    kept = ("embedding_proj", "encoder_hidden_states_proj", "text_encoder_hidden_states_norm")
    assert {name.split(".")[0] for name in net.state_dict()} == set(kept)
    net.save_pretrained(tmp_path)
    loaded = TextImageProjection.from_pretrained(tmp_path)
    assert_close(loaded(pooled, states), (context, embedding), rtol=0, atol=0)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_class_name"] == "TextImageProjection"
    with pytest.raises(
        ValueError, match=r"^image_embed: found an embedding of the image, expected"
    ):
        net(pooled, states, image_embed)
    with pytest.raises(
        ValueError, match=r"^image_embed: found no embedding of the image, expected"
    ):
        TextImageProjection(**OPTIONS)(*inputs()[:2])


def test_a_text_of_another_width_than_the_image(tmp_path: Path) -> None:
    net = shaken(TextImageProjection(**OPTIONS, text_embeddings_dim=6))
    given = inputs(6)
    net.save_pretrained(tmp_path)
    loaded = TextImageProjection.from_pretrained(tmp_path)
    assert_close(loaded(*given), net(*given), rtol=0, atol=0)
    assert getattr(loaded, NULL).shape == (8,)
