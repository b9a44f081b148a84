import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close
from transformers import CLIPTextModel, CLIPTokenizer

from spatext.modules.contrastive import Contrastive, regions
from spatext.modules.networks.clip import Clip
from spatext.modules.networks.priors import LinearPrior, fit_linear_prior
from spatext.modules.networks.text_tower import train_tokenizer
from tiny import (
    EMBED_DIM,
    LR_SCHEDULER,
    MAX_LENGTH,
    OPTIMIZER,
    SIZE,
    TEXTS,
    as_text,
    clip_config,
    no_seeds,
)
from tiny_runs import make_batch

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
BATCH = make_batch(*range(8))


@pytest.fixture
def module() -> Contrastive:
    tokenizer = train_tokenizer(TEXTS, vocab_size=560, max_length=MAX_LENGTH)
    config = clip_config(0)
    for name in ("context_length", "vocab_size", "hf_tokenizer_name"):
        del config["text_cfg"][name]
    return Contrastive(config, tokenizer, optimizer=OPTIMIZER, lr_scheduler=LR_SCHEDULER)


def test_regions_are_the_valid_crops_that_have_a_text() -> None:
    batch = make_batch(1, 3, 6)
    batch["texts"][1][1] = ""  # data without a text
    batch["texts"][0][2] = "ghost"  # of no segment
    crops, texts = regions(batch)
    kept = [(0, 0), (1, 0), (1, 2), (2, 0), (2, 1)]
    assert texts == [batch["texts"][row][k] for row, k in kept]
    assert torch.equal(crops, torch.stack([batch["crops"][row, k] for row, k in kept]))


def test_the_losses_are_symmetric_cross_entropies(module: Contrastive) -> None:
    crops, texts = regions(BATCH)
    pairs = [(crops, texts), ((BATCH["image"] + 1) * 127.5 / 255, BATCH["caption"])]
    expected = []
    for pixels, words in pairs:
        image = normalize(module.embed_images(pixels), dim=-1)
        text = normalize(module.embed_texts(words), dim=-1)
        logits = image @ text.mT / 0.07  # the initial temperature of CLIP
        truth = torch.arange(len(words))
        expected.append((cross_entropy(logits, truth) + cross_entropy(logits.mT, truth)) / 2)
    assert_close(module.losses(BATCH), tuple(expected), rtol=1e-4, atol=1e-4)
    assert_close(module.training_step(BATCH, 0), sum(expected), rtol=1e-4, atol=1e-4)


def test_training_lowers_the_loss_and_finds_the_texts(module: Contrastive) -> None:
    optimizer = OPTIMIZER(module.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = module.training_step(BATCH, 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # Not to zero: captions and texts are repeated.
    assert losses[-1] < 0.6 * losses[0]
    assert module.validation_step(BATCH, 0) == 1
    batch = make_batch(3)
    batch["texts"][0] = [batch["texts"][0][k] for k in (1, 2, 0)]
    assert module.validation_step(batch, 0) == 0


def save(module: Contrastive, folder: Path) -> list[dict[str, Any]]:
    """Trained a little, so that no parameter has its first value."""
    optimizer = OPTIMIZER(module.parameters())
    module.training_step(BATCH, 0).backward()
    optimizer.step()
    batches = [make_batch(*range(8)), make_batch(*range(8, 16))]
    module.eval().save_pretrained(folder, batches)
    return batches


def test_the_folder_loads_as_clip(module: Contrastive, tmp_path: Path) -> None:
    save(module, tmp_path)
    clip = Clip(f"local-dir:{tmp_path / 'clip'}")
    assert (clip.embed_dim, clip.image_size) == (EMBED_DIM, SIZE)
    crops, texts = regions(BATCH)
    assert_close(clip.embed_images(crops), module.embed_images(crops), rtol=1e-4, atol=1e-4)
    texts = [*texts, "", "An Unseen Thing", " ".join(TEXTS)]
    assert_close(clip.embed_texts(texts), module.embed_texts(texts), rtol=1e-4, atol=1e-4)


def test_the_folder_loads_as_text_encoder(module: Contrastive, tmp_path: Path) -> None:
    save(module, tmp_path)
    encoder = CLIPTextModel.from_pretrained(tmp_path, subfolder="text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, subfolder="tokenizer")
    texts = [*TEXTS, ""]
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    assert tokens.input_ids.shape == (5, MAX_LENGTH)
    pooled = encoder(tokens.input_ids).pooler_output @ module.model.text_projection
    assert_close(pooled, module.embed_texts(texts), rtol=1e-4, atol=1e-4)


def test_the_folder_holds_a_prior_between_its_own_embeddings(
    module: Contrastive, tmp_path: Path
) -> None:
    batches = save(module, tmp_path)
    clip = Clip(f"local-dir:{tmp_path / 'clip'}")
    pairs = [regions(batch) for batch in batches]
    image = torch.cat([clip.embed_images(crops) for crops, _ in pairs])
    text = torch.cat([clip.embed_texts(texts) for _, texts in pairs])
    expected = fit_linear_prior(text, image)
    path = tmp_path / "clip" / "linear_prior.safetensors"
    assert_close(load_file(path), expected, rtol=1e-2, atol=1e-2)
    prior = LinearPrior(path)
    fitted = (prior(as_text(text), no_seeds(len(text))) - image).square().sum()
    assert fitted < 0.9 * (image - image.mean(0)).square().sum()


def test_the_folder_can_be_written_twice(module: Contrastive, tmp_path: Path) -> None:
    save(module, tmp_path)
    save(module, tmp_path)
    clip = Clip(f"local-dir:{tmp_path / 'clip'}")
    assert_close(clip.embed_texts(TEXTS), module.embed_texts([*TEXTS]), rtol=1e-4, atol=1e-4)


def test_the_configuration_is_that_of_the_tokenizer(module: Contrastive, tmp_path: Path) -> None:
    save(module, tmp_path)
    config = json.loads((tmp_path / "clip" / "open_clip_config.json").read_text())["model_cfg"]
    assert config["text_cfg"]["vocab_size"] == len(module.tokenizer)
    assert config["text_cfg"]["context_length"] == MAX_LENGTH
    given = clip_config(0)
    Contrastive(given, module.tokenizer, optimizer=OPTIMIZER, lr_scheduler=LR_SCHEDULER)
    assert given == clip_config(0)
