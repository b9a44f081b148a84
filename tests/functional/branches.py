"""A denoiser in which conditions interact, and its prediction for each choice of them."""

import torch

from spatext.modules.functional.conditions import Conditions
from spatext.modules.functional.st import Segments, st_map

B, SIZE = 2, (4, 4)


def draw(batch: int, seed: int, image_embed: bool = True) -> Conditions:
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    segments = Segments(
        torch.randint(0, 3, (batch, 8, 8), generator=generator, dtype=torch.uint8),
        torch.randn(batch, 2, 3, **options),
        torch.ones(batch, 2, dtype=torch.bool),
    )
    text = torch.randn(batch, 5, 3, **options)
    return Conditions(text, segments, torch.randn(batch, 3, **options) if image_embed else None)


CONDITIONS = draw(B, 0)
NULL = Conditions(
    draw(1, 1).text,
    Segments.null(1, 2, 3, SIZE, dtype=torch.float64),
    torch.zeros(1, 3, dtype=torch.float64),
)
X_T = torch.randn(B, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
T = torch.tensor([3, 900])
TEXT, ST, IMAGE = CONDITIONS.text, CONDITIONS.segments, CONDITIONS.image_embed


class Denoise:
    """A nonlinear function of all it is given, so that conditions interact; it counts its calls."""

    def __init__(self, learned_variance: bool = False) -> None:
        self.batches: list[int] = []
        self.learned_variance = learned_variance

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        assert len(x_t) == len(t) == len(conditions)
        self.batches.append(len(x_t))
        return self.of(x_t, t, conditions.text, conditions.segments, conditions.image_embed)

    def of(self, x_t, t, text, segments, image_embed) -> torch.Tensor:
        text = text.mean(1)[..., None, None].expand(len(x_t), -1, -1, -1)
        st = st_map(segments, SIZE)
        image = image_embed[..., None, None]
        eps = torch.tanh(x_t + text + 2 * st * text + image * st + 0.001 * t.view(-1, 1, 1, 1))
        return torch.cat([eps, eps.sin()], dim=1) if self.learned_variance else eps


def branch(text: bool = False, segments: bool = False, image_embed: bool = False) -> torch.Tensor:
    """The prediction with the named conditions alone, built without the code under test."""
    null = Segments.null(B, 2, 3, SIZE, dtype=torch.float64)
    assert IMAGE is not None
    return Denoise().of(
        X_T,
        T,
        TEXT if text else NULL.text.expand(B, -1, -1),
        ST if segments else null,
        IMAGE if image_embed else torch.zeros_like(IMAGE),
    )


NONE, ALL = branch(), branch(True, True, True)
