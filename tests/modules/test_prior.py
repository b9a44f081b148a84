import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from diffusers import PriorTransformer, UnCLIPScheduler
from pytorch_lightning.loggers import CSVLogger
from torch.testing import assert_close
from torch.utils.data import DataLoader

from spatext.callbacks.ema import Ema
from spatext.callbacks.export import Export
from spatext.datamodules.batches import EvaluationBatchSampler
from spatext.modules.functional.metrics import prior_metrics
from spatext.modules.networks.clip import Clip
from spatext.modules.networks.diffusion_prior import DiffusionPrior
from spatext.modules.networks.priors import EMBEDDINGS
from spatext.modules.networks.regression import MLPPrior
from spatext.modules.prior import PriorModule, first_of_each
from tiny import EMBED_DIM, LR_SCHEDULER, OPTIMIZER, PRIOR, TEXTS, make_prior_transformer
from tiny_runs import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
SAMPLING = {"num_steps": 3, "num_candidates": 1, "guidance_scale": 2.0}


def make_pair(index: int) -> dict[str, Any]:
    """The text decides the embedding, but for some noise."""
    draw = torch.Generator().manual_seed(index)
    centre = torch.randn(EMBED_DIM, generator=torch.Generator().manual_seed(index % 4))
    return {
        "image_embeds": 2 + 3 * centre + 0.1 * torch.randn(EMBED_DIM, generator=draw),
        "text": TEXTS[index % 4],
        "is_region": index % 2 == 0,
        "key": f"shard/{index}",
        "index": index,
    }


def make_pairs(*indices: int) -> dict[str, Any]:
    rows = [make_pair(index) for index in indices]
    return {
        "image_embeds": torch.stack([row["image_embeds"] for row in rows]),
        "text": [row["text"] for row in rows],
        "is_region": torch.tensor([row["is_region"] for row in rows]),
        "key": [row["key"] for row in rows],
        "index": torch.tensor([row["index"] for row in rows]),
    }


class TinyPairs(pl.LightningDataModule):
    """Two batches of four an epoch, and five pairs to validate on."""

    def __init__(self, **fingerprint: Any) -> None:
        super().__init__()
        self.fingerprint = {"clip": "any", "scale": "raw", "embed_dim": EMBED_DIM} | fingerprint
        self.asked = 0

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        self.asked += 1
        embeds = make_pairs(*range(8))["image_embeds"]
        return embeds.mean(0).numpy(), embeds.std(0, correction=0).numpy()

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(range(8), 4, collate_fn=lambda rows: make_pairs(*rows))

    def val_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        sampler = EvaluationBatchSampler(
            5, 3, rank=trainer.global_rank, world_size=trainer.world_size
        )
        return DataLoader(
            range(100, 105),
            batch_sampler=[[row for row, _ in batch] for batch in sampler],
            collate_fn=lambda rows: make_pairs(*rows),
        )


def make_network(**options: Any) -> DiffusionPrior:
    return DiffusionPrior.from_config(prior=PRIOR, **(SAMPLING | options))


def make_module(base: Path, network: Any = None, **options: Any) -> PriorModule:
    return PriorModule(
        network or make_network(),
        Clip(f"local-dir:{base / 'clip'}"),
        optimizer=OPTIMIZER,
        lr_scheduler=LR_SCHEDULER,
        **options,
    )


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
        assert_close(step(batch, 0), expected)


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


def read_metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_fit_takes_the_statistics_of_its_data_and_logs_its_metrics(
    base: Path, tmp_path: Path
) -> None:
    data, module = TinyPairs(), make_module(base, seed=2)
    logger = CSVLogger(tmp_path, name="", version="logs")
    make_trainer(
        tmp_path, max_epochs=2, logger=logger, log_every_n_steps=1, num_sanity_val_steps=1
    ).fit(module, datamodule=data)
    assert data.asked == 1
    mean, std = data.statistics()
    assert_close(module.network.transformer.clip_mean[0], torch.from_numpy(mean))
    assert_close(module.network.transformer.clip_std[0], torch.from_numpy(std))

    batch = make_pairs(*range(100, 105))
    text = module.clip.encode_texts(batch["text"])
    with torch.no_grad():
        predicted = module.eval().network(text, batch["index"])
    expected = prior_metrics(predicted, batch["image_embeds"], text.embeds)
    rows = [row for row in read_metrics(tmp_path) if row["val/cosine"]]
    assert [row["step"] for row in rows] == ["1", "3"]
    found = {name: float(rows[1][f"val/{name}"]) for name in expected}
    assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert float(rows[0]["val/cosine"]) != found["cosine"]


def test_metrics_are_of_the_averaged_weights(base: Path, tmp_path: Path) -> None:
    def run(decay: float) -> tuple[PriorModule, float]:
        torch.manual_seed(0)
        module = make_module(base)
        trainer = make_trainer(
            tmp_path, max_epochs=1, callbacks=[Ema(decay)], num_sanity_val_steps=1
        )
        trainer.fit(module, datamodule=TinyPairs())
        return module, trainer.callback_metrics["val/cosine"].item()

    # The fit ends with the average in place of the weights.
    for decay in (0.9, 0.0):
        module, found = run(decay)
        batch = make_pairs(*range(100, 105))
        text = module.clip.encode_texts(batch["text"])
        with torch.no_grad():
            predicted = module.eval().network(text, batch["index"])
        expected = prior_metrics(predicted, batch["image_embeds"], text.embeds)["cosine"]
        assert found == pytest.approx(expected, abs=1e-5)
        assert module.network.has_statistics
    weights = run(0.0)[0].network.transformer.proj_in.weight
    assert not torch.equal(weights, run(0.9)[0].network.transformer.proj_in.weight)


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
    assert_close(loaded(text, seeds), network.eval()(text, seeds))


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


def test_a_pair_counts_once() -> None:
    index = torch.tensor([5, 2, 9, 2, 5, 0])
    assert first_of_each(index).tolist() == [5, 1, 0, 2]


@pytest.mark.slow
def test_metrics_do_not_depend_on_the_number_of_processes(base: Path, tmp_path: Path) -> None:
    found = {}
    for devices, strategy in ((1, "auto"), (2, "ddp_spawn")):
        torch.manual_seed(0)
        network = DiffusionPrior(
            make_prior_transformer(), {"prediction_type": "sample"}, **SAMPLING
        )
        trainer = make_trainer(
            tmp_path, devices=devices, strategy=strategy, use_distributed_sampler=False
        )
        # Five pairs on two processes: each has another number of rows, whatever the batch.
        (found[devices],) = trainer.validate(make_module(base, network), datamodule=TinyPairs())
    names = {"val/cosine", "val/recall@1", "val/norm_ratio", "val/cosine_another"}
    assert names < {*found[1]}
    for name in {*found[1]} - {"val/loss"}:
        assert found[2][name] == pytest.approx(found[1][name], rel=1e-4, abs=1e-5), name


def test_one_process_gathers_its_own_rows(base: Path, tmp_path: Path) -> None:
    module = make_module(base)
    module.trainer = make_trainer(tmp_path)
    rows = torch.randn(3, 2)
    assert torch.equal(module.gather_rows(rows), rows)
