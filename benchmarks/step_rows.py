"""What benchmarks/train_step.py compares: a row of its table each."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from step_loops import Clock, Measured, options, ours
from step_models import Batches, Shape, make_clip, make_module, make_unet
from step_plain import Networks, plain

from spatext.modules.networks.compiled import Compiled
from spatext.modules.networks.latent import LatentBackbone
from spatext.modules.text_to_image import TextToImage

PLAIN, OURS = "plain, SpaText", "ours, SpaText"
PLAIN_TEXT, OURS_TEXT = "plain, text to image", "ours, text to image"

Run = Callable[[Clock], Measured]


def make_runs(args: argparse.Namespace, shape: Shape, data: Batches) -> dict[str, Run]:
    precision = "bf16-mixed" if args.device == "cuda" else "32-true"
    module = make_module(shape, segments=True, **options())
    backbone = module.backbone
    assert isinstance(backbone, LatentBackbone)

    def run(clock: Clock, net: TextToImage = module, **choices: Any) -> Measured:
        return ours(net, data, clock, precision=precision, **choices)

    def switched(owner: Any, name: str, value: Any) -> Run:
        def call(clock: Clock) -> Measured:
            before = getattr(owner, name)
            setattr(owner, name, value)
            try:
                return run(clock)
            finally:
                setattr(owner, name, before)

        return call

    def contiguous(clock: Clock) -> Measured:
        backbone.unet.to(memory_format=torch.contiguous_format)
        try:
            return run(clock)
        finally:
            backbone.unet.to(memory_format=torch.channels_last)

    def checkpointed(clock: Clock) -> Measured:
        backbone.unet.enable_gradient_checkpointing()
        try:
            return run(clock)
        finally:
            backbone.unet.disable_gradient_checkpointing()

    text = make_module(shape, segments=False, **options())
    runs: dict[str, Run] = {
        PLAIN_TEXT: make_plain(shape, text, data, args.device, precision),
        OURS_TEXT: partial(run, net=text),
        PLAIN: make_plain(shape, module, data, args.device, precision),
        OURS: run,
        "  dense ST convolution": switched(backbone.unet.conv_in, "evaluation", "dense"),
        "  without channels_last": contiguous,
        "  unfused AdamW": switched(module, "make_optimizer", options(fused=False)["optimizer"]),
        "  unfused average": partial(run, unfused_ema=True),
        "  activation checkpointing": checkpointed,
    }
    if args.device == "cuda":
        runs["  without compile"] = switched(backbone, "compiled", Compiled(False))
        graphs = Compiled(True, {"mode": "reduce-overhead"})
        runs["  CUDA graphs"] = switched(backbone, "compiled", graphs)
    elif args.compile:
        runs["  compiled"] = switched(backbone, "compiled", Compiled(True))
    return {name: call for name, call in runs.items() if args.only in name}


def make_plain(
    shape: Shape, module: TextToImage, data: Batches, device: str, precision: str
) -> Run:
    """On networks of its own, the frozen ones cast to the precision as the example casts them."""
    backbone = module.backbone
    assert isinstance(backbone, LatentBackbone)
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    torch.manual_seed(0)
    own = make_module(shape, segments=False, **options()).backbone
    assert isinstance(own, LatentBackbone)
    clip = make_clip(shape) if backbone.embed_dim else None
    nets = Networks(
        unet=make_unet(shape, backbone.channels + backbone.embed_dim).train().to(device),
        vae=own.vae.net.to(device, dtype),
        text_encoder=own.text_encoder.net.to(device, dtype),
        tokenizer=own.tokenizer,
        embed_crops=None if clip is None else clip.to(device).embed_images,
    )
    return lambda clock: plain(nets, data, clock, precision=precision)
