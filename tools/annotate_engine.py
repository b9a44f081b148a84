"""The segmenter, and CLIP if it is wanted, of one process that annotates."""

from typing import Any

import torch
from hydra.utils import instantiate
from jaxtyping import UInt8
from torch import Tensor

from spatext.datamodules.annotation_engines import Engine
from spatext.datamodules.annotation_work import Reading
from spatext.datamodules.segmenters import DeviceSegmenter, Segmenter

AUTOCAST = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ClipEmbedder:
    """`clip`: a Clip, not imported where it is not wanted; `batch_size` crops at a time."""

    def __init__(self, clip: Any, crop_size: int, batch_size: int, autocast: str | None) -> None:
        self.clip, self.crop_size, self.batch_size = clip, crop_size, batch_size
        self.dtype = AUTOCAST[autocast]

    def __call__(self, crops: UInt8[Tensor, "n 3 c c"]) -> Tensor:
        kind = self.clip.device.type
        with torch.autocast(kind, dtype=self.dtype, enabled=self.dtype is not None):
            parts = [self.clip.embed_images(part) for part in crops.split(self.batch_size)]
        return torch.cat([part.float() for part in parts])


def build_engine(config: dict[str, Any], device: str) -> Engine:
    """`config`: the whole configuration, resolved."""
    given, where = config["datamodule"], torch.device(device)
    segmenter = instantiate(given["segmenter"], _convert_="all")
    if not isinstance(segmenter, Segmenter | DeviceSegmenter):
        found = type(segmenter).__name__
        raise ValueError(f"datamodule.segmenter: found {found}, expected a segmenter")
    if move := getattr(segmenter, "to", None):
        move(where)
    embedder = None
    if config["embeds"]:
        clip = instantiate(config["clip"], _convert_="all").to(where)
        options = {name: config[name] for name in ("batch_size", "autocast")}
        embedder = ClipEmbedder(clip, given["crop_size"], **options)
    eligible = {name: given[name] for name in ("min_area", "things", "stuff")}
    return Engine(segmenter, where, embedder, config["max_regions"], eligible)


def make_reading(config: dict[str, Any], recipe: dict[str, Any]) -> Reading:
    return Reading(recipe["max_pixels"], recipe["min_side"], config["allow_damaged"])


def uses_device(config: dict[str, Any], segmenter: type) -> bool:
    """Whether there is anything for a GPU to do."""
    return config["embeds"] or hasattr(segmenter, "segment")
