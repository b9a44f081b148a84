"""Eight small scenes, and how the tests of painting paint them."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch

from spatext.modules.generate import generate
from spatext.modules.painting import Controls
from spatext.modules.sampling_options import Sampling
from spatext.modules.spatext import SpaText
from tiny import SIZE, TEXTS

NUM = 8
PROMPTS = [TEXTS[i % 4] if i % 3 else "" for i in range(NUM)]
LOCAL: list[list[str]] = [["a blue sea", "two dogs"], ["a yellow star"], []] * 2 + [
    ["two dogs"]
] * 2
SEEDS = torch.tensor([3, 2**40, 11, 0, 7, 7, 5, 6])
IDS = torch.zeros(NUM, SIZE, SIZE, dtype=torch.uint8)
IDS[[0, 3], 9:, 4:] = 2
IDS[[0, 1, 3, 4, 6, 7], :9] = 1
FREE = torch.zeros(NUM, SIZE, SIZE, dtype=torch.bool)  # what is repainted, where something is kept
FREE[:, 3:12, 5:] = True
PICTURES = torch.rand(NUM, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def everything() -> Controls:
    """All at once, and different for each image; image 2 asks for nothing."""
    plain = torch.arange(NUM) == 2
    number = torch.arange(NUM)[:, None] / NUM
    ones = torch.ones(NUM, 2)
    return Controls(
        negative_prompts=["" if i == 2 else TEXTS[i % 3] for i in range(NUM)],
        scales={
            "text": torch.tensor([0.0, 3.0, 3.0, 1.0, 2.0, 0.5, 4.0, 0.0]),
            "segments": torch.tensor([2.0, 0.0, 3.0, 1.0, 5.0, 0.5, 4.0, 0.0]),
        },
        strength=torch.where(plain[:, None], ones, 2 * number * torch.tensor([1.0, 0.3])),
        variation=torch.where(plain[:, None], 0 * ones, number * torch.tensor([1.0, 0.4])),
        variation_seeds=SEEDS + 1,
        background=PICTURES,
        repaint=FREE | (torch.arange(NUM) % 2 == 0)[:, None, None],
    )


def rows(controls: Controls, index: Sequence[int]) -> Controls:
    """The controls of some of the images."""

    def pick(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: pick(row) for name, row in value.items()}
        if isinstance(value, list):
            return [value[i] for i in index]
        return None if value is None else value[list(index)]

    return Controls(**{f.name: pick(getattr(controls, f.name)) for f in fields(Controls)})


def paint(
    model: SpaText,
    index: Sequence[int] = range(3),
    controls: Controls | None = None,
    prompts: Sequence[str] = PROMPTS,
    **options: Any,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The latents after each step and the images of these numbers; `controls` are for all eight."""
    index, latents = list(index), []
    image = generate(
        model,
        [prompts[i] for i in index],
        IDS[index],
        [LOCAL[i] for i in index],
        SEEDS[index],
        Sampling(**({"num_steps": 4} | options)),
        lambda _, x, __: latents.append(x),
        controls=controls and rows(controls, index),
    )
    return latents, image


def first_rows(value: float | Sequence[float], num: int = NUM) -> torch.Tensor:
    """A number for the one and two regions of every image."""
    return torch.tensor([[value] * 2] * num if isinstance(value, float) else [list(value)] * num)


def fill(**values: Any) -> Controls:
    """Controls of the first three images, filled up to eight as `paint` wants them."""

    def pad(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: pad(row) for name, row in value.items()}
        if isinstance(value, list):
            return value + [""] * (NUM - len(value))
        return torch.cat([value, value[:1].expand(NUM - len(value), *value.shape[1:])])

    return Controls(**{name: pad(value) for name, value in values.items()})
