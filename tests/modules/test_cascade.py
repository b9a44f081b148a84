"""Prior, decoder, upsampler: what one hands to the next, and by which numbers each draws."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.pipelines.deprecated.unclip import UnCLIPPipeline
from torch import Tensor, nn
from torch.testing import assert_close

from pixel_scenes import LOCAL, PROMPTS, SEEDS, load, paint, recorder, stage_seeds
from spatext.callbacks.images import preview
from spatext.modules.cascade import count_steps, size_multiple
from spatext.modules.functional.resampling import downsample
from spatext.modules.functional.sampling import initial_noise
from spatext.modules.generate import to_pixels
from spatext.modules.networks.upsampler import UpsamplerNet
from spatext.modules.painting import Controls
from spatext.modules.sampling_options import Sampling
from tiny import EMBED_DIM, LATENT_SIZE, SIZE, unchecked
from tiny_karlo import FACTOR, load_pipeline

KARLO: dict[str, Any] = {"scheduler": "UnCLIPScheduler", "upsampler_scheduler": "UnCLIPScheduler"}
KARLO |= {"num_steps": 4, "upsampler_steps": 7}
CLOSE = {"rtol": 1e-3, "atol": 2e-3}


class KnownPrior(nn.Module):
    """In the place of diffusers' prior: it ends at the embeddings that ours has drawn."""

    config = SimpleNamespace(embedding_dim=EMBED_DIM)
    device = torch.device("cpu")

    def __init__(self, embeds: Tensor) -> None:
        super().__init__()
        self.embeds = embeds

    def forward(self, latents: Tensor, **_: Any) -> Any:
        return SimpleNamespace(predicted_image_embedding=latents)

    def post_process_latents(self, latents: Tensor) -> Tensor:
        return self.embeds


class Reseeded(UnCLIPPipeline):
    """Each stage, which begins with its bar, draws by its own seeds."""

    def progress_bar(self, iterable: Any = None, total: Any = None) -> Any:
        self.begun.append([*self.waiting.pop(0)])
        for generator, seed in zip(self.drawing, self.begun[-1], strict=True):
            generator.manual_seed(int(seed))
        return iterable


def test_without_st_it_is_the_pipeline_of_unclip(karlo: Path) -> None:
    """Guided, with a learned variance, and another network in the upsampler's last step."""
    net = UpsamplerNet.from_pretrained(str(karlo), FACTOR)
    model = load(karlo, net, new_weights="zero")
    embeds = model.scene_conditions(PROMPTS, torch.zeros(3, 4, 4).byte(), LOCAL, SEEDS).image_embed
    parts = load_pipeline(karlo).components
    pipeline = Reseeded(**parts)
    pipeline.prior = KnownPrior(embeds)
    own = stage_seeds(1)[:, 0]
    pipeline.waiting, pipeline.begun = [SEEDS.tolist(), SEEDS.tolist(), own.tolist()], []
    pipeline.drawing = [torch.Generator() for _ in SEEDS]
    expected = pipeline(
        PROMPTS,
        prior_num_inference_steps=2,
        decoder_num_inference_steps=4,
        super_res_num_inference_steps=7,
        generator=pipeline.drawing,
        decoder_latents=initial_noise(SEEDS, (3, LATENT_SIZE, LATENT_SIZE)),
        super_res_latents=initial_noise(own, (3, SIZE, SIZE)),
        prior_guidance_scale=1.0,
        decoder_guidance_scale=3.0,
        output_type="np",
    ).images
    assert len(pipeline.begun) == 3
    found = paint(model, **KARLO, scale=3.0, append_texts=False)
    assert_close((found.movedim(1, -1) + 1) / 2, torch.from_numpy(expected), rtol=0, atol=1e-4)
    # Each part of it is seen in the picture.
    net.held_last = None
    assert (paint(model, **KARLO, append_texts=False) - found).abs().max() > 1e-2


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "UnCLIPScheduler"])
def test_an_image_does_not_depend_on_its_batch(karlo: Path, scheduler: str) -> None:
    model = load(karlo, UpsamplerNet.from_pretrained(str(karlo), FACTOR))
    options = {"scheduler": scheduler, "upsampler_scheduler": scheduler}
    together = paint(model, **options)
    assert together.shape == (3, 3, SIZE, SIZE)
    assert together.abs().max() <= 1
    for row in range(3):
        assert_close(paint(model, row, **options)[0], together[row], **CLOSE)
    torch.manual_seed(5)
    assert torch.equal(paint(model, **options), together)
    assert (together[0] - together[1]).abs().mean() > 1e-2


def test_each_stage_has_noise_of_its_own(karlo: Path) -> None:
    """And is given the clamped images before it, which do not know how many stages follow."""
    nets = [recorder(karlo, 2), recorder(karlo, 2)]
    model = load(karlo, factor=4)
    options = {"thresholding": "none", "upsampler_steps": [3, 2]}
    x_0 = paint(model, latent=True, **options)
    assert x_0.abs().max() > 1.1
    model.use_upsamplers(nets)
    assert torch.equal(paint(model, latent=True, **options), x_0)
    image = paint(model, **options)
    assert [len(net.calls) for net in nets] == [3, 2]
    for stage, net in enumerate(nets):
        side = LATENT_SIZE << stage
        x_T = initial_noise(stage_seeds(4)[:, stage], (3, side, side))
        assert_close(net.calls[0][0], x_T)
        assert [call[4] for call in net.calls] == [False] * (len(net.calls) - 1) + [True]
        assert all(call[3] is None for call in net.calls)
    assert_close(nets[0].calls[0][2], x_0.clamp(-1, 1))
    assert nets[1].calls[0][2].shape[-1] == LATENT_SIZE
    assert nets[1].calls[0][2].abs().max() <= 1 >= image.abs().max()
    with pytest.raises(ValueError, match=r"^sampling.upsampler_steps: found \[3\], expected a num"):
        paint(model, upsampler_steps=[3])
    assert size_multiple(load(karlo, nets[0])) == 4
    assert size_multiple(model) == 8


