"""Each file of conf/experiment/ trains: two real steps, on tiny models and a small world.

tests/test_configs.py composes them as they are and binds their options.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spatext.conf
from datamodules.pair_folders import make_rows, write_rows
from runs import glide, latent, pixel, run, shared
from spatext.modules.networks.clip import Clip
from tiny import EMBED_DIM, MAX_LENGTH
from tiny_karlo import write_karlo
from tiny_upsampler import TINY_UPSAMPLER

EXPERIMENTS = Path(spatext.conf.__file__).parent / "experiment"

# What a workspace lacks for the sizes that experiments are written for.
TINY_AUTOENCODER = [
    "module.model.down_block_types=[DownEncoderBlock2D,DownEncoderBlock2D]",
    "module.model.up_block_types=[UpDecoderBlock2D,UpDecoderBlock2D]",
    "module.model.block_out_channels=[8,16]",
]
TINY_PRIOR = [
    "module.network.prior.num_attention_heads=2",
    "module.network.prior.attention_head_dim=8",
    "module.network.prior.num_layers=1",
    f"module.network.prior.embedding_dim={EMBED_DIM}",
    f"module.network.prior.num_embeddings={MAX_LENGTH}",
]


def pairs(workspace: Path, run_dir: Path) -> list[str]:
    return [
        f"run_dir={run_dir}",
        "num_threads=1",
        "trainer=cpu",
        "trainer.precision=32-true",
        f"datamodule.pairs={workspace / 'pairs'}",
        "datamodule.batch_size=4",
        "datamodule.num_workers=0",
        f"module.clip.name=local-dir:{workspace / 'base' / 'clip'}",
        "module.clip.pretrained=null",
        "module.lr_scheduler.warmup_steps=2",
        "callbacks.progress.refresh_rate=0",
    ]


def exporting(workspace: Path, run_dir: Path) -> list[str]:
    return [*shared(workspace, run_dir), f"callbacks.export.folder={run_dir / 'export'}"]


def upsampling(workspace: Path, run_dir: Path) -> list[str]:
    options = ["trainer=cpu", "trainer.precision=32-true"]
    return [*exporting(workspace, run_dir), *options, *TINY_UPSAMPLER]


def on_stable_diffusion(workspace: Path, run_dir: Path) -> list[str]:
    """With the workspace in the place of the published models."""
    return [
        *shared(workspace, run_dir),
        "trainer=cpu",
        "trainer.precision=32-true",
        f"module.backbone.path={workspace / 'base'}",
        f"module.backbone.embed_dim={EMBED_DIM}",
        f"module.clip.name=local-dir:{workspace / 'base' / 'clip'}",
        "module.clip.pretrained=null",
    ]


def on_karlo(workspace: Path, run_dir: Path) -> list[str]:
    """Half of the image embeddings are dropped, so that two steps teach their null, too."""
    options = ("module.drop_rates.image_embed=0.5",)
    return pixel(workspace, workspace / "karlo", run_dir, *options)[1:]


def like_glide(workspace: Path, run_dir: Path) -> list[str]:
    return glide(workspace, workspace / "karlo", run_dir)[1:]


# How each experiment is brought to the size of tests/tiny.py. A new one needs its line here.
TINY: dict[str, Callable[[Path, Path], list[str]]] = {
    "demo_latent": latent,
    "latent_sd15": on_stable_diffusion,
    "latent_sd15_lora": on_stable_diffusion,
    "latent_sd21_768": lambda workspace, run_dir: [
        *on_stable_diffusion(workspace, run_dir),
        "module.backbone.prediction_type=null",  # the workspace predicts epsilon
    ],
    "latent_sd21_base": on_stable_diffusion,
    "latent_tiny": lambda workspace, run_dir: [  # with its own model
        f"run_dir={run_dir}",
        "num_threads=1",
        f"datamodule.shards={workspace / 'train'}",
        "datamodule.batch_size=2",
        "callbacks.progress.refresh_rate=0",
    ],
    "pixel_glide": like_glide,
    "pixel_tiny": lambda workspace, run_dir: [  # with the encoders of the package
        f"run_dir={run_dir}",
        "trainer=cpu",
        f"datamodule.shards={workspace / 'train'}",
        "datamodule.batch_size=2",
        "module.drop_rates.image_embed=0.5",  # as on_karlo has it
        "callbacks.progress.refresh_rate=0",
    ],
    "pixel_unclip": on_karlo,
    "prior_mlp_tiny": lambda workspace, run_dir: [
        *pairs(workspace, run_dir),
        f"base={workspace / 'base'}",
        f"module.network.embed_dim={EMBED_DIM}",
        "module.network.width=16",
    ],
    "prior_tiny": lambda workspace, run_dir: [
        *pairs(workspace, run_dir),
        *TINY_PRIOR,
        f"base={workspace / 'base'}",
    ],
    "prior_vit_h14": lambda workspace, run_dir: [*pairs(workspace, run_dir), *TINY_PRIOR],
    "prior_vit_l14": lambda workspace, run_dir: [*pairs(workspace, run_dir), *TINY_PRIOR],
    "shapes_autoencoder": lambda workspace, run_dir: [
        *exporting(workspace, run_dir),
        *TINY_AUTOENCODER,
    ],
    "shapes_clip": lambda workspace, run_dir: [
        *exporting(workspace, run_dir),
        f"module.tokenizer.pretrained_model_name_or_path={workspace / 'base' / 'tokenizer'}",
        "module.model.vision_cfg.width=32",
        "module.model.text_cfg.width=32",
    ],
    "shapes_decoder": lambda workspace, run_dir: [
        *exporting(workspace, run_dir),
        f"module.decoder_of={workspace / 'base'}",
    ],
    "shapes_text_to_image": lambda workspace, run_dir: [
        *exporting(workspace, run_dir),
        "trainer=cpu",
        f"module.backbone.path={workspace / 'base'}",
        "module.backbone.unet.block_out_channels=[16,16,32]",
    ],
    "upsampler_1024": upsampling,
    "upsampler_256": upsampling,
    "upsampler_tiny": upsampling,
}


@pytest.fixture(scope="module")
def workspace(workspace: Path) -> Path:
    """And pairs as its CLIP might have embedded them, and karlo/."""
    write_karlo(workspace / "karlo")
    rows = make_rows("shapes", 24)
    embeds = np.random.default_rng(0).normal(size=(24, EMBED_DIM)).astype(np.float32)
    clip = Clip(f"local-dir:{workspace / 'base' / 'clip'}")
    rows = replace(rows, image_embeds=embeds)
    write_rows(workspace / "pairs", "shapes", rows, fingerprint=clip.fingerprint)
    return workspace


def test_the_table_has_every_experiment() -> None:
    assert {path.stem for path in EXPERIMENTS.glob("*.yaml")} == TINY.keys()


@pytest.mark.parametrize("name", sorted(TINY))
def test_two_steps(workspace: Path, tmp_path: Path, name: str) -> None:
    overrides = [f"experiment={name}", *TINY[name](workspace, tmp_path)]
    if "datamodule.pairs" not in str(overrides):
        overrides.append("datamodule.val_shards=null")
    options = ["trainer.max_steps=2", "trainer.accumulate_grad_batches=1"]
    results = run([*dict.fromkeys(overrides), *options])
    trainer = results["trainer"]
    assert trainer.global_step == 2
    losses = [value for name, value in results["metrics"].items() if name.startswith("train/")]
    assert len(losses) > 0
    assert np.isfinite(losses).all()
    trained = [p for p in results["module"].parameters() if p.requires_grad]
    state: dict[Any, dict[str, torch.Tensor]] = trainer.optimizers[0].state
    assert len(state) == len(trained) > 0
    assert all(state[p]["step"] == 2 and state[p]["exp_avg"].any() for p in trained)
