"""Low-rank updates beside a first convolution that is trained whole."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.testing import assert_close

from spatext.callbacks.checkpoint_files import read
from spatext.callbacks.checkpoint_io import AtomicCheckpointIO
from spatext.callbacks.checkpoints import Checkpoint
from spatext.callbacks.ema import Ema
from spatext.modules.networks.lora import ATTENTION
from spatext.modules.spatext import SpaText
from spatext.tools.loading import check_weights
from tiny import EMBED_DIM, load_backbone, load_spatext
from tiny_runs import TinyData, make_batch, make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
RANK = 2
LORA = {"rank": RANK, "alpha": 6.0, "target_modules": [*ATTENTION, "conv1"]}
CONV_IN = "backbone.unet.conv_in."


def load(base: Path, **options: Any) -> SpaText:
    torch.manual_seed(3)
    return load_spatext(base, lora=LORA, **options)


def loud(model: SpaText) -> SpaText:
    """With updates as after training, not zero."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn_like(p)
    return model


def trained(model: SpaText) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def fit(model: SpaText, folder: Path, max_steps: int, resume: Path | None = None) -> Ema:
    ema = Ema(decay=0.5)
    trainer = make_trainer(
        folder,
        max_steps=max_steps,
        enable_checkpointing=True,
        callbacks=[Checkpoint(str(folder / "saved"), every_n_train_steps=2, keep_last=9), ema],
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(model, TinyData(), ckpt_path=resume, weights_only=True)
    return ema


def test_it_starts_from_the_base_and_trains_so_many_numbers(base: Path) -> None:
    model, plain = load(base, seed=2), load_spatext(base, seed=2)
    plain.backbone.unet.conv_in.load_state_dict(model.backbone.unet.conv_in.state_dict())
    batch = make_batch(1, 2, 3)
    assert_close(model.training_step(batch, 0), plain.training_step(batch, 0))

    layers = {n: p for n, p in plain.named_parameters() if n.endswith(".weight")}
    targets = [
        tuple(p.shape)
        for name, p in layers.items()
        if any(name.endswith(f".{target}.weight") for target in LORA["target_modules"])
    ]
    expected = sum(RANK * (out + torch.Size(sizes).numel()) for out, *sizes in targets)
    conv_in = plain.backbone.unet.conv_in
    expected += conv_in.weight.numel() + conv_in.bias.numel()
    found = trained(model)
    assert sum(p.numel() for p in found.values()) == expected
    assert len(found) == 2 * len(targets) + 2
    assert len(targets) > 2 * 4 * 2
    assert all(name.startswith(CONV_IN) or "lora_" in name for name in found)


def test_steps_change_nothing_else(base: Path, tmp_path: Path) -> None:
    model = load(base)
    before = {name: p.clone() for name, p in model.named_parameters()}
    ema = fit(model, tmp_path, 4)
    for name, p in model.named_parameters():
        changed = not torch.equal(p, before[name])
        assert changed == (name.startswith(CONV_IN) or "lora_" in name), name
    # The average has numbers of its own for what is trained, and shares the rest.
    averaged = dict(ema._average_model.module.named_parameters())
    for name, p in model.named_parameters():
        assert (averaged[name] is p) == (name not in trained(model)), name


def test_checkpoints_hold_what_is_trained_and_resume_bit_by_bit(base: Path, tmp_path: Path) -> None:
    for name, stops in (("whole", [4]), ("parts", [2, 4])):
        folder = tmp_path / name
        for i, stop in enumerate(stops):
            resume = folder / "saved" / f"step-{stops[i - 1]}.ckpt" if i else None
            fit(load(base), folder, stop, resume)
    found, expected = (read(tmp_path / n / "saved" / "last.ckpt") for n in ("parts", "whole"))
    names = trained(load(base)).keys()
    for part in ("state_dict", "current_model_state"):
        assert found[part].keys() == expected[part].keys() == names
        for name in names:
            assert torch.equal(found[part][name], expected[part][name]), name
    difference = [found["state_dict"][n] - found["current_model_state"][n] for n in names]
    assert all(value.abs().max() > 0 for value in difference)

    model = load(base)
    model.load_state_dict(found["state_dict"])
    for name, p in trained(model).items():
        assert torch.equal(p, found["state_dict"][name])
    with pytest.raises(RuntimeError, match=r"Missing key.*lora_"):
        model.load_state_dict({n: v for n, v in found["state_dict"].items() if CONV_IN in n})


@pytest.mark.parametrize("st_conv", ["factorised", "dense"])
def test_merged_it_is_an_ordinary_unet(base: Path, tmp_path: Path, st_conv: str) -> None:
    model = loud(load(base, st_conv=st_conv))
    folder = shutil.copytree(base, tmp_path / "base", ignore=shutil.ignore_patterns("unet"))
    model.save_pretrained(folder, [])
    plain = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", use_safetensors=True)
    original = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    assert plain.state_dict().keys() == original.state_dict().keys()

    unet, channels = model.backbone.unet.eval(), 4
    x_t, t, text = torch.randn(2, channels, 8, 8), torch.tensor([3, 700]), torch.randn(2, 12, 16)
    st = torch.randn(2, EMBED_DIM, 8, 8)
    x_0_and_st = torch.cat([x_t, torch.zeros_like(st)], dim=1)
    expected = unet(x_t, t, text).sample
    assert_close(plain(x_0_and_st, t, text).sample, expected, rtol=1e-5, atol=1e-5)
    assert (original(x_t, t, text).sample - expected).abs().mean() > 1e-2

    again = load_spatext(folder, st_conv=st_conv, seed=model.seed)
    batch = make_batch(1, 2, 3)
    assert_close(again.training_step(batch, 0), model.training_step(batch, 0), rtol=1e-5, atol=1e-5)
    assert model.backbone.state_dict().keys() == load(base).backbone.state_dict().keys()


def test_half_precision_and_evaluation_keep_the_checkpoint(base: Path) -> None:
    model = load(base)
    names = model.state_dict().keys()
    model.eval().requires_grad_(False).to(torch.bfloat16)
    assert model.state_dict().keys() == names
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 0}, r"\.rank: found 0, expected at least 1"),
        ({"alpha": 0.0}, r"\.alpha: found 0\.0, expected above 0"),
        ({"rnak": 4}, r": found 'rnak', expected some of rank, alpha, target_modules"),
        ({"target_modules": ["to_q", "to_x"]}, r"\.target_modules: found 'to_x', expected the end"),
        ({"target_modules": ["conv_in"]}, r"\.target_modules: found conv_in, expected other"),
    ],
)
def test_wrong_options_are_named(base: Path, lora: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^module\.backbone\.lora{message}"):
        load_backbone(base, lora=lora)


def test_updates_are_of_one_base(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint tells which, and loads on no other, however alike; a copy is the same."""
    copied, other = (shutil.copytree(base, tmp_path / name) for name in ("copied", "other"))
    unet = UNet2DConditionModel.from_pretrained(other, subfolder="unet")
    unet.conv_out.weight.data *= 1.001
    unet.save_pretrained(other / "unet")
    model = load(base)
    state: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(state)
    assert state["base"]["path"] == str(base)
    again = load(copied).to(torch.bfloat16)
    assert again.backbone.base["weights"] == state["base"]["weights"]
    again.on_load_checkpoint(state)
    check_weights(tmp_path / "a.ckpt", state, again)

    wrong = load(other)
    message = rf"^checkpoint: its low-rank updates are of {base} .*, found {other} \(digest"
    with pytest.raises(ValueError, match=message):
        wrong.on_load_checkpoint(state)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/a.ckpt: {message[1:]}"):
        check_weights(tmp_path / "a.ckpt", state, wrong)
    del state["base"]
    assert not caplog.records
    wrong.on_load_checkpoint(state)
    assert caplog.messages == [f"checkpoint: tells no base, expected updates of {other}"]


def test_a_missing_peft_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"^peft: not installed, .*pip install 'spatext\[lora\]'$"):
        load_backbone(base, lora=LORA)
