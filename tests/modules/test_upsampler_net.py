import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UnCLIPScheduler, UNet2DModel
from torch.testing import assert_close

from spatext.modules.functional.sampling import sample
from spatext.modules.functional.st import Segments
from spatext.modules.networks.pixel import PixelBackbone
from spatext.modules.networks.upsampler import UpsamplerNet
from spatext.modules.sampling_options import Sampling, make_upsampler_scheduler
from tiny import EMBED_DIM, NUM_SEGMENTS, SIZE, TEXTS, unchecked
from tiny_karlo import DECODER, FACTOR, load_pipeline, make_pixel_model, make_super_res
from tiny_upsampler import make_net

LOW = SIZE // FACTOR
NUM_STEPS = 7
FIRST, LAST, SCHEDULER = (f"super_res_{name}" for name in ("first", "last", "scheduler"))
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


def load(folder: Path, **options: Any) -> UpsamplerNet:
    return UpsamplerNet.from_pretrained(str(folder), FACTOR, **options)


def draw_inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x_t, low = torch.randn(batch, 3, SIZE, SIZE), torch.rand(batch, 3, LOW, LOW) * 2 - 1
    return x_t, torch.tensor([3, 700])[:batch], low


def draw_segments(batch: int = 2) -> Segments:
    ids = torch.randint(0, NUM_SEGMENTS + 1, (batch, SIZE, SIZE), dtype=torch.uint8)
    embeds = torch.randn(batch, NUM_SEGMENTS, EMBED_DIM)
    return Segments(ids, embeds, torch.ones(batch, NUM_SEGMENTS, dtype=torch.bool))


def enlarged(low: torch.Tensor) -> torch.Tensor:
    options: dict[str, Any] = {"mode": "bicubic", "antialias": True, "align_corners": False}
    return F.interpolate(low, size=(SIZE, SIZE), **options)


