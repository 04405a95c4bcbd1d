"""Every family on a fake GPU: a step from drawing to the optimizer, with the devices and types that a GPU needs.

The devices of tensors, and the types that operators accept, are checked without a GPU. `fake_cuda` itself is tested at
the end.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import (
    tiny_captions,
    tiny_config,
    tiny_infinity,
    tiny_janus,
    tiny_llamagen,
    tiny_prompts,
    tiny_request,
    tiny_simplear,
    tiny_switti,
    tiny_var,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sfumato.engine.fake_cuda import FakeCuda, fake_cuda
from sfumato.engine.meter import READS, Meter
from sfumato.engine.process import Process
from sfumato.engine.timing import PhaseTimer
from sfumato.families import FAMILIES
from sfumato.policy import Policy
from sfumato.request import Request
from sfumato.rewards import build_reward
from sfumato.training.plan import MeterTimer, StandIns
from sfumato.training.train import build_engine, build_rollouts

CLASSES = tiny_request([0, 1, 1, 3])
CAPTIONS = tiny_captions([2, 5, 1], rows=[0, 1, 1, 2])
CASES: dict[str, list[tuple[Callable[[], Any], Request]]] = {
    "var": [(tiny_var, CLASSES)],
    "llamagen": [(tiny_llamagen, CLASSES), (lambda: tiny_llamagen(text=True), CAPTIONS)],
    "infinity": [(tiny_infinity, CAPTIONS)],
    "switti": [(tiny_switti, Policy(tiny_switti()).request(["a cat", "the old dog", "the old dog", "an elk"]))],
    "janus": [(tiny_janus, tiny_prompts([4, 7, 3], rows=[0, 1, 1, 2]))],
    "simplear": [(tiny_simplear, tiny_prompts([4, 7, 3, 5], rows=[0, 1, 1, 2], negative=True))],
}
"""Generators of each family, with requests for them."""
ALL = [pytest.param(*case, id=f"{family}{number}") for family in FAMILIES for number, case in enumerate(CASES[family])]


@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("build", "request_"), ALL)
def test_a_step(build: Callable[[], Any], request_: Request, precision: str, guidance: float | None):
    generator, config = build(), tiny_config("tiny", precision=precision, guidance=guidance, group_size=2)
    with fake_cuda() as device, Meter(device) as meter:
        generator = generator.to("cuda")
        engine = build_engine(config, Policy(generator, config.policy), Process(rank=0, count=1, device=device))
        sampler, reward = StandIns(generator, config), build_reward(config.reward)
        rollouts = build_rollouts(config, engine, engine.process, sampler, reward)
        before = {name: tensor.shape for name, tensor in generator.network.state_dict().items()}
        batch = rollouts.collect(request_.to(device), torch.arange(4), MeterTimer(device, meter))
        assert all(isinstance(x, FakeCuda) for x in (batch.rollout.tokens, batch.rewards, batch.reference_log_probs))
        assert batch.reference_log_probs is not None
        assert batch.rollout.log_probs.dtype == batch.reference_log_probs.dtype == torch.float32
        assert batch.rollout.tokens.shape == (4, sum(generator.units))
        figures = engine.update(config.objective.loss, batch, config.objective.credit(batch), [torch.arange(4)], 1e-3)
        assert {"grad_norm", "kl"} <= figures.keys()
        after = generator.network.state_dict()
        assert {name: tensor.shape for name, tensor in after.items()} == before
        assert {tensor.dtype for tensor in after.values() if tensor.is_floating_point()} == {torch.float32}
        assert all(p.device.type == "cuda" for p in generator.network.parameters())
    assert {"sample", "decode", "reward", "reference"} <= meter.phases.keys()


@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize(("build", "request_"), ALL)
def test_the_cpu_does_not_wait_between_the_units(build: Callable[[], Any], request_: Request, guidance: float | None):
    generator = build()
    with fake_cuda() as device, Meter(device) as meter, ExitStack() as loop:
        policy = Policy(generator.to("cuda"), tiny_config("tiny", guidance=guidance).policy)
        step = generator.step

        def strict(state: Any, drawn: Tensor | None) -> Tensor:
            if drawn is None:  # the first step
                loop.enter_context(meter.without_sync())
            return step(state, drawn)

        generator.step = strict
        policy.sample(request_.to(device), torch.arange(4))


def reads_of_a_step(build: Callable[[], Any], request_: Request, guidance: float | None) -> dict[str, list[str]]:
    """Return where the CPU waits for results of the GPU, by phase.

    Copies to the GPU, which wait too, are not counted: they bring the inputs of a phase.
    """
    generator, config = build(), tiny_config("tiny", guidance=guidance, group_size=2)
    with fake_cuda() as device, Meter(device) as meter:
        process = Process(rank=0, count=1, device=device)
        engine = build_engine(config, Policy(generator.to("cuda"), config.policy), process)
        reward = build_reward(config.reward)
        rollouts = build_rollouts(config, engine, process, StandIns(generator, config), reward)
        batch = rollouts.collect(request_.to(device), torch.arange(4), MeterTimer(device, meter))
        credit = config.objective.credit(batch)
        with meter.phase("update"):
            engine.update(config.objective.loss, batch, credit, [torch.arange(4)], 1e-3)
    return {name: [s for s in phase.syncs if s.startswith(READS)] for name, phase in meter.phases.items()}


@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize(("build", "request_"), ALL)
def test_each_phase_reads_at_most_once(build: Callable[[], Any], request_: Request, guidance: float | None):
    reads = reads_of_a_step(build, request_, guidance)
    del reads["update"]
    assert {name: places for name, places in reads.items() if len(places) > 1} == {}


def test_an_update_reads_at_most_once():
    assert len(reads_of_a_step(tiny_var, CLASSES, None)["update"]) <= 1


def test_checkpointing_and_optimizers():
    """Recomputed blocks compute in the precision of the forward pass, and the optimizer's state is on the GPU."""
    generator = tiny_llamagen()
    config = tiny_config("tiny", precision="bf16", activation_checkpointing=1, logit_positions=4, group_size=2)
    with fake_cuda() as device, Meter(device) as meter:
        process = Process(rank=0, count=1, device=device)
        engine = build_engine(config, Policy(generator.to("cuda"), config.policy), process)
        sampler, reward = StandIns(generator, config), build_reward(config.reward)
        rollouts = build_rollouts(config, engine, engine.process, sampler, reward)
        batch = rollouts.collect(CLASSES.to(device), torch.arange(4), PhaseTimer(device))
        credit = config.objective.credit(batch)
        before = meter.live
        engine.update(config.objective.loss, batch, credit, [torch.arange(4)], 1e-3)
        state = [x for values in engine.optimizer.state.values() for x in values.values() if x.ndim]
        numbers = sum(x.numel() for x in generator.network.parameters())
        assert all(isinstance(x, FakeCuda) for x in state)
        assert sum(x.numel() for x in state) == 2 * numbers
        assert meter.live - before >= 8 * numbers


