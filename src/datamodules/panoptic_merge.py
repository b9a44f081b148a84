"""From the queries of a mask classification model to one map of disjoint segments per image.

Panoptic inference as MaskFormer defines it (Cheng, Schwing, Kirillov, NeurIPS 2021, sec. 3.4;
Mask2Former's code, `panoptic_inference`): queries that predict a class with a score above
`object_threshold` are kept; a pixel belongs to the query of the largest score x mask probability,
and to its segment if that probability is at least `mask_threshold`; a query with less than
`overlap_threshold` of its own mask left is dropped, and what it held is void; stuff of one class is
one segment. Ids are 1, 2, ... in the order of the queries, whose first one names fused stuff.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor
from torch.nn import functional as F

# MODEL.MASK_FORMER.TEST of Mask2Former's COCO models; 0.5 is written out in the code
OBJECT_THRESHOLD = 0.8
MASK_THRESHOLD = 0.5
OVERLAP_THRESHOLD = 0.8


class Segment(NamedTuple):
    """`label` is the number of the class; `score` that of the (first) query, `area` in pixels."""

    id: int
    label: int
    is_thing: bool
    score: float
    area: int


class PanopticMaps(NamedTuple):
    """ids: 0 = void, and beyond the size of each image; segments of each image, by rising id."""

    ids: Int32[Tensor, "b h w"]
    segments: list[list[Segment]]


def merge_queries(
    class_logits: Float[Tensor, "b q c"],
    mask_logits: Float[Tensor, "b q h w"],
    things: Bool[Tensor, " classes"],
    *,
    input_size: tuple[int, int],
    valid: Sequence[tuple[int, int]],
    sizes: Sequence[tuple[int, int]] | None = None,
    object_threshold: float = OBJECT_THRESHOLD,
    mask_threshold: float = MASK_THRESHOLD,
    overlap_threshold: float = OVERLAP_THRESHOLD,
) -> PanopticMaps:
    """Maps of `sizes` (None: of `valid`), padded to the largest of them.

    The last of the c = classes + 1 logits is "no object". `input_size` is what the model saw, of
    which `valid` is the image, at its top left; the logits may be coarser. All pairs are (h, w).
    Queries are dropped before any mask is enlarged and images are done one by one, so memory is
    about 12 bytes x kept queries x pixels of one image. The host waits twice to learn how many
    queries are left, and once for the segments.
    """
    assert class_logits.shape[-1] == len(things) + 1
    sizes = valid if sizes is None else sizes
    scores, labels = class_logits.float().softmax(dim=-1).max(dim=-1)
    keep = (labels != len(things)) & (scores > object_threshold)
    queries = keep.nonzero()[:, 1].split(keep.sum(dim=1).tolist())
    ids = torch.zeros(
        len(sizes), max(h for h, _ in sizes), max(w for _, w in sizes),
        dtype=torch.int32, device=mask_logits.device,
    )  # fmt: skip
    rows = []
    for i, kept in enumerate(queries):
        if not len(kept):
            continue
        prob = resize_logits(mask_logits[i, kept], input_size, valid[i], sizes[i]).sigmoid_()
        score, label = scores[i, kept], labels[i, kept]
        thing = things[label]
        assigned = (score[:, None, None] * prob).argmax(dim=0)  # the first of equals
        inside = prob >= mask_threshold
        own = assigned == torch.arange(len(kept), device=kept.device)[:, None, None]
        id_of, area = number_segments(label, thing, own, inside, overlap_threshold)
        painted = torch.where((own & inside).any(dim=0), id_of[assigned], 0)
        ids[i, : sizes[i][0], : sizes[i][1]] = painted
        row = (torch.full_like(label, i), id_of, label, thing, score, area)
        rows.append(torch.stack([column.double() for column in row]))
    return PanopticMaps(ids, _by_image(rows, len(sizes)))


def resize_logits(
    logits: Float[Tensor, "q h w"],
    input_size: tuple[int, int],
    valid: tuple[int, int],
    size: tuple[int, int],
) -> Float[Tensor, "q y x"]:
    """Enlarged to the input, cut to the image, brought to `size`: the original's two bilinear
    steps, of which the second does nothing where the sizes agree."""
    full = F.interpolate(logits[None].float(), input_size, mode="bilinear", align_corners=False)
    full = full[..., : valid[0], : valid[1]]
    return F.interpolate(full, size, mode="bilinear", align_corners=False)[0]


def number_segments(
    label: Int64[Tensor, " q"],
    thing: Bool[Tensor, " q"],
    own: Bool[Tensor, "q h w"],
    inside: Bool[Tensor, "q h w"],
    overlap_threshold: float,
) -> tuple[Int64[Tensor, " q"], Int64[Tensor, " q"]]:
    """The id of each query (0: dropped), and the area of that id where the query is its first.

    `own`: pixels that each query won; `inside`: those of its mask, whoever won them."""
    area = (own & inside).sum((1, 2))
    share = own.sum((1, 2)).double() / inside.sum((1, 2))
    found = (area > 0) & (share >= overlap_threshold)
    number = torch.arange(len(label), device=label.device)
    joined = ((label[:, None] == label) & ~thing) | (number[:, None] == number)
    first = (joined & found).int().argmax(dim=1)
    leads = found & (first == number)
    ids = torch.where(found, leads.cumsum(dim=0)[first], 0)
    total = torch.zeros_like(area).index_add_(0, first, torch.where(found, area, 0))
    return ids, torch.where(leads, total, 0)


def _by_image(rows: list[Tensor], num_images: int) -> list[list[Segment]]:
    """One transfer for the whole batch; float64 holds every number exactly."""
    segments: list[list[Segment]] = [[] for _ in range(num_images)]
    if not rows:
        return segments
    for image, i, label, thing, score, area in torch.cat(rows, dim=1).T.tolist():
        if area:
            segments[int(image)].append(Segment(int(i), int(label), bool(thing), score, int(area)))
    return segments
