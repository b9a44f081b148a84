"""The states of a text encoder that Stable Diffusion attends to."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .transfer import send


@torch.no_grad()
def encode_captions(net: Any, tokenizer: Any, captions: Sequence[str]) -> Float[Tensor, "b l e"]:
    """Last hidden states of a frozen encoder; captions that are equal are encoded once."""
    distinct = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    tokens = tokenizer(
        [*distinct],
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )
    rows = send(torch.tensor([distinct[caption] for caption in captions]), net.device)
    with torch.inference_mode():
        states = net(send(tokens.input_ids, net.device)).last_hidden_state
    return states[rows]  # an ordinary tensor, which the backward pass may keep
