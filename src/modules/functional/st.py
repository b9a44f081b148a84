"""Segments, and the spatio-textual map ST that they stand for (SpaText, sec. 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

Resize = Literal["area", "majority"]


@dataclass(frozen=True)
class Segments:
    """The compact form of ST: it travels; the dense map is built where it is needed, or never.

    ids: 0 = nothing, k = the k-th slot (1..K), disjoint by construction.
    valid: a slot counts only where this is True; elsewhere its ids and embeds are without meaning.
    """

    ids: UInt8[Tensor, "b h w"]
    embeds: Float[Tensor, "b k d"]
    valid: Bool[Tensor, "b k"]

    def __len__(self) -> int:
        return len(self.ids)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Segments":
        """`dtype` is that of the embeds; ids and valid keep theirs."""
        embeds = self.embeds.to(device=device, dtype=dtype)
        return Segments(self.ids.to(device=device), embeds, self.valid.to(device=device))

    def where(self, keep: Bool[Tensor, " b"]) -> "Segments":
        """Rows not kept become the null condition: no valid slot, hence ST = 0."""
        return Segments(self.ids, self.embeds, self.valid & keep[:, None])

    def repeat(self, n: int) -> "Segments":
        """The whole batch n times over, as Tensor.repeat does."""
        return Segments.cat([self] * n)

    @classmethod
    def cat(cls, items: Sequence["Segments"]) -> "Segments":
        """Along the batch; fewer slots are filled up with invalid ones."""
        num_segments = max(item.valid.shape[1] for item in items)
        return cls(
            torch.cat([item.ids for item in items]),
            torch.cat([_pad_slots(item.embeds, num_segments) for item in items]),
            torch.cat([_pad_slots(item.valid, num_segments) for item in items]),
        )

    @classmethod
    def null(
        cls,
        batch: int,
        num_segments: int,
        dim: int,
        size: tuple[int, int],
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "Segments":
        """No segment anywhere: what dropout and guidance call the null ST."""
        return cls(
            torch.zeros(batch, *size, dtype=torch.uint8, device=device),
            torch.zeros(batch, num_segments, dim, dtype=dtype, device=device),
            torch.zeros(batch, num_segments, dtype=torch.bool, device=device),
        )


def reduce_ids(
    ids: UInt8[Tensor, "b h w"], valid: Bool[Tensor, "b k"], size: tuple[int, int]
) -> UInt8[Tensor, "b h_out w_out"]:
    """Ids on another grid, without ever mixing two segments (our choice: the paper says nothing).

    A cell takes the id, background included, with the largest area in it; ties go to the lowest id.
    Ids of invalid slots, and above K, are background. Enlarging by a whole number is nearest.

    A valid segment with at least one pixel keeps at least one cell. Those that lost every vote
    choose in order of area, smallest first, the cell they cover most of; if every cell they touch
    is the only one of another segment, the nearest cell that is not. So none is lost unless there
    are more segments than cells.
    """
    if size == tuple(ids.shape[1:]):
        return _zero_invalid(ids, valid)
    areas, total = _cell_areas(ids, valid, size)
    best = total - areas.sum(dim=1)
    reduced = torch.zeros_like(best, dtype=torch.uint8)
    for slot, area in enumerate(areas.unbind(1), start=1):
        wins = area > best
        reduced = reduced.masked_fill(wins, slot)
        best = torch.where(wins, area, best)
    return _keep_one_cell(reduced, areas)


def one_hot(
    ids: UInt8[Tensor, "b h w"], num_segments: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "b k h w"]:
    """Mask of each slot 1..K; the background has none."""
    slots = torch.arange(1, num_segments + 1, device=ids.device)
    return (ids[:, None] == slots[:, None, None]).to(dtype)


def segment_masks(
    segments: Segments,
    size: tuple[int, int],
    resize: Resize = "majority",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b k h w"]:
    """Share of each cell of another grid that each slot's embedding is painted with.

    How the paper resizes ST is not known. "area" averages it over the cell, so that an outline
    keeps its place to a fraction of a cell and a border cell holds a little of both sides;
    "majority" gives the cell to one segment alone, by the rules of `reduce_ids`. Both are our
    choice, and equal where nothing is reduced.
    """
    if resize == "majority" or size == tuple(segments.ids.shape[1:]):
        ids = reduce_ids(segments.ids, segments.valid, size)
        return one_hot(ids, segments.valid.shape[1], dtype=dtype)
    areas, total = _cell_areas(segments.ids, segments.valid, size)
    return (areas / total).to(dtype)


def st_map(
    segments: Segments, size: tuple[int, int], resize: Resize = "majority"
) -> Float[Tensor, "b d h w"]:
    """ST_x[j, k] = CLIP_img(S_i) if [j, k] in S_i, else the zero vector (SpaText, sec. 3.1).

    `resize`: on a grid coarser than the segments', see `segment_masks`.
    """
    embeds = masked_embeds(segments)
    masks = segment_masks(segments, size, resize, dtype=embeds.dtype)
    return torch.einsum("bkhw,bkd->bdhw", masks, embeds)


def masked_embeds(segments: Segments) -> Float[Tensor, "b k d"]:
    """Embeds with zeros in invalid slots, whatever stood there (even NaN)."""
    return segments.embeds.masked_fill(~segments.valid[..., None], 0.0)


def _pad_slots(x: Tensor, num_segments: int) -> Tensor:
    missing = num_segments - x.shape[1]
    return torch.cat([x, x.new_zeros(len(x), missing, *x.shape[2:])], dim=1) if missing else x


def _zero_invalid(
    ids: UInt8[Tensor, "b h w"], valid: Bool[Tensor, "b k"]
) -> UInt8[Tensor, "b h w"]:
    kept = torch.zeros_like(ids)
    for slot in range(1, valid.shape[1] + 1):
        kept |= ids * ((ids == slot) & valid[:, slot - 1, None, None])
    return kept


def _cell_areas(
    ids: UInt8[Tensor, "b h w"], valid: Bool[Tensor, "b k"], size: tuple[int, int]
) -> tuple[Float[Tensor, "b k h_out w_out"], int]:
    """Area of each slot in each cell, in whole numbers, so that ties are ties; area of a cell."""
    h, w = ids.shape[1:]
    slots = range(1, valid.shape[1] + 1)  # one at a time: K masks at image size are large
    if h % size[0] == 0 and w % size[1] == 0:
        ratio = (h // size[0], w // size[1])
        total = ratio[0] * ratio[1]
        areas = [F.avg_pool2d((ids == slot).float(), ratio, divisor_override=1) for slot in slots]
    else:
        # float64: exact also under autocast and TF32.
        rows, columns = _overlaps(h, size[0], ids.device), _overlaps(w, size[1], ids.device)
        total = h * w
        areas = [rows @ (ids == slot).double() @ columns.T for slot in slots]
    return torch.stack(areas, dim=1) * valid[..., None, None], total


def _overlaps(num_pixels: int, num_cells: int, device: torch.device) -> Float[Tensor, "m n"]:
    """Length that each cell shares with each pixel, in units of 1 / num_cells of a pixel."""
    cells = torch.arange(num_cells, device=device)[:, None] * num_pixels
    pixels = torch.arange(num_pixels, device=device) * num_cells
    ends = torch.minimum(cells + num_pixels, pixels + num_cells)
    return (ends - torch.maximum(cells, pixels)).clamp(min=0).double()


def _keep_one_cell(
    reduced: UInt8[Tensor, "b h w"], areas: Float[Tensor, "b k h w"]
) -> UInt8[Tensor, "b h w"]:
    """The second rule of `reduce_ids`; `areas` are those of the slots in each cell."""
    b, k, h, w = areas.shape
    areas, owner = areas.flatten(2), reduced.flatten(1).long()
    samples, cells = (torch.arange(n, device=areas.device) for n in (b, h * w))
    rows, columns = cells // w, cells % w
    num_cells = torch.zeros(b, k + 1, dtype=torch.long, device=areas.device)
    num_cells.scatter_add_(1, owner, torch.ones_like(owner))
    sizes = areas.sum(dim=2)
    for slot in sizes.argsort(dim=1, stable=True).unbind(1):
        area = areas[samples, slot]
        peak = area.argmax(dim=1, keepdim=True)
        distance = (rows - rows[peak]).square() + (columns - columns[peak]).square()
        score = torch.where(area > 0, area, -distance.to(area.dtype))
        can_give = (num_cells.gather(1, owner) > 1) | (owner == 0)
        cell = score.masked_fill(~can_give, -torch.inf).argmax(dim=1)
        lost = (sizes[samples, slot] > 0) & (num_cells[samples, slot + 1] == 0)
        taken = (lost & can_give.any(dim=1)).long()
        giver = owner[samples, cell]
        num_cells[samples, giver] -= taken  # the taker's stays 0: it will not give
        owner[samples, cell] = torch.where(taken == 1, slot + 1, giver)
    return owner.to(torch.uint8).unflatten(1, (h, w))
