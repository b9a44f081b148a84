from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from spatext.callbacks.histograms import NormHistograms
from tables import read_rows
from tiny_runs import TinyData, TinyModule, make_trainer

NUM_STEPS, EVERY = 6, 3


class Deep(TinyModule):
    """Two layers, of which the second has only zeros to start from, and two parameter groups."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3, bias=False)
        nn.init.zeros_(self.head.weight)
        self.make_optimizer = lambda params: torch.optim.SGD(  # type: ignore[assignment]
            [
                {"params": [*self.layer.parameters()], "name": "body"},
                {"params": [*self.head.parameters()], "lr": 0.5},
            ],
            lr=0.1,
        )
        self.make_lr_scheduler = lambda optimizer: torch.optim.lr_scheduler.ConstantLR(
            optimizer, factor=1.0
        )

    def loss(self, batch: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return (y + self.head(y) - self.teacher.net(x)).square().mean()


class Notes(Callback):
    """Weights and gradients of each step, taken down beside the callback under test."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any
    ) -> None:
        named = [*module.named_parameters()]
        self.weights.append({name: p.detach().clone() for name, p in named})
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.weights.append({name: p.detach().clone() for name, p in module.named_parameters()})


def run(folder: Path, **options: Any) -> Notes:
    notes = Notes()
    callback = NormHistograms(str(folder), every_n_steps=EVERY, **options)
    trainer = make_trainer(
        folder,
        max_steps=NUM_STEPS,
        callbacks=[callback, notes],
        gradient_clip_val=0.01,
        logger=TensorBoardLogger(folder, name="", version="tb"),
    )
    trainer.fit(Deep(), TinyData())
    assert not callback.before  # no copy of the weights is kept
    return notes


def size(values: dict[str, torch.Tensor], names: list[str]) -> float:
    return torch.cat([values[name].flatten() for name in names]).norm().item()


@pytest.mark.parametrize(
    ("by", "layers"),
    [
        ("layer", {"layer": ["layer.weight", "layer.bias"], "head": ["head.weight"]}),
        ("group", {"body": ["layer.weight", "layer.bias"], "group 1": ["head.weight"]}),
    ],
)
def test_norms_are_those_of_the_step(tmp_path: Path, by: str, layers: dict[str, Any]) -> None:
    notes = run(tmp_path, by=by)
    rows = read_rows(tmp_path / "norms.csv")
    assert [(row["step"], row["layer"]) for row in rows] == [
        (str(step), layer) for step in (EVERY, 2 * EVERY) for layer in layers
    ]
    for row in rows:
        names, step = layers[row["layer"]], int(row["step"]) - 1
        before, after = notes.weights[step], notes.weights[step + 1]
        change = {name: after[name] - before[name] for name in names}
        assert float(row["gradient"]) == pytest.approx(size(notes.gradients[step], names), rel=1e-4)
        assert float(row["weight"]) == pytest.approx(size(before, names), rel=1e-4)
        expected = size(change, names) / size(before, names)
        assert float(row["update"]) == pytest.approx(expected, rel=1e-4)
        assert 0 < expected < 10
    # Clipping comes later: what is seen is the gradient itself.
    assert all(float(row["gradient"]) > 0.01 for row in rows if row["layer"] in ("layer", "body"))


def test_trackers_and_the_disk_show_them(tmp_path: Path) -> None:
    run(tmp_path)
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"histograms": 0}).Reload()
    for name in ("norms/gradient_log10", "norms/update_log10"):
        found = events.Histograms(name)
        assert [event.step for event in found] == [EVERY, 2 * EVERY]
        assert [event.histogram_value.num for event in found] == [2, 2]  # layers
    assert Image.open(tmp_path / "norms.png").width == 1200


def test_weights_that_were_zero_have_no_relative_update(tmp_path: Path) -> None:
    callback = NormHistograms(str(tmp_path), every_n_steps=1)
    trainer = make_trainer(tmp_path, max_steps=1, callbacks=[callback])
    trainer.fit(Deep(), TinyData())
    body, head = read_rows(tmp_path / "norms.csv")
    assert head["weight"] == "0.0"
    assert head["update"] == "nan"
    assert float(head["gradient"]) > 0
    assert float(body["update"]) > 0


class Spare(TinyModule):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(3, 3)


def test_layers_without_a_gradient_have_zeros(tmp_path: Path) -> None:
    callback = NormHistograms(str(tmp_path), every_n_steps=1)
    trainer = make_trainer(tmp_path, max_steps=1, callbacks=[callback])
    trainer.fit(Spare(), TinyData())
    layer, spare = read_rows(tmp_path / "norms.csv")
    assert spare["layer"] == "spare"
    assert (spare["gradient"], spare["update"]) == ("0.0", "0.0")
    assert float(layer["gradient"]) > 0


def test_a_table_that_the_disk_refuses_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "norms.csv").mkdir()
    callback = NormHistograms(str(tmp_path), every_n_steps=1)
    trainer = make_trainer(tmp_path, max_steps=1, callbacks=[callback])
    trainer.fit(TinyModule(), TinyData())
    messages = [r.getMessage() for r in caplog.records if r.name == "spatext.callbacks.histograms"]
    assert [message[:21] for message in messages] == ["no norms of step 1: ["]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, r"^callbacks.histograms.every_n_steps: found 0, .* at least 1$"),
        ({"by": "tensor"}, r"^callbacks.histograms.by: found 'tensor', expected layer or group$"),
    ],
)
def test_refuses_unusable_options(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NormHistograms(str(tmp_path), **options)
