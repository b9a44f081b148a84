"""Training on cached encodings, beside the same training without."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from cached import ALL, CENTRE, Calls, batches, load, make, write_cached
from runs import latent, read_metrics, run
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.modules.functional.random import Purpose, normal
from spatext.modules.spatext import SpaText
from tiny import CHANNELS, LATENT_SIZE
from tiny_karlo import make_pixel_model
from tiny_runs import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
KINDS = tuple(ALL)
SHAPE = (CHANNELS, LATENT_SIZE, LATENT_SIZE)
SPLITS = (("", "train"), ("val_", "val"))


@pytest.fixture(scope="module")
def world(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cached(workspace, tmp_path_factory.mktemp("cached"))


def step(model: SpaText, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model.training_step(batch, 0)
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads


@pytest.mark.parametrize("kinds", [KINDS, ("moments",), ("text",), ("embeds",)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-3)])
def test_losses_and_gradients_are_those_of_online_training(
    world: Path, base: Path, kinds: tuple[str, ...], dtype: str, tolerance: float
) -> None:
    """Mirrored images and dropped conditions included; what is cached is not computed."""
    rates = {"text": 0.3, "segments": 0.3}
    encodings: dict[str, Any] = {kind: True for kind in kinds}
    if dtype == "float16":
        encodings["path"] = world / "half"
    online, cached = load(base, drop_rates=rates), load(base, drop_rates=rates)
    cached.null_conditions()
    calls = Calls(cached)
    asked = batches(make(world / "train", encodings), 2)
    for one, other in zip(batches(make(world / "train", None), 2), asked, strict=True):
        assert other.keys() - one.keys() == set(kinds)
        assert {str(other[kind].dtype) for kind in kinds} == {f"torch.{dtype}"}
        for name in ("image", "ids", "valid", "crops", "index"):
            assert torch.equal(one[name], other[name])
        (expected, grads), (found, own) = step(online, one), step(cached, other)
        assert_close(found, expected, rtol=tolerance, atol=tolerance)
        assert_close(own, grads, rtol=10 * tolerance, atol=tolerance)
    assert any(grad.abs().max() > 0.1 for grad in grads.values())
    assert {kind for kind, num in calls.counts.items() if not num} == set(kinds)


def test_moments_are_drawn_anew_in_each_epoch(world: Path, base: Path) -> None:
    model = load(base)
    drawn: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for batch in batches(make(world / "train", {"moments": True}, flip=False), 8):
        noise = normal(5, Purpose.POSTERIOR, batch["index"], SHAPE)
        x_0 = model.x_0(batch, noise)
        mean, logvar = batch["moments"].unbind(1)
        assert_close(x_0, 1.7 * (mean + (logvar / 2).exp() * noise), rtol=1e-5, atol=1e-6)
        for row in zip(batch["key"], batch["moments"], x_0, strict=True):
            drawn.setdefault(row[0], []).append(row[1:])
    assert len(drawn) == 16
    for (moments, first), (again, second) in drawn.values():
        assert torch.equal(moments, again)
        assert (first - second).abs().max() > 1e-3


def test_mirrored_images_have_moments_and_embeddings_of_their_own(world: Path) -> None:
    seen: dict[str, list[dict[str, torch.Tensor]]] = {}
    for batch in batches(make(world / "train", ALL), 16):
        for i, key in enumerate(batch["key"]):
            names = ("image", "moments", "text")
            seen.setdefault(key, []).append({name: batch[name][i] for name in names})
    num_flipped = 0
    for first, *others in seen.values():
        for other in others:
            assert torch.equal(first["text"], other["text"])
            same = torch.equal(first["image"], other["image"])
            assert torch.equal(first["moments"], other["moments"]) == same
            num_flipped += not same
    assert num_flipped > 5


def test_a_dropped_caption_is_the_empty_prompt(world: Path, base: Path) -> None:
    model = load(base, drop_rates={"text": 1.0})
    (batch,) = batches(make(world / "train", ALL), 1)
    (online,) = batches(make(world / "train", None), 1)
    null = model.null_conditions()
    assert torch.equal(null.text, model.backbone.embed_text([""]))
    assert (model.text(batch) - null.text).abs().max() > 0.1
    assert_close(
        model.training_step(batch, 0), model.training_step(online, 0), rtol=1e-5, atol=1e-5
    )


def test_without_images_nothing_else_changes(world: Path, base: Path) -> None:
    """Ids, texts and encodings are the same, and so is the loss; images and crops are black."""
    seen = batches(make(world / "train", ALL), 2)
    blind = batches(make(world / "train", ALL | {"images": False}), 2)
    model = load(base)
    for one, other in zip(seen, blind, strict=True):
        assert one.keys() == other.keys()
        assert one["texts"] == other["texts"]
        assert one["key"] == other["key"]
        for name in ("index", "ids", "valid", *KINDS):
            assert torch.equal(one[name], other[name])
        assert other["image"].shape == one["image"].shape
        assert other["crops"].shape == one["crops"].shape
        assert (other["image"] == -1).all()
        assert not other["crops"].any()
        assert_close(model.training_step(other, 0), model.training_step(one, 0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_with_validation(world: Path, base: Path, tmp_path: Path, precision: str) -> None:
    losses = []
    for encodings in (ALL, None):
        options: dict[str, Any] = {"max_epochs": 1, "precision": precision}
        trainer = make_trainer(tmp_path, **options)
        datamodule = PanopticDataModule(
            world / "train", world / "val", encodings=encodings, **CENTRE
        )
        trainer.fit(load(base), datamodule)
        losses.append(trainer.callback_metrics["val/loss"])
    assert_close(*losses, rtol=0.05 if precision == "bf16-mixed" else 1e-4, atol=1e-4)


@pytest.mark.slow
def test_by_configuration_alone(workspace: Path, world: Path, tmp_path: Path) -> None:
    """Loaded by a worker; the numbers of the run are those without a cache."""
    losses = []
    own = ("datamodule.encodings={moments: true, text: true, embeds: true}",)
    for name, options in (("online", ()), ("cached", (*own, "datamodule.num_workers=1"))):
        overrides = [
            "datamodule.random_crop=false",
            "datamodule.flip=true",
            *(f"datamodule.{split}shards={world / folder}" for split, folder in SPLITS),
            *("trainer.max_steps=3", "trainer.log_every_n_steps=1", "~callbacks.ema", *options),
        ]
        run(latent(workspace, tmp_path / name, *overrides))
        losses.append([*read_metrics(tmp_path / name)["train/loss"].values()])
    assert len(losses[0]) == 3
    assert_close(*losses, rtol=1e-4, atol=1e-5)


def perturb(kind: str, model: SpaText) -> str:
    """Another model, in one weight or option; returns what is said of it."""
    nets: dict[str, Any] = {
        "moments": model.backbone.vae.net.encoder.conv_in,  # type: ignore[attr-defined]
        "text": model.backbone.text_encoder.net.final_layer_norm,  # type: ignore[attr-defined]
        "embeds": model.clip.model.net.visual.ln_post,
    }
    with torch.no_grad():
        nets[kind].bias[1] += 1e-3
    return {"moments": "vae", "text": "text_encoder", "embeds": "clip"}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_encodings_of_another_model_are_refused(
    world: Path, base: Path, tmp_path: Path, kind: str
) -> None:
    model = load(base)
    name = perturb(kind, model)
    message = rf"00000\.{kind}\.bin: made with {name} = '.*', now '.*' in the model; expected .*"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path).fit(model, PanopticDataModule(world / "train", encodings=ALL,
                                                             **CENTRE))  # fmt: skip
    assert model.global_step == 0
    others = {other: other != kind for other in KINDS}
    make(world / "train", others).check_encoders({k: model.encoder(k) for k in KINDS})


def test_encodings_of_another_scale_or_tokenizer_are_refused(world: Path, base: Path) -> None:
    datamodule, model = make(world / "train", ALL), load(base, scale="unit", prior=None)
    found = {kind: model.encoder(kind) for kind in KINDS}
    with pytest.raises(ValueError, match="made with scale = 'raw', now 'unit' in the model"):
        datamodule.check_encoders(found)
    model = load(base)
    model.backbone.embed_text(["two dogs"])  # leaves traces in a tokenizer, which do not matter
    found = {kind: model.encoder(kind) for kind in KINDS}
    datamodule.check_encoders(found)
    model.backbone.tokenizer.add_tokens(["dogs"])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="made with tokenizer = "):
        datamodule.check_encoders({kind: model.encoder(kind) for kind in KINDS})


def load_pixel(base: Path, karlo: Path, **options: Any) -> SpaText:
    """With the CLIP that the embeddings are cached of."""
    torch.manual_seed(0)  # of the new weights
    model = make_pixel_model(karlo, **options)
    model.clip = load(base).clip
    return model


def test_a_model_in_pixels_trains_on_cached_embeddings(
    world: Path, base: Path, karlo: Path
) -> None:
    online, cached = load_pixel(base, karlo), load_pixel(base, karlo)
    calls = []
    cached.clip.model.net.visual.register_forward_hook(lambda net, given, _: calls.append(given))
    asked = batches(make(world / "train", {"embeds": True}), 2)
    for one, other in zip(batches(make(world / "train", None), 2), asked, strict=True):
        (expected, grads), (found, own) = step(online, one), step(cached, other)
        assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert_close(own, grads, rtol=1e-4, atol=1e-5)
    assert {len(images) for (images,) in calls} == {4}  # the images, and no segments


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "moments",
            {},
            r"^datamodule\.encodings\.moments: found true, expected false: a model in p",
        ),
        (
            "text",
            {"train_text": True},
            r"^datamodule\.encodings\.text: found true, expected false: ",
        ),
        ("text", {}, r"00000\.text\.bin: made with .* or datamodule\.encodings\.text=false$"),
    ],
)
def test_what_a_model_in_pixels_cannot_use_is_refused(
    world: Path,
    base: Path,
    karlo: Path,
    tmp_path: Path,
    kind: str,
    options: dict[str, Any],
    message: str,
) -> None:
    model = load_pixel(base, karlo, **options)
    datamodule = PanopticDataModule(world / "train", encodings={kind: True}, **CENTRE)
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path).fit(model, datamodule)
    assert model.global_step == 0
