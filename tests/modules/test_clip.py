import copy
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from torch.testing import assert_close

from spatext.modules.networks.clip import Clip, has_quick_gelu, preprocess_pixels
from tiny import EMBED_DIM, PREPROCESS, SIZE, TEXTS, unchecked

MEAN, STD = (torch.tensor(PREPROCESS[name])[:, None, None] for name in ("mean", "std"))


def name_of(base: Path) -> str:
    return f"local-dir:{base / 'clip'}"


def draw_pixels(size: int, num: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8)


def pictures(pixels: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(np.asarray(image.movedim(0, -1))) for image in pixels]


@pytest.mark.parametrize("scale", ["raw", "unit"])
def test_images_are_embedded_as_by_open_clip(base: Path, scale: str) -> None:
    model, _, transform = open_clip.create_model_and_transforms(name_of(base))
    pixels = draw_pixels(SIZE)
    inputs = torch.stack([transform(picture) for picture in pictures(pixels)])
    expected = model.eval().encode_image(inputs, normalize=scale == "unit")
    clip = Clip(name_of(base), scale=scale)
    assert_close(clip.embed_images(pixels), expected, rtol=1e-4, atol=1e-4)
    assert_close(clip.embed_images(pixels.float() / 255), expected, rtol=1e-4, atol=1e-4)
    assert (expected.norm(dim=-1) - 1).abs().min() > 0.1 or scale == "unit"


@pytest.mark.parametrize("scale", ["raw", "unit"])
def test_texts_are_embedded_as_by_open_clip(base: Path, scale: str) -> None:
    model = open_clip.create_model(name_of(base)).eval()
    tokens = open_clip.get_tokenizer(name_of(base))([*TEXTS, ""])
    expected = model.encode_text(tokens, normalize=scale == "unit")
    assert_close(
        Clip(name_of(base), scale=scale).embed_texts([*TEXTS, ""]), expected, rtol=1e-4, atol=1e-4
    )
    assert (expected[0] - expected[1]).abs().max() > 1e-2


def test_features_are_rows(base: Path) -> None:
    features = Clip(name_of(base)).encode_texts(TEXTS)
    rows = features[torch.tensor([2, 0, 2])]
    assert len(rows) == 3
    assert_close(features.null.embeds, Clip(name_of(base)).embed_texts([""]), rtol=1e-4, atol=1e-4)
    assert features.null.mask.sum() == 2
    for name in ("embeds", "states", "mask"):
        expected = getattr(features, name)
        assert torch.equal(getattr(rows, name), expected[[2, 0, 2]])
        dropped = getattr(rows.where(torch.tensor([True, False, True]), features[1:2]), name)
        assert torch.equal(dropped, expected[[2, 1, 2]])


def test_unit_is_raw_normalised(base: Path) -> None:
    raw, unit = Clip(name_of(base)), Clip(name_of(base), scale="unit")
    pixels = draw_pixels(SIZE)
    assert_close(
        unit.embed_images(pixels), normalize(raw.embed_images(pixels), dim=-1), rtol=1e-4, atol=1e-4
    )
    assert_close(
        unit.embed_texts(TEXTS), normalize(raw.embed_texts(TEXTS), dim=-1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("size", [12, 37])
def test_resizing_is_that_of_open_clip_but_for_rounding(base: Path, size: int) -> None:
    _, _, transform = open_clip.create_model_and_transforms(name_of(base))
    # Smooth, as pictures are: Pillow rounds to whole levels between its two passes.
    waves = torch.linspace(0, 5, size).sin()[:, None] * torch.linspace(0, 3, size).cos()
    pixels = ((waves.expand(1, 3, -1, -1) + 1) * 127).to(torch.uint8)
    expected = torch.stack([transform(picture) for picture in pictures(pixels)])
    found = preprocess_pixels(pixels, SIZE, MEAN, STD)
    assert_close(found * STD, expected * STD, rtol=0, atol=1.5 / 255)


@pytest.mark.parametrize("size", [SIZE, 24])
def test_black_stays_black(size: int) -> None:
    pixels = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    pixels[..., : size // 2] = 255
    found = preprocess_pixels(pixels, SIZE, MEAN, STD) * STD + MEAN
    assert_close(found[..., -4:], torch.zeros(1, 3, SIZE, 4))
    assert_close(found[..., :4], torch.ones(1, 3, SIZE, 4))
    # Bicubic weights overshoot at the edge; RGB does not.
    assert found.min() > -1e-6
    assert found.max() < 1 + 1e-6


def test_fingerprint(base: Path) -> None:
    expected = {"clip": name_of(base), "scale": "unit", "embed_dim": EMBED_DIM}
    clip = Clip(name_of(base), scale="unit")
    assert clip.fingerprint == expected
    assert clip.image_size == SIZE


def test_it_owns_nothing_but_moves(base: Path) -> None:
    clip = Clip(name_of(base))
    assert clip.state_dict() == {}
    assert list(clip.parameters()) == []
    assert not any(p.requires_grad for p in clip.model.net.parameters())
    assert copy.deepcopy(clip).model.net is clip.model.net
    assert not clip.train().model.net.training
    clip.double()
    assert clip.embed_images(draw_pixels(SIZE)).dtype == torch.float64
    assert clip.embed_texts(TEXTS).dtype == torch.float64
    clip.to("meta")
    assert all(p.is_meta for p in clip.model.net.parameters())


@pytest.mark.parametrize(
    ("name", "pretrained", "reason"),
    [
        ("ViT-Q-99", "openai", "Model config for 'ViT-Q-99' not found in built-ins"),
        ("ViT-B-32", "no-tag", "Pretrained value 'no-tag' is not a known tag"),
        ("local-dir:/no/such", None, "Directory specified via 'local-dir:' schema not found"),
    ],
)
def test_a_wrong_name_is_told_in_one_line(name: str, pretrained: str | None, reason: str) -> None:
    message = rf"^clip.name='{name}' clip.pretrained={pretrained!r}: {reason}.*; expected .*$"
    with pytest.raises(ValueError, match=message) as caught:
        Clip(name, pretrained)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "missing",
    [
        ["open_clip_model.safetensors"],
        ["open_clip_model.safetensors", "linear_prior.safetensors"],
        ["open_clip_config.json"],
        ["tokenizer.json", "tokenizer_config.json"],
    ],
    ids="+".join,
)
def test_a_folder_with_a_missing_part_is_refused_in_one_line(
    base: Path, tmp_path: Path, missing: list[str]
) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    for name in missing:
        (folder / "clip" / name).unlink()
    message = f"^clip.name='{name_of(folder)}' clip.pretrained=None: .*; expected .* with weights"
    with pytest.raises(ValueError, match=message) as caught:
        Clip(name_of(folder))
    assert "\n" not in str(caught.value)


def test_a_wrong_scale_is_named(base: Path) -> None:
    with unchecked(), pytest.raises(ValueError, match=r"^clip.scale: found 'l2', .*'raw', 'unit'"):
        Clip(name_of(base), scale="l2")


@pytest.mark.parametrize(
    ("name", "pretrained", "expected"),
    [
        ("ViT-L-14", "openai", True),
        ("ViT-L/14", "openai", True),
        ("ViT-L-14", "laion2b_s32b_b82k", False),
        ("ViT-H-14", "laion2b_s32b_b79k", False),
        ("hf-hub:org/model", None, False),
    ],
)
def test_weights_get_the_activation_they_were_trained_with(
    name: str, pretrained: str | None, expected: bool
) -> None:
    assert has_quick_gelu(name, pretrained) is expected
