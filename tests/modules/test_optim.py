import math

import pytest
import torch
from torch.testing import assert_close

from spatext.modules.optim import WarmupLR, adamw, lr_factor
from tiny import unchecked


def test_warmup_ends_at_one() -> None:
    factors = [lr_factor(step, 4, "constant", 0) for step in range(7)]
    assert factors == [0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert lr_factor(0, 0, "constant", 0) == 1


def test_cosine() -> None:
    factors = [lr_factor(step, 2, "cosine", 10) for step in range(13)]
    after = [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(9)]
    assert_close(factors, [0.5, 1.0, *after, 0.0, 0.0])
    assert_close(lr_factor(6, 2, "cosine", 10), 0.5)


def test_schedule_sets_the_rate_of_each_step() -> None:
    optimizer = adamw([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    schedule = WarmupLR(optimizer, warmup_steps=2, decay="cosine", num_steps=6)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert_close(rates, [0.1 * lr_factor(step, 2, "cosine", 6) for step in range(8)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": "linear"}, r"^lr_scheduler.decay: found 'linear', .*'constant', 'cosine'"),
        ({"decay": "cosine"}, "^lr_scheduler.num_steps: found None, expected a positive number"),
        ({"decay": "cosine", "num_steps": 0}, "^lr_scheduler.num_steps: found 0, expected"),
        ({"decay": "cosine", "num_steps": -1}, "^lr_scheduler.num_steps: found -1, expected"),
    ],
)
def test_a_wrong_schedule_is_named(options: dict[str, object], message: str) -> None:
    optimizer = adamw([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    with unchecked(), pytest.raises(ValueError, match=message):
        WarmupLR(optimizer, **options)


def test_fused_adamw_is_adamw() -> None:
    start = torch.randn(5)
    options = {"lr": 0.1, "weight_decay": 0.3, "betas": (0.8, 0.95), "eps": 1e-3}
    results = []
    for make in (adamw, lambda params, **given: torch.optim.AdamW(params, fused=False, **given)):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = make(iter([parameter]), **options)
        results.append(parameter)
        for step in range(5):
            optimizer.zero_grad()
            ((parameter - step) ** 3).sum().backward()
            optimizer.step()
    assert adamw([torch.nn.Parameter(start)], lr=1.0).defaults["fused"] is True
    assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    assert (results[0] - start).abs().min() > 0.1


def test_defaults_are_those_of_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    found = adamw([parameter], lr=0.1).defaults
    assert found == torch.optim.AdamW([parameter], lr=0.1, fused=True).defaults


def test_a_device_without_the_fused_form() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1, device="meta"))
    assert adamw([parameter], lr=0.1).defaults["fused"] is False
