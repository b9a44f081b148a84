"""Tiny panoptic models: the classes that users load, with random weights, as they find them.

Their predictions mean nothing but are as sure as those of trained ones: some queries find an
object, each in a part of the image of its own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    OneFormerImageProcessor,
    SwinConfig,
)

from spatext.modules.networks.text_tower import train_tokenizer

LABELS = {0: "cat", 1: "dog", 2: "sky-other-merged", 3: "floor-wood", 4: "bus"}
THINGS = [0, 1, 4]
INPUT_SIZE, NUM_QUERIES, TASK_LENGTH = 64, 12, 16
PREPROCESS = {"image_mean": [0.3, 0.4, 0.5], "image_std": [0.2, 0.25, 0.3]}
# Random masks overlap: what a query won may be little of its mask.
OPTIONS: dict[str, Any] = {
    "things": THINGS,
    "object_threshold": 0.5,
    "overlap_threshold": 0.1,
}


def swin() -> SwinConfig:
    return SwinConfig(
        image_size=INPUT_SIZE,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def decoder() -> dict[str, Any]:
    """What Mask2Former and OneFormer have in common."""
    return {
        "backbone_config": swin(),
        "hidden_dim": 32,
        "encoder_feedforward_dim": 32,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "num_attention_heads": 2,
        "dim_feedforward": 32,
        "num_queries": NUM_QUERIES,
        "id2label": LABELS,
    }


def write_mask2former(folder: Path) -> Path:
    config = Mask2FormerConfig(
        **decoder(),
        feature_size=32,
        mask_feature_size=32,
    )
    net = Mask2FormerForUniversalSegmentation(config)
    decide(net, net.class_predictor, net.model.transformer_module.queries_features)
    processor = Mask2FormerImageProcessor(**PREPROCESS)
    return save(folder, net, processor)


def write_oneformer(folder: Path) -> Path:
    config = OneFormerConfig(
        **decoder(),
        conv_dim=32,
        mask_dim=32,
        query_dec_layers=1,
        task_seq_len=TASK_LENGTH,
        text_encoder_width=32,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=600,
    )
    net = OneFormerForUniversalSegmentation(config)
    module = net.model.transformer_module
    decide(net, module.decoder.class_embed, module.queries_embedder)
    # As published ones say it: where to download class names from, which must not happen.
    processor = OneFormerImageProcessor(**PREPROCESS, class_info_file=None)
    processor.class_info_file = "coco_panoptic.json"
    train_tokenizer(["the task is panoptic"], vocab_size=560, max_length=77).save_pretrained(folder)
    return save(folder, net, processor)


def write_eomt(folder: Path) -> Path:
    config = EomtConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=INPUT_SIZE,
        patch_size=8,
        num_upscale_blocks=1,
        num_blocks=1,
        num_queries=NUM_QUERIES,
        num_register_tokens=1,
        id2label=LABELS,
    )
    net = EomtForUniversalSegmentation(config)
    net.attn_mask_probs.zero_()  # as at the end of its training
    decide(net, net.class_predictor, net.query)
    processor = EomtImageProcessor(
        **PREPROCESS, do_pad=True, size={"shortest_edge": INPUT_SIZE, "longest_edge": INPUT_SIZE}
    )
    return save(folder, net, processor)


SEEDS = {"mask2former": 6, "oneformer": 1, "eomt": 8}  # find things and stuff
WRITERS: dict[str, Callable[[Path], Path]] = {
    "mask2former": write_mask2former,
    "oneformer": write_oneformer,
    "eomt": write_eomt,
}


def write_model(kind: str, folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(SEEDS[kind])
        return WRITERS[kind](folder)


def assert_near(ids: torch.Tensor, expected: torch.Tensor) -> None:
    """Ids as of another batch, where rounding decides on which side of a border a pixel is."""
    assert ids.shape == expected.shape
    assert (ids != expected).float().mean() < 0.005


def assert_infos_near(found: dict[int, Any], expected: dict[int, Any]) -> None:
    assert found.keys() == expected.keys()
    for i, info in found.items():
        assert info | {"score": 0, "area": 0} == expected[i] | {"score": 0, "area": 0}
        assert abs(info["score"] - expected[i]["score"]) < 1e-3
        assert abs(info["area"] - expected[i]["area"]) <= 0.02 * info["area"] + 2


def decide(net: Any, classes: torch.nn.Linear, queries: torch.nn.Embedding) -> None:
    """Queries that differ from one another, and logits far from one another."""
    torch.nn.init.normal_(queries.weight, std=3.0)
    torch.nn.init.normal_(classes.weight, std=2.0)
    for name, parameter in net.named_parameters():
        if "mask_embed" in name or "mask_head" in name:
            parameter.data *= 4


def save(folder: Path, net: Any, processor: Any) -> Path:
    net.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
