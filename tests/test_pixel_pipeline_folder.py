"""Folders of the pixel pipeline: written, read again, trained on from, and refused if not whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UnCLIPScheduler, UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from piped import SCENE, assert_refused, load_pixels, painted, pixels, quiet
from spatext.callbacks.export import halve
from spatext.modules.networks.pixel import PixelBackbone
from spatext.modules.networks.priors import IdentityPrior
from spatext.modules.networks.upsampler import UpsamplerNet
from spatext.modules.pixel_spatext import PixelSpaText
from spatext.modules.sampling_options import Sampling
from spatext.pipeline import SpaTextPipeline, SpaTextPixelPipeline, load_pipeline, pipeline_of
from tiny import EMBED_DIM, LR_SCHEDULER, OPTIMIZER, load_spatext
from tiny_karlo import DECODER, FACTOR, load_pixel_backbone


@pytest.fixture(scope="module")
def model(karlo: Path) -> PixelSpaText:
    return load_pixels(karlo)


@pytest.fixture(scope="module")
def folder(model: PixelSpaText, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pixel") / "folder"
    quiet(model, record={"step": 2}).save_pretrained(folder)
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def networks(pipeline: Any) -> dict[str, nn.Module]:
    nets = {name: net for name, net in pipeline.components.items() if isinstance(net, nn.Module)}
    return nets | {"last": pipeline.upsampler_1.last}


def test_a_round_trip(
    karlo: Path, model: PixelSpaText, folder: Path, tmp_path: Path, capsys: Any
) -> None:
    """Of a folder that was written, read, by the class that it names, and written again."""
    capsys.readouterr()
    again = load_pipeline(folder)
    assert "Warning" not in capsys.readouterr().err
    assert type(again) is SpaTextPixelPipeline
    for name, net in networks(quiet(model)).items():
        assert_close(net.state_dict(), networks(again)[name].state_dict(), rtol=0, atol=0)
        assert not any(part.training for part in networks(again)[name].modules()), name
    assert again.model.upsamplers == (again.upsampler_1,)
    found = pixels(again(SCENE, num_images=2).images)
    np.testing.assert_array_equal(found, painted(model, SCENE, 5, 6))
    again.save_pretrained(tmp_path / "again")
    assert files(tmp_path / "again") == files(folder)
    for name in files(folder):
        content = (tmp_path / "again" / name).read_bytes()
        if not name.endswith("tokenizer.json"):  # it notes how it was called last
            assert content == (folder / name).read_bytes(), name
        assert str(tmp_path.parent).encode() not in content  # where the parts were read from
        assert str(karlo.parent).encode() not in content
    assert {Path(name).suffix for name in files(folder)} == {".safetensors", ".json", ".md"}
    index = json.loads((folder / "model_index.json").read_text())
    assert index["upsampler_1"] == ["spatext.pipeline_parts", "UpsamplerPart"]
    assert (index["upsampler_2"], index["factor"]) == ([None, None], FACTOR)


def test_parts_load_by_classes_of_diffusers(folder: Path, model: PixelSpaText) -> None:
    decoder = UNet2DConditionModel.from_pretrained(folder, subfolder="decoder")
    assert decoder.conv_in.in_channels == 3 + EMBED_DIM
    first = UNet2DModel.from_pretrained(folder / "upsampler_1", subfolder="super_res_first")
    expected = model.upsamplers[0].unet.state_dict()
    assert_close(first.state_dict(), dict(expected), rtol=0, atol=0)


def test_training_goes_on_from_a_folder(karlo: Path, folder: Path, model: PixelSpaText) -> None:
    """It is one in the layout of Karlo, whose map is not drawn anew; its upsamplers are others."""
    backbone = load_pixel_backbone(folder)
    assert isinstance(model.backbone, PixelBackbone)
    assert_close(dict(backbone.state_dict()), dict(model.backbone.state_dict()), rtol=0, atol=0)
    own = model.backbone.scheduler_config
    same = {key: backbone.scheduler_config[key] for key in own if not key.startswith("_")}
    assert same == {key: own[key] for key in same}
    net = UpsamplerNet.from_pretrained(str(folder / "upsampler_1"), FACTOR)
    assert_close(dict(net.state_dict()), dict(model.upsamplers[0].state_dict()), rtol=0, atol=0)
    other = load_pixels(folder, upsamplers=[net], prior=model.prior)
    np.testing.assert_array_equal(painted(other, SCENE, 5), painted(model, SCENE, 5))


def test_karlos_own_schedulers(model: PixelSpaText, tmp_path: Path) -> None:
    """As conf/sampling/karlo.yaml has them; a call may name another."""
    own: dict[str, Any] = {"scheduler": "UnCLIPScheduler", "scale": 8.0}
    own |= {"upsampler_scheduler": "UnCLIPScheduler"}
    sampling = Sampling(num_steps=2, upsampler_steps=2, **own)
    pipeline_of(model, sampling=sampling).save_pretrained(tmp_path)
    pipeline = load_pipeline(tmp_path)
    assert isinstance(pipeline.scheduler, UnCLIPScheduler)
    for options in ({}, {"scheduler": "DDPMScheduler"}, {"thresholding": "none"}):
        found = pixels(pipeline(SCENE, **options).images)
        np.testing.assert_array_equal(found, painted(model, SCENE, 5, **(own | options)))


def test_half_files_are_read_as_float32(folder: Path, tmp_path: Path) -> None:
    small = shutil.copytree(folder, tmp_path / "small")
    halve(small)
    for name in ("decoder", "text_proj", "upsampler_1/super_res_last"):
        weights = load_file(small / name / "diffusion_pytorch_model.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float16}
    pipeline = SpaTextPixelPipeline.from_pretrained(small)
    for net in networks(pipeline).values():
        assert {p.dtype for p in net.parameters()} <= {torch.float32}
    expected = pixels(SpaTextPixelPipeline.from_pretrained(folder)(SCENE).images).astype(int)
    error = np.abs(pixels(pipeline(SCENE).images) - expected).mean()
    assert error < 12 < expected.std() / 4  # of 255; these pictures are at both ends of it
    half = SpaTextPixelPipeline.from_pretrained(small, dtype=torch.bfloat16)
    for net in networks(half).values():
        assert {p.dtype for p in net.parameters()} <= {torch.bfloat16}
    half.save_pretrained(tmp_path / "half")  # whose configurations say so
    for net in networks(SpaTextPixelPipeline.from_pretrained(tmp_path / "half")).values():
        assert {p.dtype for p in net.parameters()} <= {torch.float32}


def test_a_decoder_in_the_manner_of_glide(karlo: Path, model: PixelSpaText, tmp_path: Path) -> None:
    """Whose text is trained, and which sees no embedding of the image."""
    text = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1}
    backbone = PixelBackbone.from_config(
        str(karlo),
        decoder=DECODER,
        scheduler={"prediction_type": "v_prediction"},
        embed_dim=EMBED_DIM,
        image_embed=False,
        text_encoder=text | {"num_attention_heads": 2},
        train_text=True,
    )
    options = {"optimizer": OPTIMIZER, "lr_scheduler": LR_SCHEDULER, "drop_rates": {"text": 0.1}}
    model = PixelSpaText(backbone, model.clip, IdentityPrior(), **options).eval()
    expected = painted(model, SCENE, 5)
    quiet(model).save_pretrained(tmp_path)
    again = load_pipeline(tmp_path)
    assert again.model.backbone.null_image_embed is None
    assert not any(p.requires_grad for p in again.text_encoder.parameters())
    np.testing.assert_array_equal(pixels(again(SCENE).images), expected)


def edit(name: str, **values: Any) -> Callable[[Path], None]:
    def call(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return call


def remove(name: str) -> Callable[[Path], None]:
    def call(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return call


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (remove("text_proj"), "missing text_proj; expected decoder, text_proj"),
        (remove("scheduler"), "missing scheduler; expected decoder"),
        (remove("upsampler_1"), "missing upsampler_1; expected"),
        (remove("upsampler_1/upsampler.json"), "missing upsampler_1/upsampler.json"),
        (remove("upsampler_1/super_res_first"), "missing super_res_first; expected"),
        (
            edit("upsampler_1/upsampler.json", scale=3),
            "upsampler_1: scale: found 3, expected a product of 2, the factor in model_index.json",
        ),
        (
            edit("decoder/config.json", in_channels=3),
            "decoder/config.json: in_channels: found 3, expected 11: the image's and 8 of CLIP's",
        ),
        (
            edit("text_proj/config.json", clip_embeddings_dim=9),
            "text_proj/config.json: clip_embeddings_dim: found 9, expected 8",
        ),
        (
            edit("model_index.json", _class_name="SpaTextPipeline"),
            "model_index.json: found a SpaTextPipeline, expected a SpaTextPixelPipeline",
        ),
    ],
)
def test_a_broken_folder_is_refused(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    break_it: Callable[[Path], None],
    message: str,
) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    break_it(broken)
    assert_refused(SpaTextPixelPipeline, broken, message, capsys)


def test_the_class_is_that_of_the_folder(base: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found a SpaTextPixelPipeline, expected a SpaTextPipel"):
        SpaTextPipeline.from_pretrained(folder)

    class Own(SpaTextPixelPipeline):
        pass

    assert type(Own.from_pretrained(folder)) is Own
    quiet(load_spatext(base)).save_pretrained(tmp_path / "latent")
    assert type(load_pipeline(tmp_path / "latent")) is SpaTextPipeline
    other = shutil.copytree(folder, tmp_path / "other")
    edit("model_index.json", _class_name="FluxPipeline")(other)
    told = "found a FluxPipeline, expected a SpaTextPipeline or a SpaTextPixelPipeline"
    with pytest.raises(ValueError, match=f"^pipeline={other}: model_index.json: {told}"):
        load_pipeline(other)
