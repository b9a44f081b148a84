"""Addressed randomness: a draw is a function of (seed, purpose, index, position) by Philox 4x32-10.

Nothing is consumed, so a sample's numbers depend neither on the batch it sits in, nor on the number
of processes, nor on how often a run was resumed.
"""

from collections.abc import Sequence
from enum import IntEnum
from math import pi, prod

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Random123, philox.h
_WEYL = (0x9E3779B9, 0xBB67AE85)  # key bumps: golden ratio, sqrt(3) - 1


class Purpose(IntEnum):
    """What a draw is for. The numbers are part of every recorded run: add, never renumber."""

    TIMESTEP = 1
    NOISE = 2
    POSTERIOR = 3
    DROP_TEXT = 4
    DROP_SEGMENTS = 5
    DROP_IMAGE_EMBED = 6
    INITIAL_NOISE = 7
    REGION_SEED = 8
    CANDIDATE_SEED = 9
    OFFSET_NOISE = 10
    IMAGE_SEED = 11  # of the global image embedding that a prior draws for a prompt
    STAGE_SEED = 12  # of the upsamplers behind the decoder, one each
    CROP = 13  # on which an upsampler is trained
    LOW_RES_LEVEL = 14
    LOW_RES_NOISE = 15


def philox_4x32(
    counter: Int64[Tensor, "*n 4"], key: Int64[Tensor, "*#n 2"], num_rounds: int = 10
) -> Int64[Tensor, "*n 4"]:
    """Philox 4x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    All words are uint32 values held in int64, so the bits are the same on every device. The key
    broadcasts against the counter.
    """
    words = _rounds(counter.unbind(-1), key.unbind(-1), num_rounds)
    return torch.stack(words, dim=-1)


def uniform(
    seed: int, purpose: int, index: Int64[Tensor, " b"], shape: tuple[int, ...] = ()
) -> Float32[Tensor, " b *shape"]:
    """Uniform on [0, 1): multiples of 2^-24. Row i is addressed by (seed, purpose, index[i])."""
    return (_words(seed, purpose, index, shape) >> 8).float() * 2.0**-24


def normal(
    seed: int, purpose: int, index: Int64[Tensor, " b"], shape: tuple[int, ...] = ()
) -> Float32[Tensor, " b *shape"]:
    """Standard normal (Box and Muller 1958), |z| < 6.7. Row i is addressed as in `uniform`.

    The words are the same on every device; log, cos and sin agree to float32 rounding.
    """
    length = prod(shape)
    words = _words(seed, purpose, index, (-(-length // 2), 2))
    # (0, 1]: the logarithm is finite.
    radius = torch.sqrt(-2.0 * torch.log((words[..., 0] + 1).float() * 2.0**-32))
    angle = words[..., 1].float() * (2.0 * pi * 2.0**-32)
    pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return pairs.flatten(1)[:, :length].reshape(len(index), *shape)


def randint(seed: int, purpose: int, index: Int64[Tensor, " b"], high: int) -> Int64[Tensor, " b"]:
    """Uniform on {0, ..., high - 1} by multiply-and-shift; the bias is below high / 2^32.

    Raises ValueError unless 1 <= high <= 2^31.
    """
    if not 1 <= high <= 2**31:
        raise ValueError(f"high: expected 1 <= high <= 2**31, got {high}")
    return (_words(seed, purpose, index, ()) * high) >> 32


def derive_seeds(seeds: Int64[Tensor, " b"], purpose: int, num: int) -> Int64[Tensor, "b {num}"]:
    """Seeds in [0, 2^63) of the `num` parts of things that have seeds: entry [i, k] is a function
    of (seeds[i], purpose, k), whatever `num` is."""
    high, low = _words(0, purpose, seeds, (num, 2)).unbind(-1)
    return ((high >> 1) << 32) | low


def _words(
    seed: int, purpose: int, index: Int64[Tensor, " b"], shape: tuple[int, ...]
) -> Int64[Tensor, " b *shape"]:
    """uint32 words. Counter = (position // 4, purpose, index low, index high), key = seed."""
    length = prod(shape)
    num_blocks = -(-length // 4)
    # Words that samples or blocks have in common stay one number, until the rounds mix them.
    blocks = torch.arange(num_blocks, device=index.device)
    low, high = ((index >> shift & _MASK)[:, None] for shift in (0, 32))
    words = torch.stack(_rounds((blocks, int(purpose), low, high), _split(seed), 10), dim=-1)
    return words.flatten(1)[:, :length].reshape(len(index), *shape)


def _rounds(
    counter: Sequence[Tensor | int], key: Sequence[Tensor | int], num_rounds: int
) -> list[Tensor]:
    """The words of Philox; those of counter and key broadcast against each other.

    Products of two words wrap around in int64: its 64 bits are those of the unsigned product. There
    are 12 operations a round, because on a GPU their number is what a draw costs.
    """
    (c_0, c_1, c_2, c_3), (k_0, k_1) = counter, key
    for _ in range(num_rounds):
        p_0, p_1 = c_0 * _MULTIPLIERS[0], c_2 * _MULTIPLIERS[1]
        c_0, c_1 = (p_1 >> 32 & _MASK) ^ (c_1 ^ k_0), p_1 & _MASK
        c_2, c_3 = (p_0 >> 32 & _MASK) ^ (c_3 ^ k_1), p_0 & _MASK
        k_0, k_1 = (k_0 + _WEYL[0]) & _MASK, (k_1 + _WEYL[1]) & _MASK
    return list(torch.broadcast_tensors(c_0, c_1, c_2, c_3))


def _split(seed: int) -> tuple[int, int]:
    """Low and high word of a 64-bit seed (negative seeds in two's complement)."""
    return seed & _MASK, (seed >> 32) & _MASK