def attention(dtype: torch.dtype, width: int, **options: Any) -> tuple[Tensor, dict[str, int]]:
    """Return the result of attention of 16 queries with as many keys, and the operators that computed it."""
    names: dict[str, int] = {}

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names[func.overloadpacket.__name__] = names.get(func.overloadpacket.__name__, 0) + 1
            return func(*args, **(kwargs or {}))

    query, key, value = (torch.ones(2, 4, 16, width, dtype=dtype, device="cuda") for _ in range(3))
    if options.pop("apart", False):
        query = torch.ones(2, 4, width, 16, dtype=dtype, device="cuda").mT
    if options.pop("masked", False):
        options["attn_mask"] = torch.ones(16, 16, dtype=torch.bool, device="cuda").tril()
    with Names():
        return F.scaled_dot_product_attention(query, key, value, **options), names


@pytest.mark.parametrize(
    ("dtype", "width", "options", "kernel"),
    [
        (torch.bfloat16, 64, {}, "flash"),
        (torch.bfloat16, 100, {"is_causal": True}, "flash"),
        (torch.bfloat16, 264, {}, "efficient"),
        (torch.bfloat16, 64, {"masked": True}, "efficient"),
        (torch.float32, 64, {}, "efficient"),
        (torch.float32, 100, {"masked": True}, "efficient"),
        (torch.bfloat16, 260, {}, ""),
        (torch.float32, 66, {}, ""),
        (torch.bfloat16, 64, {"apart": True}, ""),
    ],
)
def test_kernel_of_attention(dtype: torch.dtype, width: int, options: dict[str, Any], kernel: str):
    with fake_cuda():
        result, names = attention(dtype, width, **options)
    assert (result.shape, result.dtype) == ((2, 4, 16, width), dtype)
    kernels = {name for name in names if name.startswith("_scaled_dot_product")}
    assert kernels == ({f"_scaled_dot_product_{kernel}_attention"} if kernel else set())
    assert bool(names.get("bmm")) == (not kernel)


def test_all_scores_are_in_memory_without_a_kernel():
    with fake_cuda(), Meter(torch.device("cuda")) as meter, meter.phase("attention") as phase:
        attention(torch.float32, 66)
    scores = 2 * 4 * 16 * 16 * 4
    assert phase.peak >= 4 * 2 * 4 * 16 * 66 * 3 + scores


def test_autocast():
    layer = torch.nn.Linear(8, 8)
    with fake_cuda():
        layer = layer.to("cuda")
        x = torch.ones(2, 8, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
            assert F.layer_norm(layer(x), (8,)).dtype == torch.float32
            assert F.scaled_dot_product_attention(x[None], x[None], x[None]).dtype == torch.bfloat16
        assert layer(x).dtype == torch.float32
    assert not torch.is_autocast_enabled("cuda")


def test_two_devices_or_types_are_errors():
    with fake_cuda():
        x = torch.ones(2, 3, device="cuda")
        with pytest.raises(RuntimeError, match="same device"):
            _ = x + torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.cat([x, torch.ones(2, 3)])
        with pytest.raises(RuntimeError, match="should be the same"):
            _ = x @ torch.ones(3, 2, dtype=torch.bfloat16, device="cuda")
        with pytest.raises(RuntimeError, match="should be the same"):
            F.conv2d(x[None, None], torch.ones(1, 1, 1, 1, dtype=torch.bfloat16, device="cuda"))
        assert (x + torch.tensor(1.0)).device == x.device  # a single number may come from the CPU
        assert x[torch.tensor([1])].shape == (1, 3)


def test_everything_is_as_before_after_the_block():
    with fake_cuda():
        layer = copy.deepcopy(torch.nn.Linear(2, 2, device="cuda"))
        layer(torch.ones(1, 2, device="cuda")).sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.device.type == "cuda"
    assert not torch.cuda.is_available()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.empty(1, device="cuda")
    assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).shape == (1, 2)
