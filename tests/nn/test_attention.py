"""Memory for decoding with attention."""

from typing import Any

import torch
from tiny import tiny_llamagen, tiny_request, tiny_var

from sfumato.nn.attention import KeyValueCache, Slot
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


def test_slots_by_hand():
    cache = KeyValueCache(8)
    keys = torch.rand(2, 3, 6, 4)
    cache.append(keys[:, :, :2], -keys[:, :, :2])
    position = torch.tensor([2])
    for number in range(2, 6):
        slot = Slot(position, 4 if number < 4 else 8, None)
        part = keys[:, :, number : number + 1]
        held, held_values = cache.put(part, -part, slot)
        assert held.shape[2] == slot.end
        assert torch.equal(held[:, :, : number + 1], keys[:, :, : number + 1])
        assert torch.equal(held_values[:, :, : number + 1], -keys[:, :, : number + 1])
        assert not held[:, :, number + 1 :].any()  # to come: masked, and finite
        position += 1
    assert cache.length == 2  # numbers in Python do not change


def test_cache_has_the_type_of_what_comes():
    with torch.no_grad():
        for generator in (tiny_var(), tiny_llamagen()):
            for dtype in (torch.bfloat16, torch.float32):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                    state = generator.start(tiny_request([0, 1]), Settings(guidance=1.5))
                    generator.step(state, None)  # pyright: ignore[reportArgumentType]
                for cache in state.caches:
                    held: Any = getattr(cache, "attention", cache)
                    assert held.keys.dtype == held.values.dtype == dtype
