import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PriorTransformer, UnCLIPScheduler
from torch.testing import assert_close

from prior_runs import SAMPLING, TinyPairs, make_module, make_pairs
from spatext.callbacks.export import Export
from spatext.modules.networks.diffusion_prior import DiffusionPrior
from spatext.modules.networks.priors import EMBEDDINGS
from spatext.modules.networks.regression import MLPPrior
from tiny import EMBED_DIM, TEXTS, make_prior_transformer
from tiny_runs import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


def test_a_step_is_the_loss_of_its_network_on_the_texts_of_clip(base: Path) -> None:
    network = DiffusionPrior(make_prior_transformer(), {"prediction_type": "sample"}, **SAMPLING)
    module, batch = make_module(base, network, seed=3), make_pairs(3, 1, 2**33, 7)
    text = module.clip.encode_texts(batch["text"])
    empty = module.clip.encode_texts([""])
    for mode, step, seed in (
        ("train", module.training_step, 3),
        ("eval", module.validation_step, 4),
    ):
        getattr(module, mode)()
        expected = network.loss(batch["image_embeds"], text, empty, batch["index"], seed)
        assert_close(step(batch, 0), expected, rtol=1e-4, atol=1e-5)


def test_only_the_network_is_trained_and_saved(base: Path) -> None:
    module = make_module(base)
    network = module.network
    network.set_statistics(torch.zeros(EMBED_DIM), torch.ones(EMBED_DIM))
    module.training_step(make_pairs(0, 1), 0).backward()
    statistics = {network.transformer.clip_mean, network.transformer.clip_std}
    trained = {*module.configure_optimizers()["optimizer"].param_groups[0]["params"]}
    assert trained == {*network.parameters()} - statistics
    assert all(parameter.grad is not None for parameter in trained)
    assert all(name.startswith("network.transformer.") for name in module.state_dict())


def test_a_published_prior_keeps_its_statistics(base: Path, tmp_path: Path) -> None:
    transformer = make_prior_transformer()
    expected = transformer.clip_mean.clone(), transformer.clip_std.clone()
    network = DiffusionPrior(transformer, {"prediction_type": "sample"}, **SAMPLING)
    data, module = TinyPairs(), make_module(base, network)
    make_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, datamodule=data)
    assert data.asked == 0
    assert torch.equal(transformer.clip_mean, expected[0])
    assert torch.equal(transformer.clip_std, expected[1])


def test_the_loss_falls(base: Path, tmp_path: Path) -> None:
    module = make_module(base)
    module.network.set_statistics(*map(torch.from_numpy, TinyPairs().statistics()))
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(60):
        loss = module.training_step(make_pairs(*range(16 * step, 16 * step + 16)), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # The text tells the embedding nearly: its variance of 1 is what there is to lose.
    assert np.mean(losses[:3]) > 0.8
    assert np.mean(losses[-10:]) < 0.3


def test_what_is_exported_is_the_layout_of_karlo(base: Path, tmp_path: Path) -> None:
    module = make_module(base)
    export = Export(str(tmp_path / "prior"), num_batches=1)
    make_trainer(tmp_path, max_steps=1, limit_val_batches=0, callbacks=[export]).fit(
        module, datamodule=TinyPairs()
    )
    folder = tmp_path / "prior"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [EMBEDDINGS, "prior", "prior_scheduler"]
    expected = dict(module.network.transformer.state_dict())
    transformer = PriorTransformer.from_pretrained(folder, subfolder="prior")
    assert_close(dict(transformer.state_dict()), expected, rtol=0, atol=0)
    scheduler = UnCLIPScheduler.from_pretrained(folder, subfolder="prior_scheduler")
    assert scheduler.config["prediction_type"] == "sample"
    assert json.loads((folder / EMBEDDINGS).read_text()) == module.clip.fingerprint
    assert DiffusionPrior.from_pretrained(folder).embeddings == module.clip.fingerprint


def test_a_regression_trains_behind_the_same_door(base: Path, tmp_path: Path) -> None:
    network = MLPPrior(embed_dim=EMBED_DIM, width=16, num_blocks=1)
    module, data = make_module(base, network), TinyPairs()
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, datamodule=data)
    assert_close(network.mean, torch.from_numpy(data.statistics()[0]))
    assert -1 <= trainer.callback_metrics["val/cosine"] <= 1
    module.save_pretrained(tmp_path / "folder", [])
    loaded = MLPPrior.from_pretrained(tmp_path / "folder")
    text = module.clip.encode_texts(TEXTS)
    seeds = torch.zeros(4, dtype=torch.int64)
    assert_close(loaded(text, seeds), network.eval()(text, seeds), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fingerprint", "message"),
    [
        ({"scale": "unit"}, r"^datamodule.pairs: scale of its CLIP .* is 'unit', expected 'raw'"),
        ({"embed_dim": 768}, r"^datamodule.pairs: embed_dim of its .* is 768, expected 8 as conf"),
    ],
)
def test_pairs_of_other_embeddings_are_refused(
    base: Path, tmp_path: Path, fingerprint: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, max_steps=1).fit(
            make_module(base), datamodule=TinyPairs(**fingerprint)
        )


def test_data_without_statistics_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^module.network: has no statistics of image .*, and No"):
        make_trainer(tmp_path, max_steps=1).fit(make_module(base), TinyPairs().train_dataloader())


def test_a_checkpoint_knows_its_embeddings(base: Path) -> None:
    module, checkpoint = make_module(base), {}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["embeddings"] == module.clip.fingerprint
    module.on_load_checkpoint(checkpoint)
    checkpoint["embeddings"] |= {"scale": "unit"}
    with pytest.raises(ValueError, match=r"^checkpoint: scale of its CLIP embeddings is 'unit'"):
        module.on_load_checkpoint(checkpoint)