@torch.no_grad()
def test_the_trajectory_is_that_of_the_published_pipeline(karlo: Path) -> None:
    """Its last stage, after whatever the others have made and drawn."""
    pipeline = load_pipeline(karlo)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    inputs: list[torch.Tensor] = []  # of the networks
    states: list[torch.Tensor] = []  # of the generators, when the first of them is called
    small: list[torch.Tensor] = []  # what the decoder's scheduler returns

    def before(net: Any, args: Any, options: dict[str, Any]) -> None:
        if not inputs:
            states.extend(generator.get_state() for generator in generators)
        inputs.append(options["sample"])

    def after(*args: Any, **options: Any) -> Any:
        output = step(*args, **options)
        small.append(output.prev_sample)
        return output

    for net in (pipeline.super_res_first, pipeline.super_res_last):
        net.register_forward_pre_hook(before, with_kwargs=True)
    step, pipeline.decoder_scheduler.step = pipeline.decoder_scheduler.step, after
    x_T = torch.randn(2, 3, SIZE, SIZE)
    image = pipeline(
        list(TEXTS[:2]),
        prior_num_inference_steps=2,
        decoder_num_inference_steps=2,
        super_res_num_inference_steps=NUM_STEPS,
        super_res_latents=x_T,
        generator=generators,
        output_type="np",
    ).images

    net = load(karlo)
    low = small[-1].clamp(-1, 1)
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    found = []

    def denoise(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        found.append(x_t)
        return net.denoise(x_t, t, low, last=len(found) == NUM_STEPS)

    sampling = Sampling(upsampler_scheduler="UnCLIPScheduler", upsampler_steps=NUM_STEPS)
    scheduler = make_upsampler_scheduler(sampling, net.scheduler_config)
    x_0 = sample(denoise, scheduler, x_T, NUM_STEPS, generators=generators)
    assert len(inputs) == NUM_STEPS
    for x_t, expected in zip(found, inputs, strict=True):
        assert_close(x_t, expected[:, :3], atol=1e-4, rtol=0)
    expected = torch.from_numpy(image).permute(0, 3, 1, 2) * 2 - 1
    assert_close(x_0.clamp(-1, 1), expected, atol=1e-4, rtol=0)


def test_the_last_network_answers_for_the_last_step_alone(karlo: Path) -> None:
    net, (x_t, t, low) = load(karlo), draw_inputs()
    x = torch.cat([x_t, enlarged(low)], dim=1)
    for last, part in ((False, "super_res_first"), (True, "super_res_last")):
        unet = UNet2DModel.from_pretrained(karlo, subfolder=part)
        found = net.denoise(x_t, t, low, last=last)
        assert_close(found, unet(x, t).sample, atol=1e-5, rtol=0)
    alone = UpsamplerNet(unet=net.unet, scheduler=UnCLIPScheduler(), scale=FACTOR)
    assert_close(alone.denoise(x_t, t, low, last=True), net.denoise(x_t, t, low))


def test_the_last_network_is_held_and_not_owned(karlo: Path) -> None:
    net = load(karlo)
    assert {name.split(".")[0] for name in net.state_dict()} == {"unet"}
    assert len([*net.parameters()]) == len([*net.unet.parameters()])
    assert copy.deepcopy(net).last is net.last
    assert next(net.double().last.parameters()).dtype == torch.float64


def test_st_enters_through_the_first_convolution(karlo: Path) -> None:
    x_t, t, low = draw_inputs()
    segments = draw_segments()
    plain = load(karlo).denoise(x_t, t, low, segments)  # who has no such input does not look
    zero = load(karlo, embed_dim=EMBED_DIM, new_weights="zero").denoise(x_t, t, low, segments)
    assert_close(zero, plain, atol=1e-5, rtol=0)
    net = load(karlo, embed_dim=EMBED_DIM)
    assert_close(net.denoise(x_t, t, low), plain, atol=1e-5, rtol=0)
    null = segments.where(torch.zeros(2, dtype=torch.bool))
    assert_close(net.denoise(x_t, t, low, null), plain, atol=1e-5, rtol=0)
    assert (net.denoise(x_t, t, low, segments) - plain).abs().max() > 0.01


def test_factorised_equals_dense(karlo: Path) -> None:
    inputs, segments = draw_inputs(), draw_segments()
    found = []
    for st_conv in ("factorised", "dense"):
        torch.manual_seed(1)
        net = load(karlo, embed_dim=EMBED_DIM, st_conv=st_conv)
        prediction = net.denoise(*inputs, segments)
        prediction.square().mean().backward()
        found.append((prediction, net.unet.conv_in.weight.grad))
    assert_close(*(prediction for prediction, _ in found), atol=1e-5, rtol=0)
    assert_close(*(gradient for _, gradient in found), atol=1e-5, rtol=0)
    assert found[0][1][:, 6:].abs().max() > 1e-4


@pytest.mark.parametrize(
    ("scheduler", "made"),
    [
        ({"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range"}, UnCLIPScheduler),
        ({"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}, DDPMScheduler),
        ({**LINEAR, "variance_type": "fixed_small_log"}, DDPMScheduler),
    ],
    ids=["learned", "v", "linear"],
)
def test_what_is_written_is_what_is_read(tmp_path: Path, scheduler: Any, made: type) -> None:
    config = {**make_super_res().config, "in_channels": None, "out_channels": None}
    unet = {key: value for key, value in config.items() if value is not None and key[0] != "_"}
    net = UpsamplerNet.from_config(
        unet=unet, scheduler=scheduler, scale=FACTOR, embed_dim=EMBED_DIM
    )
    learned = scheduler.get("variance_type") == "learned_range"
    assert net.learned_variance is learned
    assert net.denoise(*draw_inputs()).shape == (2, 6 if learned else 3, SIZE, SIZE)
    net.save_pretrained(tmp_path)
    schedule = json.loads((tmp_path / SCHEDULER / "scheduler_config.json").read_text())
    assert schedule["_class_name"] == made.__name__
    written = made.from_pretrained(tmp_path, subfolder=SCHEDULER)
    assert_close(written.alphas_cumprod, net.alphas_cumprod, rtol=1e-5, atol=1e-7)

    read = load(tmp_path)
    assert (read.embed_dim, read.last, read.multiple) == (EMBED_DIM, None, 2)
    assert read.prediction_type == scheduler.get("prediction_type", "epsilon")
    assert_close(read.alphas_cumprod, net.alphas_cumprod)
    inputs, segments = draw_inputs(), draw_segments()
    assert_close(read.denoise(*inputs, segments), net.denoise(*inputs, segments))


def edited(folder: Path, part: str, **changes: Any) -> None:
    (path,) = (folder / part).glob("*config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("part", "changes", "options", "message"),
    [
        (FIRST, {"_class_name": "UNet2DConditionModel"}, {}, "expected UNet2DModel"),
        (FIRST, {"in_channels": 3}, {}, "in_channels: found 3, expected 6, of x_t and"),
        (FIRST, {"in_channels": 6 + 5}, {"embed_dim": 8}, "found 11, expected 6.*or 14 as they"),
        (FIRST, {"out_channels": 4}, {}, "out_channels: found 4, expected 3, or 6"),
        (LAST, {"in_channels": 14}, {}, "super_res_last/config.json: in_channels: found 14"),
        (LAST, {"out_channels": 6}, {}, "super_res_last/config.json: out_channels: found 6"),
        (SCHEDULER, {"variance_type": "learned_range"}, {}, "found learned_range.*has 3 outputs"),
        (SCHEDULER, {"beta_schedule": None}, {}, "schedule of betas"),
        (SCHEDULER, {}, {"prediction_type": "sample"}, "found epsilon, expected sample"),
    ],
)
def test_another_kind_of_folder_is_refused_by_name(
    karlo: Path, tmp_path: Path, part: str, changes: Any, options: Any, message: str
) -> None:
    for name in (FIRST, LAST, SCHEDULER):
        shutil.copytree(karlo / name, tmp_path / name)
    if changes.get("beta_schedule", "") is None:
        (tmp_path / part / "scheduler_config.json").write_text("{}")
    else:
        edited(tmp_path, part, **changes)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, **options)
    assert f"upsampler.path={tmp_path}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_decoder_refuses_one_for_other_embeddings(karlo: Path) -> None:
    model = make_pixel_model(karlo)
    fitting = make_net(embed_dim=EMBED_DIM)
    model.use_upsamplers([fitting])
    assert model.upsamplers == (fitting,)
    text = f"module.upsamplers: found one that takes embeddings of width 5, expected {EMBED_DIM}"
    with pytest.raises(ValueError, match=text):
        model.use_upsamplers([make_net(embed_dim=5)])


@pytest.mark.parametrize("found", ["learned", "learnt_range"])
def test_an_unknown_variance_is_refused(karlo: Path, found: str) -> None:
    """diffusers would give it three outputs, and sample with a fixed one."""
    scheduler, known = {"variance_type": found}, "expected one of fixed_small, .*, learned_range$"
    with pytest.raises(ValueError, match=rf"^module\.net\.scheduler\.variance_type: .*{known}"):
        UpsamplerNet.from_config(unet={}, scheduler=scheduler)
    options: dict[str, Any] = {"decoder": DECODER, "embed_dim": EMBED_DIM}
    with pytest.raises(ValueError, match=r"^module\.backbone\.scheduler\.variance_type: found 'l"):
        PixelBackbone.from_config(str(karlo), scheduler=scheduler, **options)


def test_a_wrong_option_is_named_where_it_stands() -> None:
    with unchecked(), pytest.raises(ValueError, match=r"module\.net\.compile: found 'always'"):
        make_net(compile="always")
