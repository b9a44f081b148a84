"""What a prior is judged by."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.testing import assert_close

from prior_runs import SAMPLING, TinyPairs, make_module, make_pairs
from spatext.callbacks.ema import Ema
from spatext.modules.functional.metrics import prior_metrics
from spatext.modules.networks.diffusion_prior import DiffusionPrior
from spatext.modules.prior import PriorModule, first_of_each
from tables import read_metrics
from tiny import make_prior_transformer
from tiny_runs import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


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
    logged = read_metrics(tmp_path / "logs" / "metrics.csv")
    assert [*logged["val/cosine"]] == [1, 3]
    found = {name: logged[f"val/{name}"][3] for name in expected}
    assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert logged["val/cosine"][1] != found["cosine"]


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
