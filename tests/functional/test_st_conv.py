import pytest
import torch

from spatext.modules.functional.st import Segments
from spatext.modules.functional.st_conv import dense_st_conv, factorised_st_conv

CASES = [  # k, c_in, d, kernel, padding, stride, image size, grid
    (1, 4, 6, (3, 3), 1, 1, 8, (8, 8)),
    (2, 4, 6, (3, 3), 1, 1, 16, (4, 4)),
    (3, 3, 8, (3, 3), 1, 1, 20, (7, 5)),
    (4, 4, 5, (3, 3), 1, 2, 16, (8, 8)),
    (5, 4, 7, (5, 3), (2, 1), (2, 1), 9, (9, 6)),
    (3, 4, 6, (3, 3), 0, 1, 16, (8, 8)),
    (2, 1, 6, (1, 1), 0, 1, 16, (8, 8)),
]


def operands(case, dtype: torch.dtype, bias: bool = True):
    k, c_in, d, kernel, padding, stride, size, grid = case
    torch.manual_seed(0)
    leaves = {
        "x": torch.randn(3, c_in, *grid, dtype=dtype),
        "embeds": torch.randn(3, k, d, dtype=dtype),
        "weight": torch.randn(9, c_in + d, *kernel, dtype=dtype),
    }
    if bias:
        leaves["bias"] = torch.randn(9, dtype=dtype)
    for leaf in leaves.values():
        leaf.requires_grad_()
    valid = torch.rand(3, k) > 0.25
    valid[0] = True
    ids = torch.randint(0, k + 1, (3, size, size), dtype=torch.uint8)
    return leaves, ids, valid, {"padding": padding, "stride": stride}


def evaluate(conv, leaves, ids, valid, options) -> list[torch.Tensor]:
    """The output, then the gradient of every leaf."""
    segments = Segments(ids, leaves["embeds"], valid)
    y = conv(leaves["x"], segments, leaves["weight"], leaves.get("bias"), **options)
    torch.manual_seed(1)
    return [y, *torch.autograd.grad(y, list(leaves.values()), torch.randn(y.shape).to(y))]


@pytest.mark.parametrize("resize", ["area", "majority"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_factorised_equals_dense_in_value_and_gradient(case, dtype, bias, resize) -> None:
    *arguments, options = operands(case, dtype, bias)
    arguments += [options | {"resize": resize}]
    dense = evaluate(dense_st_conv, *arguments)
    factorised = evaluate(factorised_st_conv, *arguments)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-5
    for found, expected in zip(factorised, dense, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("conv", [dense_st_conv, factorised_st_conv])
def test_equals_the_convolution_of_a_painted_map(conv) -> None:
    # By hand: one segment fills the left half of the grid, up to the border.
    torch.manual_seed(0)
    x, embed, weight = torch.randn(1, 2, 4, 4), torch.randn(3), torch.randn(5, 5, 3, 3)
    ids = torch.zeros(1, 8, 8, dtype=torch.uint8)
    ids[..., :4] = 2
    st = torch.zeros(1, 3, 4, 4)
    st[..., :2] = embed[:, None, None]
    expected = torch.nn.functional.conv2d(torch.cat([x, st], 1), weight, padding=1)
    segments = Segments(ids, torch.stack([torch.randn(3), embed])[None], torch.ones(1, 2) > 0)
    torch.testing.assert_close(conv(x, segments, weight, None), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("conv", [dense_st_conv, factorised_st_conv])
def test_invalid_slots_leave_no_trace(conv) -> None:
    leaves, ids, valid, options = operands(CASES[2], torch.float64)
    assert not valid.all()
    clean = evaluate(conv, leaves, ids, valid, options)
    embeds = torch.where(valid[..., None], leaves["embeds"], torch.nan).detach().requires_grad_()
    spoilt = evaluate(conv, {**leaves, "embeds": embeds}, ids, valid, options)
    for found, expected in zip(spoilt, clean, strict=True):
        torch.testing.assert_close(found, expected)
    assert clean[2][~valid].count_nonzero() == 0  # the gradient of the embeds


@pytest.mark.parametrize("conv", [dense_st_conv, factorised_st_conv])
def test_null_segments_leave_the_convolution_of_x(conv) -> None:
    leaves, *_ = operands(CASES[0], torch.float64)
    null = Segments.null(3, 2, 6, (16, 16), dtype=torch.float64)
    weight = leaves["weight"][:, :4]
    expected = torch.nn.functional.conv2d(leaves["x"], weight, leaves["bias"], padding=1)
    torch.testing.assert_close(conv(leaves["x"], null, leaves["weight"], leaves["bias"]), expected)


def test_agree_under_bf16_autocast() -> None:
    arguments = operands(CASES[2], torch.float32)
    reference = evaluate(dense_st_conv, *arguments)
    for conv in (dense_st_conv, factorised_st_conv):
        with torch.autocast("cpu", torch.bfloat16):
            found = evaluate(conv, *arguments)
        assert found[0].dtype == torch.bfloat16
        for value, expected in zip(found, reference, strict=True):
            error = (value.float() - expected).square().mean().sqrt()
            assert error < 0.01 * expected.square().mean().sqrt()


@pytest.mark.parametrize("conv", [dense_st_conv, factorised_st_conv])
def test_bf16_tensors(conv) -> None:
    leaves, ids, valid, options = operands(CASES[2], torch.float32)
    expected = evaluate(dense_st_conv, leaves, ids, valid, options)[0]
    low = {name: leaf.detach().bfloat16().requires_grad_() for name, leaf in leaves.items()}
    found = evaluate(conv, low, ids, valid, options)[0]
    assert found.dtype == torch.bfloat16
    error = (found.float() - expected).square().mean().sqrt()
    assert error < 0.01 * expected.square().mean().sqrt()
