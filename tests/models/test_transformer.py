"""What the transformers of all families share."""

import pytest
import torch
from tiny import tiny_conditions, tiny_llamagen, tiny_var

from sfumato.models.transformer import FEW_ROWS, PIECE, KeyValueCache, project


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
        # Views of memory that was allocated once.
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
        for generator in (tiny_var(guidance=1.5), tiny_llamagen(guidance=1.5)):
            for dtype in (torch.bfloat16, torch.float32):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                    state = generator.start(tiny_conditions([0, 1]))
                    generator.step(state, None)  # pyright: ignore[reportArgumentType]
                assert {(c.keys.dtype, c.values.dtype) for c in state.caches} == {(dtype, dtype)}


@pytest.mark.parametrize("bias", ["none", "own", "given"])
@pytest.mark.parametrize("outputs", [PIECE, 3 * PIECE, PIECE + 8])
@pytest.mark.parametrize(("rows", "positions"), [(1, 1), (5, 1), (2, 3), (3, FEW_ROWS)])
def test_product_piece_by_piece_is_the_product(outputs: int, rows: int, positions: int, bias: str):
    layer = torch.nn.Linear(24, outputs, bias=bias == "own").double()
    given = torch.randn(outputs, dtype=torch.float64) if bias == "given" else None
    x = torch.randn(rows, positions, 24, dtype=torch.float64)
    expected = layer(x) if given is None else layer(x) + given
    with torch.no_grad():
        torch.testing.assert_close(project(layer, x, given), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(project(layer, x, given), expected, rtol=0, atol=1e-12)


def test_product_in_pieces_is_taken_for_a_step(monkeypatch: pytest.MonkeyPatch):
    layer, calls = torch.nn.Linear(24, 2 * PIECE, bias=False), []
    plain = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *inputs: (calls.append(inputs[0].shape), plain(*inputs))[1])
    with torch.no_grad():
        project(layer, torch.randn(6, 1, 24))
        project(layer, torch.randn(2, FEW_ROWS // 2, 24))
        assert calls == [(2, 6, 24), (2, FEW_ROWS, 24)]
        project(layer, torch.randn(2, FEW_ROWS // 2 + 1, 24))
        project(layer, torch.randn(FEW_ROWS + 1, 1, 24))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert project(layer, torch.randn(6, 1, 24)).dtype == torch.bfloat16
    project(layer, torch.randn(6, 1, 24))  # with gradients
    assert len(calls) == 2
