"""Panoptic models of transformers, by hub name or folder, for whole batches on the device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int32, UInt8
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForUniversalSegmentation,
    AutoTokenizer,
    ImageProcessingMixin,
)

from .coco import spoken
from .panoptic_classes import class_labels, is_thing
from .panoptic_merge import MASK_THRESHOLD, OBJECT_THRESHOLD, OVERLAP_THRESHOLD, merge_queries

# The colour of the padding is that of the model's training: Mask2Former and OneFormer pad the
# normalised image with zeros, EoMT the pixels.
BLACK_PADDING = {"mask2former": False, "oneformer": False, "eomt": True, "eomt_dinov3": True}
# Mask2Former's and OneFormer's COCO models are trained on crops of this size (INPUT.IMAGE_SIZE);
# they accept every multiple of their stride.
INPUT_SIZE, STRIDE = 1024, 32


class PanopticModel:
    """Mask2Former, OneFormer or EoMT, frozen; a `DeviceSegmenter`.

    It sees every image alone: the longer side brought to `input_size`, padded to a square, so no
    result depends on the batch. None: the size that the model is made for. Classes and their names
    are those of the model's config, mean and deviation those of its image processor's.
    `things`: numbers of the classes that can be counted; None: known for COCO, ADE20K, Cityscapes.
    Thresholds: see `panoptic_merge`. `bf16`: autocast where the device is a GPU.
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str | None = None,
        input_size: int | None = None,
        things: Sequence[int] | None = None,
        object_threshold: float = OBJECT_THRESHOLD,
        mask_threshold: float = MASK_THRESHOLD,
        overlap_threshold: float = OVERLAP_THRESHOLD,
        bf16: bool = True,
    ) -> None:
        self.name = name
        self.config, processor = _read_configs(name, revision)
        self.model_type: str = self.config.model_type
        self.input_size = _check_size(self.config, input_size)
        self.labels = class_labels(self.config.id2label)
        self.things = is_thing(self.labels, things)
        self.texts = [spoken(label) for label in self.labels]
        self.thresholds: dict[str, Any] = {
            "object_threshold": object_threshold,
            "mask_threshold": mask_threshold,
            "overlap_threshold": overlap_threshold,
        }
        self.bf16 = bf16
        factor = processor.get("rescale_factor", 1 / 255)
        self.mean = [value / factor for value in processor["image_mean"]]
        self.std = [value / factor for value in processor["image_std"]]
        self.task = _task_tokens(name, revision, self.config)
        self.device = torch.device("cpu")
        with _told(name):
            self.net: Any = AutoModelForUniversalSegmentation.from_pretrained(
                name, revision=revision, config=self.config, dtype=torch.float32
            )
        self.net.eval().requires_grad_(False)
        _check_settled(name, self.net)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What its maps depend on, for a cache of them."""
        commit = getattr(self.config, "_commit_hash", None)
        return {
            "name": self.name,
            "revision": commit,
            "model_type": self.model_type,
            "input_size": self.input_size,
            "things": [i for i, thing in enumerate(self.things) if thing],
            "bf16": self.bf16,
            **self.thresholds,
        }

    @staticmethod
    def commit(name: str, revision: str | None = None) -> str | None:
        """Of a model of the hub; None for a folder. ValueError for what is no panoptic model; no
        weights are read."""
        config, _ = _read_configs(name, revision)
        return getattr(config, "_commit_hash", None)

    def to(self, device: torch.device) -> "PanopticModel":
        if device != self.device:
            self.net.to(device)
            self.device = device
        return self

    @torch.no_grad()
    def segment(
        self, pixels: UInt8[Tensor, "b 3 s s"], sizes: Sequence[tuple[int, int]]
    ) -> tuple[Int32[Tensor, "b h w"], list[dict[int, dict[str, Any]]]]:
        """See `DeviceSegmenter`; entries hold id, label, text, isthing, score and area."""
        self.to(pixels.device)
        bf16 = self.bf16 and pixels.is_cuda
        with (
            torch.inference_mode(),
            torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16),
        ):
            inputs = {"pixel_values": self.normalised(pixels, sizes)}
            if self.task is not None:
                inputs["task_inputs"] = self.task.to(pixels.device).expand(len(pixels), -1)
            outputs = self.net(**inputs)
        # Outside of inference mode: what is made from here on may meet gradients in training.
        maps = merge_queries(
            outputs.class_queries_logits,
            outputs.masks_queries_logits,
            torch.tensor(self.things, device=pixels.device),
            input_size=(self.input_size, self.input_size),
            valid=sizes,
            **self.thresholds,
        )
        entries = [
            {
                segment.id: {
                    "id": segment.id,
                    "label": self.labels[segment.label],
                    "text": self.texts[segment.label],
                    "isthing": segment.is_thing,
                    "score": round(segment.score, 4),
                    "area": segment.area,
                }
                for segment in of_image
            }
            for of_image in maps.segments
        ]
        return maps.ids, entries

    def normalised(
        self, pixels: UInt8[Tensor, "b 3 s s"], sizes: Sequence[tuple[int, int]]
    ) -> Float[Tensor, "b 3 s s"]:
        mean, std = (
            torch.tensor(values, device=pixels.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        x = (pixels - mean) / std
        if BLACK_PADDING[self.model_type]:
            return x
        place = torch.arange(self.input_size, device=pixels.device)
        size = torch.tensor(sizes, device=pixels.device)
        inside = (place < size[:, :1])[:, :, None] & (place < size[:, 1:])[:, None, :]
        return x * inside[:, None]


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What transformers raises for a missing, foreign or damaged file, as one line."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"datamodule.segmenter.name: found no panoptic model {name!r}: {reason}"
        ) from None


def _read_configs(name: str, revision: str | None) -> tuple[Any, dict[str, Any]]:
    """The model's config, and its image processor's as written: to build that may download."""
    with _told(name):
        config = AutoConfig.from_pretrained(name, revision=revision)
        processor, _ = ImageProcessingMixin.get_image_processor_dict(name, revision=revision)
    if config.model_type not in BLACK_PADDING:
        raise ValueError(
            f"datamodule.segmenter.name: found a {config.model_type} in {name!r}, expected one of "
            f"{', '.join(BLACK_PADDING)}"
        )
    for key in ("image_mean", "image_std"):
        if key not in processor:
            raise ValueError(f"datamodule.segmenter.name: {name!r} has no {key} in its processor")
    if config.model_type == "oneformer":
        config.is_training = False  # of a fine-tuned one it is set: dropout, and texts are wanted
    return config, processor


def _check_size(config: Any, input_size: int | None) -> int:
    if config.model_type.startswith("eomt"):
        if input_size not in (None, config.image_size):
            raise ValueError(
                f"datamodule.segmenter.input_size: found {input_size}, expected null or "
                f"{config.image_size}, the one size of this EoMT"
            )
        return int(config.image_size)
    size = INPUT_SIZE if input_size is None else input_size
    if size < STRIDE or size % STRIDE:
        raise ValueError(
            f"datamodule.segmenter.input_size: found {size}, expected a multiple of {STRIDE}"
        )
    return size


def _task_tokens(name: str, revision: str | None, config: Any) -> Tensor | None:
    """OneFormer is told what to do; the padding is 0 as its own processor has it."""
    if config.model_type != "oneformer":
        return None
    with _told(name):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what is made where there is no file
        raise ValueError(f"datamodule.segmenter.name: {name!r} has no vocabulary of its tokenizer")
    tokens = tokenizer(
        ["the task is panoptic"],
        padding="max_length",
        max_length=config.task_seq_len,
        truncation=True,
        return_tensors="pt",
    )
    return tokens["input_ids"] * tokens["attention_mask"]


def _check_settled(name: str, net: Any) -> None:
    """EoMT draws at random which masks to ignore while their share is being annealed."""
    shares = getattr(net, "attn_mask_probs", None)
    if shares is not None and ((shares > 0) & (shares < 1)).any():
        raise ValueError(
            f"datamodule.segmenter.name: {name!r} is an EoMT from the middle of its training "
            "(attn_mask_probs between 0 and 1): its maps would be random"
        )
