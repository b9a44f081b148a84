"""The decoder of SpaText without segments is that of unCLIP, step by step."""

from pathlib import Path
from typing import Any

import torch
from diffusers import UnCLIPScheduler
from torch import Tensor
from torch.testing import assert_close

from spatext.modules.functional.conditions import Conditions
from spatext.modules.functional.guidance import fast_guidance
from spatext.modules.functional.sampling import sample
from spatext.modules.functional.st import Segments
from tiny import EMBED_DIM, LATENT_SIZE, TEXTS
from tiny_karlo import load_pipeline, load_pixel_backbone

PROMPTS, NUM_STEPS, SCALE = list(TEXTS[:2]), 8, 8.0


class Recorded:
    """What a run of diffusers' pipeline does, seen at the inputs of its networks."""

    def __init__(self, folder: Path, x_T: Tensor, generators: list[torch.Generator]) -> None:
        self.x_t: list[Tensor] = []
        pipeline = load_pipeline(folder)

        def at_projection(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self.image_embed = kwargs["image_embeddings"]
            self.states = [generator.get_state() for generator in generators]

        def at_decoder(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
            uncond, cond = kwargs["sample"].chunk(2)
            assert torch.equal(uncond, cond)
            self.x_t.append(cond)

        def at_upsampler(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self.image = kwargs["sample"][:, 3:]

        for net, hook in (
            (pipeline.text_proj, at_projection),
            (pipeline.decoder, at_decoder),
            (pipeline.super_res_first, at_upsampler),
        ):
            net.register_forward_pre_hook(hook, with_kwargs=True)
        pipeline(
            PROMPTS,
            prior_num_inference_steps=3,
            decoder_num_inference_steps=NUM_STEPS,
            super_res_num_inference_steps=2,
            decoder_guidance_scale=SCALE,
            decoder_latents=x_T,
            generator=generators,
            output_type="np",
        )


def test_the_guided_trajectory_is_that_of_unclip(karlo: Path) -> None:
    x_T = torch.randn(len(PROMPTS), 3, LATENT_SIZE, LATENT_SIZE)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    recorded = Recorded(karlo, x_T, generators)
    for generator, state in zip(generators, recorded.states, strict=True):
        generator.set_state(state)

    backbone = load_pixel_backbone(karlo).eval()
    segments = Segments.null(1, 1, EMBED_DIM, (1, 1))
    conditions = Conditions(
        backbone.embed_text(PROMPTS), segments.repeat(len(PROMPTS)), recorded.image_embed
    )
    null = Conditions(backbone.embed_text([""]), segments, backbone.null_image_embed)
    found = [x_T]
    x_0 = sample(
        fast_guidance(backbone.denoise, conditions, null, SCALE),
        UnCLIPScheduler.from_config(backbone.scheduler_config),
        x_T,
        NUM_STEPS,
        generators=generators,
        on_step=lambda step, x, x_0_hat: found.append(x),
    )
    assert len(recorded.x_t) == NUM_STEPS
    assert_close(found[:NUM_STEPS], recorded.x_t, rtol=1e-4, atol=1e-4)
    assert_close(backbone.decode(x_0), recorded.image.clamp(-1, 1), rtol=1e-4, atol=1e-4)
    assert (found[-1] - found[0]).abs().mean() > 0.1
    # Every input had a say in it.
    for other in (
        Conditions(null.text.repeat(2, 1, 1), conditions.segments, recorded.image_embed),
        Conditions(conditions.text, conditions.segments, -recorded.image_embed),
    ):
        t = torch.tensor([500, 500])
        change = backbone.denoise(x_T, t, other) - backbone.denoise(x_T, t, conditions)
        assert change.abs().max() > 1e-2
