"""A text's pooled embedding, its states and their mask as one tensor, so that text is dropped,
guided, cached and replaced like the bare states of other models."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def pack_text(
    pooled: Float[Tensor, "b e"], states: Float[Tensor, "b l e"], mask: Bool[Tensor, "b l"]
) -> Float[Tensor, "b m e"]:
    """Row 0 is the pooled embedding, the l rows behind it are the states; those whose mask is
    False are zero (our choice)."""
    states = states.masked_fill(~mask[..., None], 0.0)
    return torch.cat([pooled[:, None], states], dim=1)


def unpack_text(
    text: Float[Tensor, "b m e"],
) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b l e"], Bool[Tensor, "b l"]]:
    """(pooled, states, mask) of `pack_text`: a row of zeros is padding."""
    pooled, states = text[:, 0], text[:, 1:]
    return pooled, states, (states != 0).any(dim=-1)
