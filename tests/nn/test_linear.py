"""The linear layer of all transformers."""

import pytest
import torch

from sfumato.nn.linear import FEW_ROWS, MANY_WEIGHTS, Linear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(1024, MANY_WEIGHTS // 1024), (24, 40), (33, MANY_WEIGHTS // 33 + 1)])
@pytest.mark.parametrize(("rows", "positions"), [(1, 1), (5, 1), (2, 3), (2, FEW_ROWS)])
def test_it_is_the_product(inputs: int, outputs: int, rows: int, positions: int, bias: bool):
    layer = Linear(inputs, outputs, bias=bias)
    x = torch.randn(rows, positions, inputs)
    exact = torch.nn.functional.linear(x.double(), layer.weight.double())
    if bias:
        exact = exact + layer.bias.double()
    with torch.no_grad():
        quick = layer(x)
    assert quick.is_contiguous()
    for out in (quick, layer(x)):
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=2e-5)


def test_a_step_convolves_over_large_weights(monkeypatch: pytest.MonkeyPatch):
    large, small = Linear(512, MANY_WEIGHTS // 512), Linear(512, MANY_WEIGHTS // 512 - 1)
    calls, plain = [], torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda a, b: (calls.append((a.shape, b.shape)), plain(a, b))[1])
    with torch.no_grad():
        large(torch.randn(6, 1, 512))
        large(torch.randn(2, FEW_ROWS // 2, 512))
        image = (1, 512, MANY_WEIGHTS // 512, 1)
        assert calls == [(image, (6, 512, 1, 1)), (image, (FEW_ROWS, 512, 1, 1))]
        small(torch.randn(6, 1, 512))
        large(torch.randn(2, FEW_ROWS // 2 + 1, 512))
        large.double()(torch.randn(6, 1, 512, dtype=torch.float64))
        large.float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert large(torch.randn(6, 1, 512)).dtype == torch.bfloat16
    large(torch.randn(6, 1, 512))  # with gradients
    assert len(calls) == 2
