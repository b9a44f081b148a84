"""What the denoiser is conditioned on, and how a condition becomes null."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .random import Purpose, uniform
from .st import Segments

NAMES = ("text", "segments", "image_embed")
_PURPOSES = dict(
    zip(NAMES, (Purpose.DROP_TEXT, Purpose.DROP_SEGMENTS, Purpose.DROP_IMAGE_EMBED), strict=True)
)


@dataclass(frozen=True)
class Conditions:
    """text: states of the text encoder. image_embed: the global CLIP image embedding, None where
    the backbone has no such input."""

    text: Float[Tensor, "b l e"]
    segments: Segments
    image_embed: Float[Tensor, "b d"] | None = None

    def __len__(self) -> int:
        return len(self.text)

    @property
    def names(self) -> tuple[str, ...]:
        """The conditions present."""
        return NAMES if self.image_embed is not None else NAMES[:2]

    def where(self, keep: Mapping[str, Bool[Tensor, " b"]], null: "Conditions") -> "Conditions":
        """Rows not kept become null; a condition absent from `keep` is kept.

        The null ST is "no segments"; null.text and null.image_embed have batch 1 or b. Raises
        ValueError for a name that is unknown or whose condition is absent here or in `null`.
        """
        check_names(keep, self, "keep")
        text, segments, image_embed = self.text, self.segments, self.image_embed
        if "text" in keep:
            text = _where(keep["text"][:, None, None], text, null.text)
        if "segments" in keep:
            segments = segments.where(keep["segments"].to(segments.valid.device))
        if "image_embed" in keep and image_embed is not None:
            if null.image_embed is None:
                raise ValueError("null: expected an image_embed, as the conditions have, got None")
            image_embed = _where(keep["image_embed"][:, None], image_embed, null.image_embed)
        return Conditions(text, segments, image_embed)

    def repeat(self, n: int) -> "Conditions":
        """The whole batch n times over, as Tensor.repeat does."""
        return Conditions.cat([self] * n)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Conditions":
        """`dtype` is that of the floating tensors."""
        image_embed = self.image_embed
        return Conditions(
            self.text.to(device=device, dtype=dtype),
            self.segments.to(device=device, dtype=dtype),
            None if image_embed is None else image_embed.to(device=device, dtype=dtype),
        )

    @classmethod
    def cat(cls, items: Sequence["Conditions"]) -> "Conditions":
        """Along the batch. Raises ValueError where only some have an image_embed."""
        image_embeds = [item.image_embed for item in items if item.image_embed is not None]
        if len(image_embeds) not in (0, len(items)):
            raise ValueError(
                f"image_embed: expected in all of {len(items)} conditions or in none, "
                f"got {len(image_embeds)}"
            )
        return cls(
            torch.cat([item.text for item in items]),
            Segments.cat([item.segments for item in items]),
            torch.cat(image_embeds) if image_embeds else None,
        )


def drop_conditions(
    conditions: Conditions,
    null: Conditions,
    rates: Mapping[str, float],
    seed: int,
    index: Int64[Tensor, " b"],
) -> Conditions:
    """Each condition of each sample is replaced by null by its own, independent coin (SpaText,
    sec. 3.3), a function of (seed, index of the sample) alone.

    Raises ValueError for an unknown name, a rate outside [0, 1], or a positive rate of a condition
    that is absent.
    """
    for name, rate in rates.items():
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"rates.{name}: expected a number in [0, 1], got {rate}")
    unknown = {name: rate for name, rate in rates.items() if rate > 0 or name not in NAMES}
    check_names(unknown, conditions, "rates")
    keep = {name: uniform(seed, _PURPOSES[name], index) >= rate for name, rate in unknown.items()}
    return conditions.where(keep, null)


def check_names(names: Mapping[str, object], conditions: Conditions, argument: str) -> None:
    """Raises ValueError for a name that is unknown or whose condition is absent."""
    for name in names:
        if name not in NAMES:
            raise ValueError(f"{argument}: expected names among {', '.join(NAMES)}, got {name!r}")
        if name not in conditions.names:
            raise ValueError(f"{argument}: {name!r} was given, but the conditions have none")


def _where(keep: Tensor, x: Tensor, null: Tensor) -> Tensor:
    return torch.where(keep.to(x.device), x, null.to(x))
