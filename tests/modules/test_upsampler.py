from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UnCLIPScheduler
from torch.testing import assert_close

from spatext.modules.functional.random import Purpose, normal, randint, uniform
from spatext.modules.functional.resampling import blur, downsample
from spatext.modules.functional.st import Segments
from spatext.modules.functional.variational import respaced, variational_bound
from spatext.modules.networks.clip import Clip
from spatext.modules.upsampler import Upsampler
from tiny import EMBED_DIM, NUM_SEGMENTS, OPTIMIZER, SIZE
from tiny_karlo import FACTOR
from tiny_runs import make_batch
from tiny_upsampler import SCHEDULE, make_module, make_net

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
CLEAN: dict[str, Any] = {"blur_rate": 0.0, "noise_rate": 0.0}


def with_st(base: Path, **options: Any) -> Upsampler:
    net = make_net(embed_dim=EMBED_DIM, st_conv=options.pop("st_conv", "factorised"))
    return make_module(net, clip=Clip(f"local-dir:{base / 'clip'}"), **options)


def record(module: Upsampler) -> list[tuple[Any, ...]]:
    """What the network is called with from now on."""
    calls = []
    denoise = module.net.denoise

    def recorded(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(args)
        return denoise(*args, **options)

    module.net.denoise = recorded  # type: ignore[method-assign]
    return calls


def step_of(module: Upsampler, batch: dict[str, Any]) -> tuple[Any, ...]:
    calls = record(module)
    module.training_step(batch, 0)
    return calls[0]


@pytest.mark.parametrize(("learned", "num"), [(False, None), (True, None), (True, 10)])
def test_the_loss_written_out(learned: bool, num: int | None) -> None:
    options: dict[str, Any] = {"blur_rate": 1.0, "noise_rate": 1.0, "noise_level": 0.3}
    options |= {"vb_weight": 0.02, "num_train_steps": num}
    net = make_net(learned)
    module, batch = make_module(net, seed=5, **options), make_batch(3, 1, 1000, 2**33 + 7)
    index, x_0 = batch["index"], batch["image"]
    found = module.training_step(batch, 0)

    level = 0.3 * uniform(5, Purpose.LOW_RES_LEVEL, index, (3,))[:, 2, None, None, None]
    low = blur(downsample(x_0, FACTOR))
    low = low + level * normal(5, Purpose.LOW_RES_NOISE, index, (3, SIZE // 2, SIZE // 2))
    scheduler = DDPMScheduler(**SCHEDULE)
    noise = normal(5, Purpose.NOISE, index, (3, SIZE, SIZE))
    timesteps, a = respaced(net.alphas_cumprod, num or 1000)
    step = randint(5, Purpose.TIMESTEP, index, len(a))
    x_t = scheduler.add_noise(x_0, noise, timesteps[step])
    prediction = net.denoise(x_t, timesteps[step], low)
    expected = (prediction[:, :3] - noise).square().mean()
    if learned:
        bound = variational_bound(prediction, x_0, x_t, step, a, "epsilon").mean()
        expected = expected + 0.02 * len(a) * bound
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_each_loss_teaches_its_own_outputs() -> None:
    batch, gradients = make_batch(3, 1), []
    for vb_weight in (0.0, 0.5):
        torch.manual_seed(0)
        module = make_module(make_net(learned=True), vb_weight=vb_weight)
        module.training_step(batch, 0).backward()
        gradients.append(module.net.unet.conv_out.weight.grad)
    simple, hybrid = gradients
    assert_close(hybrid[:3], simple[:3], rtol=1e-4, atol=1e-6)
    assert not simple[3:].any()
    assert hybrid[3:].abs().max() > 1e-3


def test_validation_has_clean_images_and_other_noise() -> None:
    module, batch = make_module(blur_rate=1.0, noise_rate=1.0), make_batch(3, 1)
    calls = record(module)
    module.validation_step(batch, 0)
    module.validation_step(batch, 0)
    module.training_step(batch, 0)
    first, second, trained = calls
    assert torch.equal(first[2], downsample(batch["image"], FACTOR))
    assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))
    assert not torch.equal(first[0], trained[0])


def test_blur_and_noise_have_coins_of_their_own() -> None:
    module = make_module(blur_rate=0.3, noise_rate=0.6, noise_level=0.2, seed=2)
    image, index = torch.randn(1, 3, 8, 8).expand(2000, -1, -1, -1), torch.arange(2000)
    found = module.spoiled(image, {"index": index})
    draws = uniform(2, Purpose.LOW_RES_LEVEL, index, (3,))
    is_blurred, is_noisy = draws[:, 0] < 0.3, draws[:, 1] < 0.6
    for coins, rate in ((is_blurred, 0.3), (is_noisy, 0.6), (is_blurred & is_noisy, 0.18)):
        assert abs(coins.float().mean() - rate) < 0.04
    expected = torch.where(is_blurred[:, None, None, None], blur(image), image)
    assert_close(found[~is_noisy], expected[~is_noisy], rtol=0, atol=1e-6)
    deviation = (found - expected)[is_noisy].flatten(1).square().mean(dim=1).sqrt()
    assert ((deviation / (0.2 * draws[is_noisy, 2]) - 1).abs() < 0.35).all()  # of 192 numbers


def test_crops_of_image_low_resolution_and_ids_are_aligned(base: Path) -> None:
    """The image says where it is from: its first channel is the row, its second the column."""
    module = with_st(base, crop=8, drop_rate=0.0, **CLEAN)
    batch = make_batch(3, 1, 7)
    places = torch.arange(SIZE) / SIZE
    batch["image"][:, 0], batch["image"][:, 1] = places[:, None], places
    rows = torch.arange(SIZE, dtype=torch.uint8) // 4 % (NUM_SEGMENTS + 1)
    batch["ids"] = rows[:, None].expand(3, SIZE, SIZE).contiguous()
    calls = record(module)
    x_0, _ = module.targets(batch, module.seed)
    module.training_step(batch, 0)
    _, _, low, segments = calls[0]
    corners = (uniform(0, Purpose.CROP, batch["index"], (2,)) * (SIZE - 8 + 1)).long()
    assert_close(x_0[:, :2, 0, 0] * SIZE, corners.float())
    assert_close(low, downsample(x_0, FACTOR))
    assert torch.equal(segments.ids.float(), (x_0[:, 0] * SIZE).round() // 4 % (NUM_SEGMENTS + 1))
    assert len({tuple(corner) for corner in corners.tolist()}) == 3


def test_a_sample_does_not_depend_on_its_batch(base: Path) -> None:
    module = with_st(base, crop=8, drop_rate=0.5)
    whole = step_of(module, make_batch(3, 1000, 6))
    for row, index in enumerate((3, 1000, 6)):
        alone = step_of(module, make_batch(index))
        for found, expected in zip(alone[:3], whole[:3], strict=True):
            assert_close(found, expected[row : row + 1], rtol=0, atol=1e-5)
        assert torch.equal(alone[3].ids, whole[3].ids[row : row + 1])
        assert torch.equal(alone[3].valid, whole[3].valid[row : row + 1])


def test_segments_are_those_of_the_batch_and_dropped_by_their_own_coin(base: Path) -> None:
    module, batch = with_st(base, drop_rate=0.4, seed=1), make_batch(*range(1, 40))
    segments: Segments = step_of(module, batch)[3]
    kept = uniform(1, Purpose.DROP_SEGMENTS, batch["index"]) >= 0.4
    assert torch.equal(segments.valid, batch["valid"] & kept[:, None])
    assert 0 < kept.sum() < len(kept)
    embeds = module.clip.embed_images(batch["crops"].flatten(0, 1)).view_as(segments.embeds)
    assert_close(segments.embeds, embeds)
    batch["embeds"] = embeds.half() + 1  # cached ones
    assert torch.equal(step_of(module, batch)[3].embeds, batch["embeds"].float())


def test_factorised_trains_as_dense_does(base: Path) -> None:
    found = []
    for st_conv in ("factorised", "dense"):
        torch.manual_seed(3)
        module = with_st(base, crop=8, st_conv=st_conv)
        loss = module.training_step(make_batch(3, 1, 7), 0)
        loss.backward()
        found.append((loss, module.net.unet.conv_in.weight.grad))
    assert_close(*(loss for loss, _ in found), rtol=1e-4, atol=1e-5)
    assert_close(*(gradient for _, gradient in found), rtol=1e-3, atol=1e-5)
    assert found[0][1][:, 6:].any()


def test_a_respaced_schedule_is_that_of_sampling() -> None:
    module = make_module(num_train_steps=7, seed=4)
    scheduler = UnCLIPScheduler()
    scheduler.set_timesteps(7)
    assert torch.equal(module.timesteps, scheduler.timesteps.flip(0))
    batch = make_batch(*range(20))
    calls = record(module)
    module.training_step(batch, 0)
    x_t, t = calls[0][:2]
    assert torch.equal(t, module.timesteps[randint(4, Purpose.TIMESTEP, batch["index"], 7)])
    assert len(t.unique()) > 3
    noise = normal(4, Purpose.NOISE, batch["index"], (3, SIZE, SIZE))
    expected = DDPMScheduler(**SCHEDULE).add_noise(batch["image"], noise, t)
    assert_close(x_t, expected, rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss() -> None:
    module, batch = make_module(make_net(learned=True)), make_batch(*range(4))
    optimizer = OPTIMIZER(module.parameters())
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 7}, "module.crop: found 7, expected a multiple of 2 for this network"),
        ({"blur_rate": 1.5}, r"module.blur_rate: found 1.5, expected a number in \[0, 1\]"),
        ({"noise_level": -1.0}, "module.noise_level: found -1.0, expected at least 0"),
        ({"num_train_steps": 1001}, "module.num_train_steps: found 1001, expected 1 to 1000"),
        ({"net": {"embed_dim": 5}}, "module.clip: found embeddings of width 0, expected 5"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    net = make_net(**options.pop("net", {}))
    with pytest.raises(ValueError, match=message):
        make_module(net, **options)


def test_a_clip_that_nothing_takes_is_refused(base: Path) -> None:
    text = f"module.clip: found embeddings of width {EMBED_DIM}, expected 0"
    with pytest.raises(ValueError, match=text):
        make_module(clip=Clip(f"local-dir:{base / 'clip'}"))
