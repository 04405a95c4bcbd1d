"""Layers shared by the transformers of all families."""

import pytest
import torch
from tiny import tiny_llamagen, tiny_request, tiny_var

from sfumato.nn.attention import FEW_ROWS, MANY_WEIGHTS, KeyValueCache, project
from sfumato.settings import Settings


def test_cache_by_hand():
    cache = KeyValueCache(5)
    keys, values = torch.arange(2 * 3 * 5 * 4.0).reshape(2, 3, 5, 4), torch.rand(2, 3, 5, 4)
    first = cache.append(keys[:, :, :2], values[:, :, :2])
    assert torch.equal(first[0], keys[:, :, :2])
    assert torch.equal(first[1], values[:, :, :2])
    memory = (cache.keys.data_ptr(), cache.values.data_ptr())
    for end in (3, 4, 5):
        held, held_values = cache.append(keys[:, :, end - 1 : end], values[:, :, end - 1 : end])
        assert torch.equal(held, keys[:, :, :end])
        assert torch.equal(held_values, values[:, :, :end])
        # They are views of memory that is allocated once.
        assert (held.data_ptr(), held_values.data_ptr()) == (cache.keys.data_ptr(), cache.values.data_ptr()) == memory
    assert (cache.batch, cache.length) == (2, 5)
    assert cache.keys.shape == cache.values.shape == (2, 3, 5, 4)


def test_cache_keeps_the_first_rows():
    cache = KeyValueCache(3)
    keys = torch.rand(4, 2, 3, 4)
    cache.append(keys[:, :, :2], -keys[:, :, :2])
    memory = cache.keys.data_ptr()
    cache.keep(3)
    held, held_values = cache.append(keys[:3, :, 2:], -keys[:3, :, 2:])
    assert torch.equal(held, keys[:3])
    assert torch.equal(held_values, -keys[:3])
    assert (cache.batch, cache.keys.data_ptr()) == (3, memory)


def test_cache_has_the_type_of_what_comes():
    with torch.no_grad():
        for generator in (tiny_var(), tiny_llamagen()):
            for dtype in (torch.bfloat16, torch.float32):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                    state = generator.start(tiny_request([0, 1]), Settings(guidance=1.5))
                    generator.step(state, None)  # pyright: ignore[reportArgumentType]
                assert {(c.keys.dtype, c.values.dtype) for c in state.caches} == {(dtype, dtype)}


@pytest.mark.parametrize("bias", ["none", "own", "given"])
@pytest.mark.parametrize(("inputs", "outputs"), [(1024, MANY_WEIGHTS // 1024), (24, 40), (33, MANY_WEIGHTS // 33 + 1)])
@pytest.mark.parametrize(("rows", "positions"), [(1, 1), (5, 1), (2, 3), (2, FEW_ROWS)])
def test_projection_is_the_product(inputs: int, outputs: int, rows: int, positions: int, bias: str):
    layer = torch.nn.Linear(inputs, outputs, bias=bias == "own")
    given = torch.randn(outputs) if bias == "given" else None
    x = torch.randn(rows, positions, inputs)
    exact = torch.nn.functional.linear(x.double(), layer.weight.double())
    exact = exact + sum(b.double() for b in (given, layer.bias) if b is not None)
    with torch.no_grad():
        quick = project(layer, x, given)
    assert quick.is_contiguous()
    for out in (quick, project(layer, x, given)):
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=2e-5)


def test_a_step_convolves_over_large_weights(monkeypatch: pytest.MonkeyPatch):
    large, small = torch.nn.Linear(512, MANY_WEIGHTS // 512), torch.nn.Linear(512, MANY_WEIGHTS // 512 - 1)
    calls, plain = [], torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda a, b: (calls.append((a.shape, b.shape)), plain(a, b))[1])
    with torch.no_grad():
        project(large, torch.randn(6, 1, 512))
        project(large, torch.randn(2, FEW_ROWS // 2, 512))
        image = (1, 512, MANY_WEIGHTS // 512, 1)
        assert calls == [(image, (6, 512, 1, 1)), (image, (FEW_ROWS, 512, 1, 1))]
        project(small, torch.randn(6, 1, 512))
        project(large, torch.randn(2, FEW_ROWS // 2 + 1, 512))
        project(large.double(), torch.randn(6, 1, 512, dtype=torch.float64))
        large.float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert project(large, torch.randn(6, 1, 512)).dtype == torch.bfloat16
    project(large, torch.randn(6, 1, 512))  # with gradients
    assert len(calls) == 2
