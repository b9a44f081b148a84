import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerImageProcessor,
    OneFormerProcessor,
)

from spatext.datamodules.online import fit_whole
from spatext.datamodules.panoptic_classes import COCO, class_labels, is_thing
from spatext.datamodules.panoptic_models import PanopticModel
from spatext.datamodules.segmenters import DeviceSegmenter, Segmenter
from tiny_panoptic import (
    INPUT_SIZE,
    LABELS,
    OPTIONS,
    TASK_LENGTH,
    THINGS,
    WRITERS,
    assert_infos_near,
    assert_near,
    write_model,
)

SIZES = [(64, 64), (40, 64), (64, 23), (64, 64), (9, 64)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {kind: write_model(kind, base / kind) for kind in WRITERS}


def load(folder: Path, **options: Any) -> PanopticModel:
    return PanopticModel(str(folder), **({"input_size": INPUT_SIZE} | OPTIONS | options))


def wholes() -> torch.Tensor:
    """Images of SIZES with blocks of colour, on black."""
    rng = np.random.default_rng(1)
    pixels = np.zeros((len(SIZES), 3, INPUT_SIZE, INPUT_SIZE), dtype=np.uint8)
    for whole, (h, w) in zip(pixels, SIZES, strict=True):
        blocks = rng.integers(0, 256, (3, 4, 4), dtype=np.uint8)
        whole[:, :h, :w] = blocks.repeat(16, 1).repeat(16, 2)[:, :h, :w]
    return torch.from_numpy(pixels)


@pytest.mark.parametrize("kind", WRITERS)
def test_finds_segments_as_said(folders: dict[str, Path], kind: str) -> None:
    model = load(folders[kind])
    assert isinstance(model, DeviceSegmenter)
    assert not isinstance(model, Segmenter)
    assert model.fingerprint["model_type"] == kind
    assert json.loads(json.dumps(model.fingerprint))["things"] == THINGS
    ids, infos = model.segment(wholes(), SIZES)
    assert ids.dtype == torch.int32
    assert ids.shape == (len(SIZES), 64, 64)
    assert not ids.is_inference()
    for of_image, info, (h, w) in zip(ids, infos, SIZES, strict=True):
        assert not of_image[h:].any()
        assert not of_image[:, w:].any()
        assert list(info) == list(range(1, len(info) + 1))
        for i, entry in info.items():
            assert entry["id"] == i
            assert entry["area"] == (of_image == i).sum()
            assert entry["isthing"] == (entry["label"] in ("cat", "dog", "bus"))
            assert 0.5 < entry["score"] <= 1
    assert sum(len(info) for info in infos) >= 8
    assert len({entry["label"] for info in infos for entry in info.values()}) >= 2
    spoken = {"sky-other-merged": "sky", "floor-wood": "floor wood"}
    texts = [(e["label"], e["text"]) for info in infos for e in info.values()]
    assert all(text == spoken.get(label, label) for label, text in texts)


@pytest.mark.parametrize("kind", WRITERS)
def test_an_image_alone_is_the_same_as_in_any_batch(folders: dict[str, Path], kind: str) -> None:
    model, pixels = load(folders[kind]), wholes()
    ids, infos = model.segment(pixels, SIZES)
    order = [3, 0, 4]
    some, some_infos = model.segment(pixels[order], [SIZES[i] for i in order])
    assert_near(some, ids[order])
    for i, size in enumerate(SIZES):
        alone, (info,) = model.segment(pixels[i : i + 1], [size])
        assert_near(alone[0], ids[i, : size[0], : size[1]])
        assert_infos_near(info, infos[i])
    for info, i in zip(some_infos, order, strict=True):
        assert_infos_near(info, infos[i])


def test_pixels_are_normalised_as_the_models_own_processors_do(folders: dict[str, Path]) -> None:
    """Where these pad, EoMT's pads black pixels; the original Mask2Former zeros afterwards."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8))
    whole, size = fit_whole(image, INPUT_SIZE)
    assert size == (40, 64)
    pixels = torch.from_numpy(whole).permute(2, 0, 1)[None]
    processor = EomtImageProcessor.from_pretrained(folders["eomt"])
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    found = load(folders["eomt"]).normalised(pixels, [size])[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found[:, 40:] < -1).all()
    other = Mask2FormerImageProcessor.from_pretrained(folders["mask2former"])
    expected = other(image, return_tensors="pt", do_resize=False)["pixel_values"][0]
    found = load(folders["mask2former"]).normalised(pixels, [size])[0]
    torch.testing.assert_close(found[:, :40], expected[:, :40], atol=1e-5, rtol=0)
    assert not found[:, 40:].any()


def test_the_whole_image_is_fitted_with_its_longer_side() -> None:
    image = Image.fromarray(np.full((30, 90, 3), 200, dtype=np.uint8))
    whole, size = fit_whole(image, 64)
    assert size == (21, 64)
    assert (whole[:21] == 200).all()
    assert not whole[21:].any()
    assert fit_whole(image.rotate(90, expand=True), 64)[1] == (64, 21)


def test_oneformer_is_told_the_task_as_by_its_own_processor(folders: dict[str, Path]) -> None:
    model = load(folders["oneformer"])
    processor = OneFormerProcessor.__new__(OneFormerProcessor)  # its constructor may download
    processor.tokenizer = AutoTokenizer.from_pretrained(folders["oneformer"])
    expected = processor._preprocess_text(["the task is panoptic"], max_length=TASK_LENGTH)
    assert model.task is not None
    assert torch.equal(model.task, expected)
    assert expected[0, -1] == 0
    assert expected[0, 0] > 0


def test_a_fine_tuned_oneformer_is_no_longer_in_training(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    tuned = shutil.copytree(folders["oneformer"], tmp_path / "tuned")
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps(config | {"is_training": True}))
    ids, infos = load(tuned).segment(wholes(), SIZES)
    expected, expected_infos = load(folders["oneformer"]).segment(wholes(), SIZES)
    assert torch.equal(ids, expected)
    assert infos == expected_infos


def test_the_threshold_decides_what_is_found(folders: dict[str, Path]) -> None:
    _, sure = load(folders["eomt"], object_threshold=0.9999).segment(wholes(), SIZES)
    _, found = load(folders["eomt"]).segment(wholes(), SIZES)
    assert sum(map(len, sure)) < sum(map(len, found))


def test_wrong_models_are_refused_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    CLIPTextConfig().save_pretrained(tmp_path / "clip")
    shutil.copy(folders["eomt"] / "preprocessor_config.json", tmp_path / "clip")
    half = EomtForUniversalSegmentation.from_pretrained(folders["eomt"])
    half.attn_mask_probs.fill_(0.3)
    shutil.copytree(folders["eomt"], tmp_path / "half")
    half.save_pretrained(tmp_path / "half")
    bare = shutil.copytree(folders["eomt"], tmp_path / "bare")
    (bare / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0]}')
    empty = shutil.copytree(folders["eomt"], tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    cut = shutil.copytree(folders["eomt"], tmp_path / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    mute = shutil.copytree(folders["oneformer"], tmp_path / "mute")
    for path in mute.glob("tokenizer*"):
        path.unlink()
    foreign = shutil.copytree(folders["eomt"], tmp_path / "foreign")
    (foreign / "config.json").write_text('{"model_type": "nonsense"}')
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (cut.parent, {}, r"segmenter\.name: found no panoptic model '.*cut': "),
        (mute, {}, r"segmenter\.name: '.*mute' has no vocabulary of its tokenizer"),
        (foreign, {}, r"segmenter\.name: found no panoptic model '.*foreign': .*nonsense"),
        (empty, {}, "no panoptic model '.*empty': .*model.safetensors"),
        (tmp_path / "none", {}, r"segmenter\.name: found no panoptic model '.*none'"),
        (tmp_path / "clip", {}, r"found a clip_text_model in .*, expected one of mask2former, one"),
        (tmp_path / "half", {}, "random"),
        (bare, {}, "has no image_std"),
        (folders["eomt"], {"input_size": 32}, r"input_size: found 32, expected null or 64"),
        (folders["mask2former"], {"input_size": 100}, "input_size: found 100, expected a multiple"),
        (folders["eomt"], {"things": None}, r"things: .* among the 5 classes \('cat', "),
        (folders["eomt"], {"things": [0, 5]}, r"things: found 5, expected 0 to 4"),
    ]
    for folder, options, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            load(folder, **options)
        assert "\n" not in str(error.value)


def test_sizes_by_default(folders: dict[str, Path]) -> None:
    assert load(folders["eomt"], input_size=None).input_size == 64
    assert load(folders["mask2former"], input_size=None).input_size == 1024


def test_things_are_known_for_the_published_data_sets() -> None:
    coco = is_thing(COCO)
    assert (sum(coco), coco[79], coco[80]) == (80, True, False)
    assert COCO[79:81] == ("toothbrush", "banner")
    ade = is_thing(["wall", "building"] + ["other"] * 148)
    assert sum(ade) == 100
    assert [ade[i] for i in (0, 7, 12, 21, 149)] == [False, True, True, False, True]
    cityscapes = is_thing(["road"] + ["other"] * 18)
    assert cityscapes == [False] * 11 + [True] * 8
    assert is_thing(["a", "b", "c"], [1]) == [False, True, False]


def test_placeholders_are_no_names(caplog: pytest.LogCaptureFixture) -> None:
    """EoMT's published checkpoints name none of COCO's classes."""
    assert class_labels({i: f"LABEL_{i}" for i in range(133)}) == list(COCO)
    assert class_labels(LABELS) == list(LABELS.values())
    assert caplog.records == []
    assert class_labels({0: "LABEL_0", 1: "LABEL_1"}) == ["", ""]
    assert "names none of its 2 classes" in caplog.text