def test_st_is_for_upsamplers_that_were_trained_with_it(karlo: Path) -> None:
    net = recorder(karlo, embed_dim=EMBED_DIM)
    net.held_last = None
    model = load(karlo, net)
    image = paint(model)
    segments = net.calls[0][3]
    assert segments is not None
    assert segments.valid.tolist() == [[True, True], [True, False], [False, False]]
    net.unet.conv_in.weight.data[:, 6:] = 0
    assert (paint(model) - image).abs().amax(dim=(1, 2, 3))[:2].min() > 1e-3


def test_images_between_stages_may_be_quantised(karlo: Path) -> None:
    net = recorder(karlo)
    model = load(karlo, net)
    paint(model)
    paint(model, quantise=True)
    plain, quantised = net.calls[0][2], net.calls[2][2]
    levels = (quantised + 1) * 127.5
    assert_close(levels, levels.round())
    assert_close(quantised, plain, rtol=0, atol=1 / 255 + 1e-6)
    assert (quantised - plain).abs().max() > 1e-4


def test_steps_and_previews_go_on_through_the_stages(karlo: Path) -> None:
    model = load(karlo, UpsamplerNet.from_pretrained(str(karlo), FACTOR))
    options = {"scheduler": "HeunDiscreteScheduler", "num_steps": 3, "upsampler_steps": 4}
    seen: list[tuple[int, Tensor, Any]] = []

    def on_step(step: int, x_t: Tensor, x_0_hat: Tensor) -> None:
        seen.append((step, x_t, preview(model, x_0_hat, (SIZE, SIZE))))

    image = paint(model, on_step=on_step, **options)
    num = count_steps(model, Sampling(**options))
    assert [step for step, _, _ in seen] == [*range(num)] == [*range(5 + 4)]
    assert [x.shape[-1] for _, x, _ in seen] == [LATENT_SIZE] * 5 + [SIZE] * 4
    assert {shown.shape for _, _, shown in seen} == {(3, SIZE, SIZE, 3)}
    assert (seen[-1][2] == to_pixels(image.clamp(-1, 1)).numpy()).mean() > 0.8
    assert count_steps(model, Sampling(**options), latent=True) == 5
    seen.clear()
    paint(model, on_step=on_step, latent=True, **options)
    assert len(seen) == 5


def test_a_background_is_kept_at_every_size(karlo: Path) -> None:
    model = load(karlo, UpsamplerNet.from_pretrained(str(karlo), FACTOR))
    background = torch.rand(3, 3, SIZE, SIZE) * 2 - 1
    repaint = torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
    repaint[:2, 4:11, 5:] = True
    repaint[2] = True
    controls = Controls(background=background, repaint=repaint)
    shown: list[Tensor] = []
    image = paint(model, controls=controls, on_step=lambda _, __, x_0: shown.append(x_0))
    kept = ~repaint[:, None].expand_as(image)
    assert torch.equal(image[kept], background[kept])
    assert (image[~kept] - background[~kept]).abs().mean() > 0.05
    assert_close(shown[0][:2, :, 6:], downsample(background, FACTOR)[:2, :, 6:])
    assert torch.equal(shown[-1][kept], background[kept])  # in the upsampler, not only at the end
    assert_close(image[2], paint(model, 2)[0], **CLOSE)


def test_half_precision_is_that_of_the_networks_alone(karlo: Path) -> None:
    model = load(karlo, UpsamplerNet.from_pretrained(str(karlo), FACTOR, embed_dim=EMBED_DIM))
    expected, seen = paint(model), set()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = paint(model)
    model.to(torch.bfloat16)
    found = paint(model, on_step=lambda _, x_t, x_0: seen.update((x_t.dtype, x_0.dtype)))
    assert seen == {found.dtype} == {torch.float32}
    for image in (mixed, found):
        assert 1e-4 < (image - expected).abs().mean() < 0.1


def test_without_upsamplers_the_decoders_image_is_interpolated(karlo: Path) -> None:
    model = load(karlo)
    assert_close(paint(model), model.backbone.decode(paint(model, latent=True)))
    assert count_steps(model, Sampling(num_steps=3)) == 3
    assert size_multiple(model) == model.backbone.multiple


def test_options_that_need_an_autoencoder_are_refused(karlo: Path) -> None:
    model = load(karlo)
    message = "sampling.vae_tiling: found with a PixelBackbone, which has no autoencoder"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        paint(model, vae_tiling=True)
    for steps in ([], [3, 0], "ten"):
        with unchecked(), pytest.raises(ValueError, match=r"^sampling.upsampler_steps: found"):
            Sampling(upsampler_steps=steps)
