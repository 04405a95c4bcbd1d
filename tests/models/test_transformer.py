"""What the transformers of all families share."""

import torch
from tiny import tiny_conditions, tiny_llamagen, tiny_var

from sfumato.models.transformer import KeyValueCache


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
