"""The states of a text encoder that denoisers attend to."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..functional.packed_text import pack_text
from .transfer import send


@torch.no_grad()
def encode_captions(net: Any, tokenizer: Any, captions: Sequence[str]) -> Float[Tensor, "b l e"]:
    """Last hidden states of a frozen encoder; captions that are equal are encoded once."""
    ids, _, rows = tokenise(tokenizer, captions, net.device)
    with torch.inference_mode():
        states = net(ids).last_hidden_state
    return states[rows]  # an ordinary tensor, which the backward pass may keep


def encode_packed(net: Any, tokenizer: Any, captions: Sequence[str]) -> Float[Tensor, "b l e"]:
    """Pooled embedding and last hidden states, see `pack_text`; equal captions are encoded once.

    Pooled is CLIP's text embedding, or for an encoder without a projection its state at the end of
    the text. Gradients reach an encoder that requires them.
    """
    ids, mask, rows = tokenise(tokenizer, captions, net.device)
    trained = next(net.parameters()).requires_grad
    with nullcontext() if trained else torch.inference_mode():
        output = net(ids)
        pooled = output.text_embeds if "text_embeds" in output else output.pooler_output
        text = pack_text(pooled, output.last_hidden_state, mask)
    return text[rows]


def tokenise(
    tokenizer: Any, captions: Sequence[str], device: torch.device
) -> tuple[Int64[Tensor, "n l"], Bool[Tensor, "n l"], Int64[Tensor, " b"]]:
    """Tokens of the distinct captions, padded to the tokenizer's length and cut there, which of
    them belong to the text, and the number of each caption among the distinct ones."""
    distinct = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    tokens = tokenizer(
        [*distinct],
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )
    rows = send(torch.tensor([distinct[caption] for caption in captions]), device)
    return send(tokens.input_ids, device), send(tokens.attention_mask.bool(), device), rows
