"""Diffusion priors with random weights, and features of texts for them."""

from dataclasses import replace
from typing import Any

import torch
from diffusers import PriorTransformer

from spatext.modules.networks.clip import TextFeatures
from spatext.modules.networks.diffusion_prior import DiffusionPrior
from spatext.modules.networks.prior_schedulers import KARLO
from tiny import EMBED_DIM, MAX_LENGTH, as_text, make_prior_transformer


def make_prior(transformer: PriorTransformer | None = None, **options: Any) -> DiffusionPrior:
    options = {"num_steps": 5, "guidance_scale": 3.0} | options
    return DiffusionPrior(transformer or make_prior_transformer(), KARLO, **options).eval()


def make_text(num: int = 4) -> TextFeatures:
    features = as_text(torch.randn(num + 1, EMBED_DIM), MAX_LENGTH)
    return replace(features[:num], null=features[num:])
