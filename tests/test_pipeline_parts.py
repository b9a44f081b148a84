"""CLIP and the prior in folders of their own, whatever made them."""

from pathlib import Path

import open_clip
import pytest
from open_clip.model import set_model_preprocess_cfg
from open_clip.tokenizer import SimpleTokenizer
from torch import nn
from torch.testing import assert_close

from spatext.modules.networks.clip import Clip
from spatext.pipeline_parts import ClipPart, PriorPart
from tiny import EMBED_DIM, PREPROCESS, SIZE, clip_config


def test_a_clip_with_the_tokenizer_of_open_clip(tmp_path: Path) -> None:
    """Published ones name no tokenizer of transformers, and have no files for theirs."""
    config = clip_config(49408)
    del config["text_cfg"]["hf_tokenizer_name"]
    model = open_clip.CLIP(**config).eval()
    set_model_preprocess_cfg(model, PREPROCESS | {"size": SIZE})
    tokenizer = SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    fingerprint = {"clip": "ViT-S", "scale": "unit", "embed_dim": EMBED_DIM}
    part = ClipPart(model, tokenizer, config, fingerprint)
    part.save_pretrained(tmp_path)
    again = ClipPart.from_pretrained(tmp_path)
    assert isinstance(again.tokenizer, SimpleTokenizer)
    assert again.fingerprint == fingerprint
    texts = ["a red lighthouse", "two dogs"]
    assert_close(again.clip().embed_texts(texts), part.clip().embed_texts(texts))
    assert again.clip().image_size == part.clip().image_size == SIZE
    assert_close(again.clip().mean, part.clip().mean)


def test_a_clip_whose_weights_decide_its_activation(base: Path, tmp_path: Path) -> None:
    """Those of OpenAI were trained with QuickGELU, which the names of their models do not tell."""
    tokenizer = open_clip.get_tokenizer(f"local-dir:{base / 'clip'}")
    config = clip_config(len(tokenizer.tokenizer))
    loaded = (open_clip.CLIP(**config, quick_gelu=True).eval(), tokenizer)
    set_model_preprocess_cfg(loaded[0], PREPROCESS | {"size": SIZE})
    part = ClipPart.of(Clip(f"local-dir:{base / 'clip'}", loaded=loaded))
    part.save_pretrained(tmp_path)
    again = ClipPart.from_pretrained(tmp_path)
    assert_close(again.clip().embed_texts(["two dogs"]), part.clip().embed_texts(["two dogs"]))


def test_a_prior_of_another_kind_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"module\.prior: found a Linear, expected an IdentityPrior"
    ):
        PriorPart.of(nn.Linear(2, 2))
