from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixel_runs import save_pixel
from spatext.modules.functional.resampling import downsample
from spatext.modules.functional.resampling import upsample as interpolate
from spatext.modules.generate import generate
from spatext.modules.networks.upsampler import UpsamplerNet
from spatext.modules.sampling_options import Sampling
from spatext.tools.demo_pixel import (
    DRAWN,
    DRAWN_SMALL,
    PICTURES,
    THRESHOLDS,
    PixelResult,
    drawings,
    evaluate,
    judged_by,
    paint,
    psnr,
    write_report,
)
from spatext.tools.demo_scores import LAYOUT_SEED, scenes
from spatext.tools.loading import load_model
from spatext.tools.shapes_world import heldout_layouts

SAMPLING = Sampling(num_steps=2, upsampler_steps=1)
NUM = 3


@pytest.fixture(scope="module")
def checkpoint(workspace: Path, karlo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pixel") / "last.ckpt"
    return save_pixel(workspace, karlo, path, "module.prior.num_steps=2", "module.upsamplers=[]")


@pytest.fixture(scope="module")
def result(checkpoint: Path, karlo: Path) -> PixelResult:
    return evaluate(checkpoint, karlo, num=NUM, sampling=SAMPLING)


def test_true_drawings_pass_and_an_untrained_model_does_not(result: PixelResult) -> None:
    layouts = heldout_layouts(LAYOUT_SEED, 96)  # as many as the demo takes
    true = drawings(layouts)
    small, drawn = (judged_by(images, layouts) for images in (downsample(true, 2), true))
    assert 0.9 < small["local_iou"] < drawn["local_iou"] < 0.96
    perfect = replace(
        result,
        by_pictures={"x_0": small, "upsampler": drawn, DRAWN_SMALL: small, DRAWN: drawn},
        psnr={"interpolation": 26.0, "upsampler": 30.0},
    )
    assert all(threshold.met(perfect.scores[threshold.score]) for threshold in THRESHOLDS)
    assert perfect.scores == perfect.ceiling | {"psnr_gain": 4.0}
    met = [
        threshold.score for threshold in THRESHOLDS if threshold.met(result.scores[threshold.score])
    ]
    assert met in ([], ["shuffled_iou"])
    assert result.num_layouts == NUM
    assert result.num_regions == sum(len(layout.texts) for layout in layouts[:NUM])
    assert result.sides == {"x_0": 32, "interpolation": 64, "upsampler": 64} | {
        DRAWN_SMALL: 32,
        DRAWN: 64,
    }


def test_each_stage_paints_what_the_cascade_paints(checkpoint: Path, karlo: Path) -> None:
    model = load_model(checkpoint)
    upsampler = UpsamplerNet.from_pretrained(str(karlo), 2).eval()
    layouts, seeds = heldout_layouts(LAYOUT_SEED, 2), torch.tensor([3, 4])
    interpolated = generate(model, *scenes(layouts), seeds, SAMPLING)
    model.use_upsamplers([upsampler])
    upsampled = generate(model, *scenes(layouts), seeds, SAMPLING)
    found = paint(model, layouts, seeds, SAMPLING)
    torch.testing.assert_close(found["interpolation"], interpolated, atol=1e-4, rtol=0)
    torch.testing.assert_close(found["upsampler"], upsampled, atol=1e-4, rtol=0)
    assert (upsampled - interpolated).abs().max() > 0.1
    given = paint(model, layouts, seeds, SAMPLING, x_0=torch.zeros(2, 3, 32, 32))
    assert not given["x_0"].any()
    assert (given["upsampler"] - upsampled).abs().max() > 0.1


def test_interpolation_is_held_to_the_drawings(result: PixelResult) -> None:
    layouts = heldout_layouts(LAYOUT_SEED, NUM)
    true = drawings(layouts)
    blurred = interpolate(downsample(true, 2), 2).clamp(-1, 1)
    assert result.psnr["interpolation"] == pytest.approx(psnr(blurred, true), abs=1e-4)
    assert psnr(true + 0.2, true) == pytest.approx(20.0, abs=1e-4)  # 4 / 0.04
    gain = result.psnr["upsampler"] - result.psnr["interpolation"]
    assert result.scores["psnr_gain"] == gain < 0


def test_the_report_says_what_was_met(
    result: PixelResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {"pixel": 12.3, "upsampler": 456.0}
    assert not write_report(tmp_path / "bad", result, seconds)
    scores = {"local_iou": 0.7, "shuffled_iou": 0.2, "matched": 0.5}
    better = replace(
        result,
        by_pictures=result.by_pictures | {"x_0": scores, "upsampler": scores},
        psnr={"interpolation": 20.0, "upsampler": 22.0},
    )
    assert write_report(tmp_path / "good", better, seconds)
    bad, good = ((tmp_path / name / "pixel-report.md").read_text() for name in ("bad", "good"))
    assert good in capsys.readouterr().out
    assert "| NO |" in bad
    assert "| NO |" not in good
    for threshold in THRESHOLDS:
        assert f"| {threshold.text} | {better.scores[threshold.score]:.3f} |" in good
    assert f"| {PICTURES['x_0']} | 32 | 0.700 | 0.200 | 0.500 |" in good
    assert "20.0 dB by interpolation, 22.0 dB by the upsampler" in good
    assert "| all | 468 |" in good
    picture = np.asarray(Image.open(tmp_path / "good" / "pixel-grid.png"))
    np.testing.assert_array_equal(picture, result.picture)
