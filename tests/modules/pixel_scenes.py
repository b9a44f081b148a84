"""A tiny unCLIP model, three scenes for it, and how the tests of the cascade paint them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatext.modules.functional.random import Purpose, derive_seeds
from spatext.modules.functional.st import Segments
from spatext.modules.generate import generate
from spatext.modules.networks.upsampler import UpsamplerNet
from spatext.modules.pixel_spatext import PixelSpaText
from spatext.modules.sampling_options import Sampling
from tiny import SIZE, TEXTS
from tiny_karlo import FACTOR, make_pixel_model

PROMPTS = [TEXTS[0], "", TEXTS[2]]
LOCAL = [["a blue sea", "two dogs"], ["a yellow star"], []]
SEEDS = torch.tensor([3, 2**40, 11])
IDS = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
IDS[:2, :9], IDS[0, 9:, 4:] = 1, 2


class Recorder(UpsamplerNet):
    """Notes what it is asked: (x_t, t, low, segments, last) of each call."""

    calls: list[tuple[Tensor, Tensor, Tensor, Segments | None, bool]]

    def denoise(
        self,
        x_t: Tensor,
        t: Tensor,
        low: Tensor,
        segments: Segments | None = None,
        *,
        last: bool = False,
    ) -> Tensor:
        self.calls.append((x_t, t, low, segments, last))
        return super().denoise(x_t, t, low, segments, last=last)


def recorder(folder: Path, scale: int = FACTOR, **options: Any) -> Recorder:
    net = Recorder.from_pretrained(str(folder), scale, **options)
    assert isinstance(net, Recorder)
    net.calls = []
    return net


def load(folder: Path, *upsamplers: UpsamplerNet, **options: Any) -> PixelSpaText:
    model: PixelSpaText = make_pixel_model(folder, upsamplers=upsamplers, **options)
    return model.eval().requires_grad_(False)


def paint(model: PixelSpaText, *rows: int, **options: Any) -> Tensor:
    """The scenes of these numbers in one batch; `options` are those of Sampling and of generate."""
    index = list(rows or range(3))
    others = {name: options.pop(name) for name in ("controls", "latent") if name in options}
    steps = {"num_steps": 3, "upsampler_steps": 2}
    return generate(
        model,
        [PROMPTS[i] for i in index],
        IDS[index],
        [LOCAL[i] for i in index],
        SEEDS[index],
        Sampling(**(steps | {key: options[key] for key in options if key != "on_step"})),
        options.get("on_step"),
        **others,
    )


def stage_seeds(num: int) -> Tensor:
    return derive_seeds(SEEDS, Purpose.STAGE_SEED, num)
