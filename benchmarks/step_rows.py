"""What benchmarks/train_step.py compares: a row of its table each."""

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel
from step_loops import Clock, Measured, optimization, ours
from step_models import LATENT_CHANNELS, Batches, make_clip, make_module, make_unet
from step_pixels import (
    CHANNELS,
    make_decoder,
    make_pixel_module,
    make_super_res,
    make_text,
    make_upsampler,
    projection_options,
)
from step_plain import PlainLatent, PlainModel, plain
from step_plain_pixels import PlainDecoder, PlainUpsampler
from step_shapes import LatentShape, PixelShape, Shape, UpsamplerShape

from spatext.modules.networks.compiled import Compiled
from spatext.modules.networks.latent import LatentBackbone
from spatext.modules.networks.trained_unet import TrainedUnet
from spatext.modules.training import TrainedModule

PLAIN, OURS = "plain", "ours"
NUM_BATCHES = 10_000

Run = Callable[[Clock], Measured]


@dataclass(frozen=True)
class Case:
    run: Run
    base: str = PLAIN  # the row that its speed is a multiple of


def make_cases(args: argparse.Namespace, shape: Shape) -> dict[str, Case]:
    """By what stands before their rows."""
    if isinstance(shape, LatentShape):
        cases = latent_cases(args, shape)
    elif isinstance(shape, PixelShape):
        cases = pixel_cases(args, shape)
    else:
        assert isinstance(shape, UpsamplerShape)
        cases = upsampler_cases(args, shape)
    return {name: case for name, case in cases.items() if re.search(args.only, name)}


def latent_cases(args: argparse.Namespace, shape: LatentShape) -> dict[str, Case]:
    data = Batches(shape, args.batch, NUM_BATCHES)
    cached = Batches(shape, args.batch, NUM_BATCHES, cached=True)
    text = make_module(shape, segments=False, **options(args))
    module = make_module(shape, segments=True, **options(args))
    assert isinstance(module.backbone, LatentBackbone)
    plain_text, plain_model = (plain_latent(args, shape, segments=s) for s in (False, True))
    of_text, of_cached = f"{PLAIN}, text to image", f"{PLAIN}, cached encodings"
    return {
        of_text: plain_case(args, plain_text, data, of_text),
        f"{OURS}, text to image": Case(our_run(args, text, data), of_text),
        of_cached: plain_case(args, plain_model, cached, of_cached),
        f"{OURS}, cached encodings": Case(our_run(args, module, cached), of_cached),
        PLAIN: plain_case(args, plain_model, data),
        OURS: Case(our_run(args, module, data)),
        "  dense ST convolution": dense(args, module, module.backbone, data),
        **switches(args, module, module.backbone, data),
    }


def pixel_cases(args: argparse.Namespace, shape: PixelShape) -> dict[str, Case]:
    data = Batches(shape, args.batch, NUM_BATCHES)
    module = make_pixel_module(shape, **options(args))
    net: Any = module.backbone
    return {
        PLAIN: plain_case(args, plain_decoder(args, shape), data),
        OURS: Case(our_run(args, module, data)),
        "  dense ST convolution": dense(args, module, net, data),
        **switches(args, module, net, data),
    }


def upsampler_cases(args: argparse.Namespace, shape: UpsamplerShape) -> dict[str, Case]:
    data = Batches(shape, args.batch, NUM_BATCHES)
    torch.manual_seed(0)
    model = PlainUpsampler(make_super_res(shape).train().to(args.device), shape.scale, shape.square)
    module, wide = (make_upsampler(shape, segments=s, **options(args)) for s in (False, True))
    return {
        PLAIN: plain_case(args, model, data),
        OURS: Case(our_run(args, module, data)),
        **switches(args, module, module.net, data),
        f"{OURS}, with ST": Case(our_run(args, wide, data)),
        "  dense ST convolution": dense(args, wide, wide.net, data),
    }


# --- ours ---------------------------------------------------------------------------------------


def precision_of(args: argparse.Namespace) -> str:
    return "bf16-mixed" if args.device == "cuda" else "32-true"


