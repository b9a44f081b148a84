"""The states of a CLIP's text tower are those of the class in transformers."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize
from torch.testing import assert_close
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from spatext.modules.networks.clip import Clip
from spatext.modules.networks.text_tower import to_text_encoder, train_tokenizer
from tiny import MAX_LENGTH, TEXTS, WIDTH, clip_config


def write_clip(folder: Path, tokenizer: CLIPTokenizer | None = None, **text_cfg: Any) -> Clip:
    """A CLIP whose embeddings are as wide as its text tower; without a tokenizer, OpenAI's."""
    config = clip_config(len(tokenizer) if tokenizer else 49408)
    config["embed_dim"] = text_cfg.pop("embed_dim", WIDTH)
    kind = open_clip.CustomTextCLIP if text_cfg.pop("custom_text", False) else open_clip.CLIP
    config["text_cfg"] |= text_cfg
    if tokenizer is None:
        del config["text_cfg"]["hf_tokenizer_name"]
    model = kind(**config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    if kind is open_clip.CustomTextCLIP:
        config["custom_text"] = True
    if tokenizer:
        tokenizer.save_pretrained(folder)
    save_file(dict(model.state_dict()), folder / "open_clip_model.safetensors")
    document = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    return Clip(f"local-dir:{folder}")


def by_transformers(clip: Clip, tokens: torch.Tensor, **text_cfg: Any) -> tuple[torch.Tensor, ...]:
    """Embeddings and last states of the same weights in the class that Karlo's prior was fed by."""
    tower = getattr(clip.model.net, "text", clip.model.net)
    config = clip_config(tower.vocab_size)["text_cfg"] | text_cfg
    encoder = to_text_encoder(tower, config)
    encoder.config.projection_dim = clip.embed_dim
    model = CLIPTextModelWithProjection(encoder.config).eval()
    model.text_model.load_state_dict(getattr(encoder, "text_model", encoder).state_dict())
    model.text_projection.weight.data = tower.text_projection.data.mT.clone()
    with torch.no_grad():
        output = model(tokens)
    return output.text_embeds, output.last_hidden_state


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_states_are_those_of_transformers(tmp_path: Path, custom_text: bool, own: bool) -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=560, max_length=MAX_LENGTH) if own else None
    clip = write_clip(tmp_path, tokenizer, custom_text=custom_text)
    assert ("text" in dict(clip.model.net.named_children())) == custom_text
    texts = ["two", "", " ".join(TEXTS), TEXTS[0]]
    found, tokens = clip.encode_texts(texts), clip.tokenizer(texts)
    embeds, states = by_transformers(clip, tokens)
    assert found.states.shape == (4, MAX_LENGTH, WIDTH)
    assert_close(found.embeds, embeds, rtol=1e-4, atol=1e-4)
    assert_close(found.states[found.mask], states[found.mask], rtol=1e-4, atol=1e-4)
    assert_close(found.embeds, clip.embed_texts(texts), rtol=1e-4, atol=1e-4)
    short = clip.encode_texts(texts[:2])  # no longer than its texts, and the same
    assert short.states.shape[1] == short.mask.sum(dim=1).max() < MAX_LENGTH
    assert_close(short.embeds, found.embeds[:2], rtol=1e-4, atol=1e-4)
    assert_close(short.states[short.mask], found.states[:2][found.mask[:2]], rtol=1e-4, atol=1e-4)
    # The empty prompt is its two ends; a text that does not fit is cut there.
    ends = [2 + len(tokens_of(clip, text)) for text in texts]
    assert found.mask.sum(dim=1).tolist() == [min(end, MAX_LENGTH) for end in ends]
    assert ends[1] == 2 < ends[0] < ends[3] < MAX_LENGTH < ends[2]
    assert found.mask.int().diff(dim=1).max() <= 0
    assert (tokens[~found.mask] == 0).all() or own


def tokens_of(clip: Clip, text: str) -> list[int]:
    if isinstance(clip.tokenizer, open_clip.SimpleTokenizer):
        return clip.tokenizer.encode(text)
    return clip.tokenizer.tokenizer(text, add_special_tokens=False).input_ids


def test_states_of_another_width_are_projected(base: Path) -> None:
    clip = Clip(f"local-dir:{base / 'clip'}", scale="unit")
    found = clip.encode_texts(TEXTS)
    embeds, states = by_transformers(clip, clip.tokenizer(list(TEXTS)))
    expected = (states @ clip.model.net.text_projection)[:, : found.states.shape[1]]
    assert_close(found.states[found.mask], expected[found.mask], rtol=1e-4, atol=1e-4)
    assert_close(found.embeds, normalize(embeds, dim=-1), rtol=1e-4, atol=1e-4)
    last = found.states[torch.arange(4), found.mask.sum(dim=1) - 1]
    assert_close(last, embeds, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "text_cfg",
    [{"pool_type": "last", "no_causal_mask": True}, {"embed_cls": True}, {"pool_type": "first"}],
    ids=str,
)
def test_a_tower_of_another_kind_has_no_states(tmp_path: Path, text_cfg: dict[str, Any]) -> None:
    clip = write_clip(tmp_path, custom_text=True, **text_cfg)
    found = clip.encode_texts(TEXTS)
    assert_close(found.embeds, clip.embed_texts(TEXTS), rtol=1e-4, atol=1e-4)
    assert found.states.shape == (4, 0, WIDTH)
    assert found.mask.shape == (4, 0)


def test_the_end_may_be_a_token_of_its_own(tmp_path: Path) -> None:
    end = {"pool_type": "eos", "eos_id": 320}  # OpenAI's "a"
    clip = write_clip(tmp_path, custom_text=True, **end)
    found = clip.encode_texts(["sea in a box", "a"])
    assert found.mask.sum(dim=1).tolist() == [4, 2]
