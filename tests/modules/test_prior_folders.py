"""Diffusion priors as folders, and SpaText with one of them."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import PriorTransformer, UnCLIPScheduler
from torch.testing import assert_close

from diffusion_priors import make_prior, make_text
from spatext.modules.functional.random import Purpose, derive_seeds
from spatext.modules.networks.clip import Clip
from spatext.modules.networks.diffusion_prior import DiffusionPrior
from spatext.modules.networks.prior_schedulers import KARLO
from spatext.modules.networks.priors import EMBEDDINGS
from tiny import EMBED_DIM, load_spatext, make_prior_transformer


def write_by_diffusers(folder: Path) -> PriorTransformer:
    transformer = make_prior_transformer()
    transformer.save_pretrained(folder / "prior")
    UnCLIPScheduler(**(KARLO | {"clip_sample_range": 4.0})).save_pretrained(
        folder / "prior_scheduler"
    )
    return transformer


@torch.no_grad()
def test_a_folder_of_karlo_goes_round(tmp_path: Path) -> None:
    text, seeds = make_text(), torch.arange(4)
    transformer = write_by_diffusers(tmp_path / "a")
    options = {"num_steps": 4, "num_candidates": 1, "guidance_scale": 2.0}
    prior = DiffusionPrior.from_pretrained(str(tmp_path / "a"), **options).eval()
    weights = dict(transformer.state_dict())
    assert_close(dict(prior.transformer.state_dict()), weights, rtol=0, atol=0)
    assert prior.scheduler_config["clip_sample_range"] == 4.0

    prior.save_pretrained(tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["prior", "prior_scheduler"]
    again = PriorTransformer.from_pretrained(tmp_path / "b", subfolder="prior")
    assert_close(dict(again.state_dict()), weights, rtol=0, atol=0)
    scheduler = UnCLIPScheduler.from_pretrained(tmp_path / "b", subfolder="prior_scheduler")
    assert {**scheduler.config}.items() >= (KARLO | {"clip_sample_range": 4.0}).items()
    loaded = DiffusionPrior.from_pretrained(tmp_path / "b", **options).eval()
    assert_close(loaded(text, seeds), prior(text, seeds), rtol=0, atol=0)


@torch.no_grad()
def test_half_weights_keep_their_statistics(tmp_path: Path) -> None:
    transformer = write_by_diffusers(tmp_path)
    text, seeds = make_text(), torch.arange(4)
    half, full = (
        DiffusionPrior.from_pretrained(tmp_path, dtype=dtype, num_steps=4, num_candidates=1).eval()
        for dtype in ("bfloat16", "float32")
    )
    assert half.transformer.proj_in.weight.dtype == torch.bfloat16
    assert_close(half.transformer.clip_mean, transformer.clip_mean, rtol=0, atol=0)
    assert_close(half.transformer.clip_std, transformer.clip_std, rtol=0, atol=0)
    found = half(text, seeds)
    assert found.dtype == torch.float32
    assert_close(found, full(text, seeds), rtol=0.1, atol=0.2)


def test_a_folder_without_its_parts_is_named(tmp_path: Path) -> None:
    write_by_diffusers(tmp_path)
    (tmp_path / "prior_scheduler").rename(tmp_path / "scheduler")
    message = rf"^prior.path={tmp_path}: missing prior_scheduler; expected a folder with prior, "
    with pytest.raises(ValueError, match=message):
        DiffusionPrior.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^prior.path=/no/such: no such folder; expected prior, "):
        DiffusionPrior.from_pretrained("/no/such")


@torch.no_grad()
def test_spatext_paints_with_it(base: Path, tmp_path: Path) -> None:
    write_by_diffusers(tmp_path)
    prior = DiffusionPrior.from_pretrained(tmp_path, num_steps=3, guidance_scale=2.0)
    model = load_spatext(base, prior=prior)
    assert not model.prior.training
    ids = torch.ones(2, 16, 16, dtype=torch.uint8)
    texts, seeds = [["two dogs", "a blue sea"], ["two dogs"]], torch.tensor([5, 6])
    found = model.scene_conditions(["", ""], ids, texts, seeds).segments
    clip = Clip(f"local-dir:{base / 'clip'}")
    region_seeds = derive_seeds(seeds, Purpose.REGION_SEED, 2)
    for row, column in ((0, 0), (0, 1), (1, 0)):
        features = clip.encode_texts(texts[row][column : column + 1])
        expected = prior(features, region_seeds[row, column : column + 1])
        assert_close(found.embeds[row, column], expected[0], rtol=1e-3, atol=5e-4)
    # Another image, another draw.
    assert (found.embeds[0, 0] - found.embeds[1, 0]).abs().max() > 1e-2


def test_spatext_refuses_a_prior_for_other_embeddings(base: Path, tmp_path: Path) -> None:
    transformer = make_prior_transformer(embedding_dim=EMBED_DIM + 1)
    with pytest.raises(ValueError, match=r"^module.prior: embed_dim of its CLIP .* is 9, expect"):
        load_spatext(base, prior=make_prior(transformer))
    write_by_diffusers(tmp_path)
    record = Clip(f"local-dir:{base / 'clip'}", scale="unit").fingerprint
    (tmp_path / EMBEDDINGS).write_text(json.dumps(record))
    prior = DiffusionPrior.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^module.prior: scale .* is 'unit', expected 'raw' as "):
        load_spatext(base, prior=prior)
    load_spatext(base, prior=prior, scale="unit")