def options(args: argparse.Namespace) -> dict[str, Any]:
    """Of our models, as the configurations have them: channels_last is slower on CPUs."""
    return optimization() | {"channels_last": args.device == "cuda"}


def our_run(
    args: argparse.Namespace, module: TrainedModule, data: Batches, **choices: Any
) -> Callable[[Clock], Measured]:
    return lambda clock: ours(module, data, clock, precision=precision_of(args), **choices)


def dense(args: argparse.Namespace, module: TrainedModule, net: TrainedUnet, data: Batches) -> Case:
    run = our_run(args, module, data)
    return Case(within(partial(attribute, net.unet.conv_in, "evaluation", "dense"), run))


def switches(
    args: argparse.Namespace, module: TrainedModule, net: TrainedUnet, data: Batches
) -> dict[str, Case]:
    """One optimisation off at a time, or one option on."""
    run = our_run(args, module, data)
    unfused = optimization(fused=False)["optimizer"]
    both = (torch.contiguous_format, torch.channels_last)
    on_gpu = args.device == "cuda"
    other = partial(layout, net.unet, *(both if on_gpu else reversed(both)))
    runs = {
        f"  {'without ' if on_gpu else ''}channels_last": within(other, run),
        "  unfused AdamW": within(partial(attribute, module, "make_optimizer", unfused), run),
        "  unfused average": our_run(args, module, data, unfused_ema=True),
        "  activation checkpointing": within(partial(checkpointed, net.unet), run),
    }
    choices = {}
    if on_gpu:
        choices["  without compile"] = Compiled(False)
        choices["  CUDA graphs"] = Compiled(True, {"mode": "reduce-overhead"})
    elif args.compile:
        choices["  compiled"] = Compiled(True)
    for name, compiled in choices.items():
        runs[name] = within(partial(attribute, net, "compiled", compiled), run)
    return {name: Case(call) for name, call in runs.items()}


def within(make: Callable[[], AbstractContextManager[None]], run: Run) -> Run:
    def call(clock: Clock) -> Measured:
        with make():
            return run(clock)

    return call


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def layout(unet: Any, during: torch.memory_format, after: torch.memory_format) -> Iterator[None]:
    unet.to(memory_format=during)
    try:
        yield
    finally:
        unet.to(memory_format=after)


@contextmanager
def checkpointed(unet: Any) -> Iterator[None]:
    unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()


# --- plain: networks of their own, the frozen ones cast to the precision of the run as diffusers'
# example casts them ------------------------------------------------------------------------------


def plain_case(
    args: argparse.Namespace, model: PlainModel, data: Batches, base: str = PLAIN
) -> Case:
    return Case(partial(plain, model, data, precision=precision_of(args)), base)


def frozen_dtype(args: argparse.Namespace) -> torch.dtype:
    return torch.bfloat16 if args.device == "cuda" else torch.float32


def plain_latent(args: argparse.Namespace, shape: LatentShape, *, segments: bool) -> PlainLatent:
    own = make_module(shape, segments=False, **optimization()).backbone
    assert isinstance(own, LatentBackbone)
    device, dtype = args.device, frozen_dtype(args)
    width = shape.embed_dim if segments else 0
    return PlainLatent(
        unet=make_unet(shape, LATENT_CHANNELS + width).train().to(device),
        vae=own.vae.net.to(device, dtype),
        text_encoder=own.text_encoder.net.to(device, dtype),
        tokenizer=own.tokenizer,
        embed_images=make_clip(shape).to(device).embed_images if segments else None,
    )


def plain_decoder(args: argparse.Namespace, shape: PixelShape) -> PlainDecoder:
    torch.manual_seed(0)
    text, device, dtype = make_text(shape), args.device, frozen_dtype(args)
    return PlainDecoder(
        unet=make_decoder(shape, CHANNELS + shape.embed_dim).train().to(device),
        projection=UnCLIPTextProjModel(**projection_options(shape)).train().to(device),
        text_encoder=text["text_encoder"].eval().requires_grad_(False).to(device, dtype),
        tokenizer=text["tokenizer"],
        embed_images=make_clip(shape).to(device).embed_images,
        factor=shape.factor,
    )
