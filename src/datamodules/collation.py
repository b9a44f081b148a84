"""What a sample of the training stream is, and the batch that many are collated to."""

from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import default_collate

from .device_crops import Uncut, collate_uncut
from .online import OnlineFrame, collate_frames


class Batch(TypedDict):
    """What a training or validation step receives.

    image    float32 [b, 3, h, w]     RGB in [-1, 1]; bytes until it lies on the trainer's device
    caption  b strings                "" where the data has none
    key      b strings                "<shard stem>/<key>"
    index    int64 [b]                place in the training stream, epoch * epoch_size + position;
                                      for validation the sample's number
    ids      uint8 [b, h, w]          k where the k-th chosen segment lies (1..K), 0 elsewhere
    valid    bool [b, K]              which of the K = k_max slots hold a segment
    crops    uint8 [b, K, 3, c, c]    RGB 0..255, black outside of the segment; zeros if not valid
    texts    b lists of K strings     text of each segment where the data has it, "" otherwise

    and, as they are cached, in half or full precision (then images and crops may be black):

    moments  [b, 2, c, i, j]          mean and log-variance of the image's posterior
    text     [b, l, e]                states of the caption
    embeds   [b, K, d]                CLIP embeddings of the crops, zeros if not valid
    """

    image: Float32[Tensor, "b 3 h w"]
    caption: list[str]
    key: list[str]
    index: Int64[Tensor, " b"]
    ids: UInt8[Tensor, "b h w"]
    valid: Bool[Tensor, "b k"]
    crops: UInt8[Tensor, "b k 3 c c"]
    texts: list[list[str]]
    moments: NotRequired[Tensor]
    text: NotRequired[Tensor]
    embeds: NotRequired[Tensor]


class Sample(TypedDict):
    """One row of a batch, before collation; `bad` holds the reasons of the samples it replaces,
    `crops` those of the valid slots alone.

    `online`: what the device needs to find the segments, `uncut`: what it needs to cut their crops,
    where it is to do that; `encoded`: what is cached of moments, text and embeds."""

    image: UInt8[np.ndarray, "3 h w"]
    caption: str
    key: str
    index: int
    ids: UInt8[np.ndarray, "h w"]
    valid: Bool[np.ndarray, " k"]
    crops: UInt8[np.ndarray, "n 3 c c"]
    texts: list[str]
    bad: list[str]
    online: NotRequired[OnlineFrame]
    uncut: NotRequired[Uncut]
    encoded: NotRequired[dict[str, np.ndarray]]


def collate(samples: list[Sample], *, as_bytes: bool = False) -> dict[str, Any]:
    """A Batch, and `bad`: the reasons of all replaced samples, which the loader takes out.

    `as_bytes`: the image as uint8, for `unit_range` where it is to be used: a quarter to be moved.
    """

    def stack(name: str) -> Tensor:
        rows = [torch.from_numpy(sample[name]) for sample in samples]  # type: ignore[literal-required]
        # in a worker right into the memory that the trainer's process shares
        return default_collate(rows)

    image, valid = stack("image"), stack("valid")
    black = torch.zeros(samples[0]["crops"].shape[1:], dtype=torch.uint8)
    every: list[Tensor] = []
    for sample in samples:
        cut = torch.from_numpy(sample["crops"])
        every += [*cut, *[black] * (valid.shape[1] - len(cut))]
    frames = [sample["online"] for sample in samples if "online" in sample]
    windows = {i: sample["uncut"] for i, sample in enumerate(samples) if "uncut" in sample}
    return {
        "image": image if as_bytes else unit_range(image),
        "caption": [sample["caption"] for sample in samples],
        "key": [sample["key"] for sample in samples],
        "index": torch.tensor([sample["index"] for sample in samples], dtype=torch.int64),
        "ids": stack("ids"),
        "valid": valid,
        "crops": default_collate(every).unflatten(0, valid.shape),
        "texts": [sample["texts"] for sample in samples],
        "bad": [reason for sample in samples for reason in sample["bad"]],
        **({"online": collate_frames(frames)} if frames else {}),
        **({"uncut": collate_uncut(windows)} if windows else {}),
        **collate_encoded([sample.get("encoded", {}) for sample in samples]),
    }


def collate_encoded(rows: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    # copies, which may be written to
    return {k: default_collate([torch.tensor(row[k]) for row in rows]) for k in rows[0]}


def unit_range(pixels: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b 3 h w"]:
    """Bytes to [-1, 1]."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)
