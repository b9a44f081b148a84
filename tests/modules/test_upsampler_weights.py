"""The weights of an upsampler's folder: all of them, no others, as safetensors alone."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from spatext.modules.networks.upsampler import UpsamplerNet
from tiny_karlo import FACTOR, make_super_res, shaken

FIRST, LAST, SCHEDULER = (f"super_res_{name}" for name in ("first", "last", "scheduler"))
WEIGHTS = "diffusion_pytorch_model.safetensors"


def load(folder: Path) -> UpsamplerNet:
    return UpsamplerNet.from_pretrained(str(folder), FACTOR)


def test_they_are_those_of_the_folder(karlo: Path) -> None:
    net = load(karlo)
    for part, found in ((FIRST, net.unet), (LAST, net.last)):
        assert found is not None
        published = UNet2DModel.from_pretrained(karlo / part)
        assert_close(dict(found.state_dict()), dict(published.state_dict()), rtol=0, atol=0)


Change = Callable[[dict[str, torch.Tensor]], Any]


@pytest.mark.parametrize("part", [FIRST, LAST])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda weights: weights.pop("conv_in.bias"), r"no conv_in\.bias"),
        (lambda weights: weights.update(extra=torch.zeros(3)), "a left-over extra"),
        (lambda weights: weights.update({"conv_in.bias": torch.zeros(3)}), ".*conv_in"),
    ],
    ids=["missing", "left-over", "shape"],
)
def test_others_are_refused_by_name(
    karlo: Path, tmp_path: Path, part: str, change: Change, found: str
) -> None:
    for name in (FIRST, LAST, SCHEDULER):
        shutil.copytree(karlo / name, tmp_path / name)
    weights = load_file(tmp_path / part / WEIGHTS)
    change(weights)
    save_file(weights, tmp_path / part / WEIGHTS, metadata={"format": "pt"})
    given = rf"^upsampler\.path={tmp_path}: {part}/: found {found}"
    with pytest.raises(ValueError, match=given) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_parts_and_other_weights_are_refused(karlo: Path, tmp_path: Path) -> None:
    shutil.copytree(karlo / FIRST, tmp_path / FIRST)
    with pytest.raises(ValueError, match="missing super_res_scheduler"):
        load(tmp_path)
    shutil.copytree(karlo / SCHEDULER, tmp_path / SCHEDULER)
    assert load(tmp_path).last is None
    weights = tmp_path / FIRST / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="only safetensors are read"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"upsampler\.path=/no/folder: no such folder"):
        load(Path("/no/folder"))
    with pytest.raises(ValueError, match=r"upsampler\.scale: found 1, expected at least 2"):
        UpsamplerNet.from_pretrained(str(karlo), 1)


def test_half_files_are_loaded_as_float32(karlo: Path, tmp_path: Path) -> None:
    shutil.copytree(karlo / SCHEDULER, tmp_path / SCHEDULER)
    shaken(make_super_res()).half().save_pretrained(tmp_path / FIRST)
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.float32}
