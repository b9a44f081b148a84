"""The datamodule of small scenes, and its batches."""

from typing import Any

import torch

from spatext.datamodules.panoptic import PanopticDataModule

SIZES = {"image_size": 32, "crop_size": 16}


def make(shards: Any, **kwargs: Any) -> PanopticDataModule:
    kwargs = {"segmenter": "stored", "batch_size": 4, **SIZES, **kwargs}
    datamodule = PanopticDataModule(shards, **kwargs)
    datamodule.setup("fit")
    return datamodule


def collect(batches: Any) -> dict[str, Any]:
    """All rows of several batches under one another."""
    rows: dict[str, Any] = {}
    for batch in batches:
        for name, value in batch.items():
            if isinstance(value, torch.Tensor):
                rows[name] = torch.cat([rows[name], value]) if name in rows else value
            else:
                rows[name] = rows.get(name, []) + value
    return rows


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(other[name], value, rtol=0, atol=0)
        else:
            assert other[name] == value
