"""Replayed decoding steps, with a recorder that works without a GPU: it replays the operations on the same tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_captions, tiny_janus, tiny_llamagen, tiny_prompts, tiny_request, tiny_simplear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from sfumato.engine.fake_cuda import fake_cuda
from sfumato.engine.graphs import GraphedSampler, Recordable
from sfumato.engine.meter import Meter
from sfumato.engine.torch_engine import halve
from sfumato.policy import Policy
from sfumato.settings import Settings


class Recorder(TorchDispatchMode):
    """Writes down every operation with its tensors. As in a CUDA graph, nothing of Python is left at replay."""

    def __init__(self):
        super().__init__()
        self.calls: list[Any] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = function(*arguments, **(named or {}))
        self.calls.append((function, arguments, named or {}, result))
        return result

    def replay(self) -> None:
        """Run everything again, on the memory of then."""
        new: dict[int, Any] = {}

        def current(value: Any) -> Any:
            return new.get(id(value), value)

        for function, arguments, named, result in self.calls:
            again = function(*tree_map(current, arguments), **tree_map(current, named))
            results, repeated = (x if isinstance(x, tuple | list) else (x,) for x in (result, again))
            new.update({id(old): other for old, other in zip(results, repeated, strict=True)})


class Recording:
    """Stands for `record_cuda`; counts what is recorded and replayed."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        # A CUDA graph is recorded without running; here it runs, and what it changed is put back.
        self.recorded += 1
        sampler = function.func.__self__  # pyright: ignore[reportFunctionMemberAccess]
        state = sampler._state
        caches = [tensor for cache in state.caches for tensor in (cache.keys, cache.values)]
        tensors = [sampler._number, sampler._tokens, sampler._log_probs, sampler._entropy, state.position, *caches]
        before = [tensor.clone() for tensor in tensors]
        with Recorder() as recorder:
            function()
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(old)

        def replay() -> None:
            self.replayed += 1
            recorder.replay()

        return replay


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("interval", [-1, 3])
def test_replayed_steps_draw_the_same(text: bool, interval: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sfumato.families.next_token_generator.key_block", lambda device: 4)
    generator = tiny_llamagen(text=text, guidance_interval=interval)
    assert isinstance(generator, Recordable)
    policy, recording = Policy(generator, Settings(guidance=2.5, temperature=0.7)), Recording()
    sampler = GraphedSampler(policy, recording)
    for first in (0, 3, 6):
        request = tiny_captions([3, 5, 2]) if text else tiny_request([first % 5, 1, 2])
        seeds = torch.arange(first, first + 3)
        plain, replayed = policy.sample(request, seeds), sampler.sample(request, seeds)
        assert torch.equal(plain.tokens, replayed.tokens)
        torch.testing.assert_close(replayed.log_probs, plain.log_probs, rtol=0, atol=1e-6)
        torch.testing.assert_close(replayed.entropy, plain.entropy, rtol=0, atol=1e-6)
        with torch.no_grad():  # an update, in place
            for parameter in generator.network.parameters():
                parameter.mul_(1.01)
    # 8 steps follow the first token. Those of one kind have equal numbers of rows and of keys (in blocks of 4).
    kinds = len(sampler._graphs)
    assert kinds == 3 + (interval == 3)
    assert recording.recorded == kinds  # none again for later batches
    assert recording.replayed == 3 * 8 - kinds


@pytest.mark.parametrize("build", [tiny_janus, tiny_simplear])
def test_language_models_draw_the_same(build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sfumato.families.next_token_generator.key_block", lambda device: 4)
    policy, recording = Policy(build(), Settings(guidance=2.5, temperature=0.7)), Recording()
    sampler = GraphedSampler(policy, recording)
    for first in (0, 3):
        request, seeds = tiny_prompts([4, 7, 3], negative=True), torch.arange(first, first + 3)
        plain, replayed = policy.sample(request, seeds), sampler.sample(request, seeds)
        assert torch.equal(plain.tokens, replayed.tokens)
        torch.testing.assert_close(replayed.log_probs, plain.log_probs, rtol=0, atol=1e-6)
    assert recording.replayed == 2 * 8 - recording.recorded


def test_another_batch_needs_other_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sfumato.families.next_token_generator.key_block", lambda device: 4)
    policy, recording = Policy(tiny_llamagen(), Settings(guidance=2.5)), Recording()
    sampler = GraphedSampler(policy, recording)
    for count, recorded in ((3, 2), (3, 3), (2, 5)):
        request, seeds = tiny_request([0] * count), torch.arange(count)
        assert torch.equal(sampler.sample(request, seeds).tokens, policy.sample(request, seeds).tokens)
        assert recording.recorded == recorded  # a kind with one step in a batch is recorded in the next


class Counter(TorchDispatchMode):
    """Counts the operations that Python launches."""

    launches = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.launches += 1
        return function(*arguments, **(named or {}))


def test_a_replayed_token_is_one_launch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sfumato.families.next_token_generator.key_block", lambda device: 4)
    replays: list[int] = []
    sampler = GraphedSampler(Policy(tiny_llamagen(), Settings(guidance=2.5)), lambda step: lambda: replays.append(1))
    request, seeds, advance, launches = tiny_request([0, 1]), torch.arange(2), sampler._advance, []

    def counted(generator: Any, state: Any) -> None:
        with Counter() as counter:
            advance(generator, state)
        launches.append(counter.launches)

    for _ in range(2):  # with the second batch, all kinds of steps are recorded
        sampler.sample(request, seeds)
    replays.clear()
    monkeypatch.setattr(sampler, "_advance", counted)
    sampler.sample(request, seeds)
    assert launches == [0] * 8
    assert len(replays) == 8


@pytest.mark.parametrize("half", [False, True])
def test_kernels_of_a_token(half: bool):
    """On a fake GPU: per layer 14 kernels, and 4 conversions in bfloat16, as many as version 0.1 with fused norms."""
    generator = tiny_llamagen()
    with fake_cuda() as device, torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=half):
        generator.to(device)
        if half:
            generator.network.requires_grad_(False)
            halve(generator.network.blocks)
        state = generator.start(tiny_request([0, 1]).to(device), Settings(guidance=2.5))
        generator.step(state, None)
        with Meter(device) as meter, meter.phase("token") as token:
            generator.step(state, torch.zeros(2, 1, dtype=torch.int64, device=device))
    assert token.kernels <= 2 * (18 if half else 14) + 20
