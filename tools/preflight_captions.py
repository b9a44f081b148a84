"""Facts about captions: what they are in the shards, and what of them the text encoder reads."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import CLIPTokenizer

from spatext.datamodules.captions import MAX_BYTES, read_caption, read_meta
from spatext.tools.preflight_index import quantiles

MAX_TOLD = 3  # captions that occur most often
MAX_LETTERS = 80  # of one that is told


class Caption(NamedTuple):
    """As training reads it, and what its member is. `is_cut`: over MAX_BYTES."""

    text: str
    from_json: bool
    is_utf8: bool
    is_cut: bool


def examine_caption(members: dict[str, bytes]) -> Caption:
    text, data = read_caption(members, read_meta(members)), members.get("txt", b"")
    try:
        data.decode("utf-8")
        is_utf8 = True
    except UnicodeDecodeError:
        is_utf8 = False
    from_json = bool(text) and not data.strip()
    return Caption(text, from_json, is_utf8, len(data) > MAX_BYTES)


def caption_facts(captions: Sequence[Caption], tokenizer: CLIPTokenizer | None) -> dict[str, Any]:
    """Identical captions are counted from the second on; empty ones are not among them."""
    texts = [caption.text for caption in captions]
    counts = Counter(text for text in texts if text)
    common = [(text, num) for text, num in counts.most_common(MAX_TOLD) if num > 1]
    return {
        "num": len(captions),
        "num_empty": texts.count(""),
        "num_from_json": sum(caption.from_json for caption in captions),
        "num_not_utf8": sum(not caption.is_utf8 for caption in captions),
        "num_too_long": sum(caption.is_cut for caption in captions),
        "num_identical": sum(num - 1 for num in counts.values()),
        "most_common": {text[:MAX_LETTERS]: num for text, num in common},
        "letters": quantiles(np.array([len(text) for text in texts if text])),
        "tokens": None if tokenizer is None else token_facts(list(counts.elements()), tokenizer),
    }


def token_facts(texts: list[str], tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """Both ends count, as they do for the limit."""
    limit = int(tokenizer.model_max_length)
    ids = tokenizer(texts, verbose=False).input_ids if texts else []
    nums = np.array([len(row) for row in ids], dtype=np.int64)
    return {"limit": limit, "num_cut": int((nums > limit).sum()), **quantiles(nums)}


def read_tokenizer(cfg: DictConfig) -> CLIPTokenizer | None:
    """That of the backbone's folder; None where it is no folder of this machine."""
    try:
        path = OmegaConf.select(cfg, "module.backbone.path")
    except OmegaConfBaseException:  # refers to what is missing
        return None
    if not isinstance(path, str) or not (Path(path) / "tokenizer").is_dir():
        return None
    return CLIPTokenizer.from_pretrained(path, subfolder="tokenizer")
