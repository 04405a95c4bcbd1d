"""What only a real GPU can show: its numbers are those of the CPU, and its own ways to compute change nothing.

Arithmetic is float32 without TF32 unless a test says otherwise. Without a GPU, all of these tests are skipped.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from tiny import Trainer, tiny_captions, tiny_config, tiny_llamagen, tiny_request, tiny_var
from torch import Tensor

from sfumato.engine.process import Process, find_device
from sfumato.policy import Policy
from sfumato.request import Request
from sfumato.rewards import build_reward
from sfumato.settings import Settings
from sfumato.training.plan import StandIns
from sfumato.training.train import build_engine, build_rollouts

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
SEEDS = torch.arange(4)
CLASSES = tiny_request([0, 1, 1, 3])
CAPTIONS = tiny_captions([2, 5, 1], rows=[0, 1, 1, 2])
MODELS = {
    "var": (tiny_var, CLASSES),
    "classes": (tiny_llamagen, CLASSES),
    "captions": (partial(tiny_llamagen, text=True), CAPTIONS),
    "interval": (partial(tiny_llamagen, guidance_interval=2), CLASSES),
}
"""Generators by name, with requests of four images."""
each_model = pytest.mark.parametrize(("build", "request_"), MODELS.values(), ids=MODELS)
next_token = pytest.mark.parametrize(("build", "request_"), list(MODELS.values())[1:], ids=list(MODELS)[1:])
each_guidance = pytest.mark.parametrize("guidance", [None, 2.0])
Build = Callable[[], Any]


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """Turn TF32 off."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def trainer_on(device: torch.device, build: Build, **changes: Any) -> Trainer:
    """Return a run of four images per step on a device."""
    config = tiny_config("tiny", group_size=2, **changes)
    process, generator = Process(rank=0, count=1, device=device), build().to(device)
    engine = build_engine(config, Policy(generator, config.policy), process)
    sampler, reward = StandIns(generator, config), build_reward(config.reward)
    rollouts = build_rollouts(config, engine, process, sampler, reward)
    return Trainer(config, engine, rollouts, config.objective, torch.Generator().manual_seed(0))


def train(trainer: Trainer, request: Request, updates: int = 1) -> tuple[dict[str, float], Tensor]:
    """Make updates on batches of their own; return the figures of the last one, and all weights on the CPU."""
    figures = {}
    for number in range(updates):
        batch, credit = trainer.collect(request.to(trainer.engine.process.device), SEEDS + 4 * number)
        figures = trainer.update(batch, credit, torch.arange(4))
    return figures, torch.cat([tensor.flatten().float().cpu() for tensor in trainer.engine.weights().values()])


def check_same_update(one: Trainer, other: Trainer, request: Request) -> None:
    """Check that two runs learn the same: figures to 0.1 %, and changes of weights to 3 % of their norm.

    AdamW divides a gradient by its size, so rounding changes the few weights whose gradient is nearly zero.
    """
    before = torch.cat([tensor.flatten().float().cpu() for tensor in one.engine.weights().values()])
    (figures, after), (others, other_after) = train(one, request), train(other, request)
    for name in ("kl", "ratio_mean", "grad_norm"):
        assert others[name] == pytest.approx(figures[name], rel=1e-3, abs=1e-5), name
    assert (after - before).norm() > 1e-2
    assert (other_after - after).norm() < 0.03 * (after - before).norm()


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_names_of_the_first_gpu(name: str):
    assert find_device(name) == GPU


@each_guidance
@each_model
def test_the_numbers_are_those_of_the_cpu(build: Build, request_: Request, guidance: float | None):
    settings = Settings(guidance=guidance, temperature=0.7)
    expected, policy = Policy(build(), settings), Policy(build().to(GPU), settings)
    drawn, request = policy.sample(request_.to(GPU), SEEDS), request_.to(GPU)
    wanted = expected.sample(request_, SEEDS)
    assert torch.equal(drawn.tokens.cpu(), wanted.tokens)
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-4)
    close(drawn.log_probs.cpu(), wanted.log_probs)
    close(drawn.entropy.cpu(), wanted.entropy)
    close(policy.log_probs(request, drawn.tokens).detach().cpu(), wanted.log_probs)
    close(policy.decode(drawn.tokens).cpu(), expected.decode(wanted.tokens))


@each_model
def test_updates_are_those_of_the_cpu(build: Build, request_: Request):
    check_same_update(trainer_on(CPU, build, guidance=2.0), trainer_on(GPU, build, guidance=2.0), request_)


@each_guidance
@each_model
def test_rounding_in_bfloat16(build: Build, request_: Request, guidance: float | None):
    """Drawing and scoring differ by rounding alone, though it moves both away from float32."""
    full, half = (trainer_on(GPU, build, precision=precision, guidance=guidance) for precision in ("fp32", "bf16"))
    batch, credit = half.collect(request_.to(GPU))
    with torch.no_grad():
        exact = full.policy.log_probs(batch.rollout.request, batch.rollout.tokens)
    assert (batch.rollout.log_probs - exact).abs().max() > 1e-4
    figures = half.update(batch, credit, torch.arange(4))
    assert figures["mismatch/mean"] < 0.02
    assert figures["mismatch/max"] < 0.1


@pytest.mark.filterwarnings("ignore")  # of the compiler and its advice about TF32
@pytest.mark.parametrize("model", ["var", "classes"])  # each takes the compiler about half a minute
def test_compiled_blocks(model: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # checks of shapes cannot be traced
    build, request = MODELS[model]
    plain, compiled = (trainer_on(GPU, build, guidance=2.0, compile=compile_) for compile_ in (False, True))
    check_same_update(plain, compiled, request)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@each_guidance
@next_token
def test_cuda_graphs_draw_the_same_tokens(build: Build, request_: Request, guidance: float | None, precision: str):
    """The graphs are recorded in the first step, and read the weights of the second one."""
    eager, graphs = (
        trainer_on(GPU, build, guidance=guidance, precision=precision, cuda_graphs=on) for on in (False, True)
    )
    weights = eager.engine.policy.generator.network.state_dict()
    drawn = []
    for number in range(2):
        request = request_.to(GPU)[torch.arange(4).roll(number)]
        batches = [trainer.collect(request, SEEDS + 4 * number) for trainer in (eager, graphs)]
        one, other = (batch.rollout for batch, _ in batches)
        assert torch.equal(one.tokens, other.tokens)
        torch.testing.assert_close(one.log_probs, other.log_probs, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.entropy, other.entropy, rtol=0, atol=1e-5)
        drawn.append(one.tokens)
        eager.update(*batches[0], torch.arange(4))
        graphs.engine.policy.generator.network.load_state_dict(weights)
    assert not torch.equal(*drawn)


@each_model
def test_the_cpu_does_not_wait_between_the_units(build: Build, request_: Request):
    generator = build().to(GPU)
    policy, step, request = Policy(generator, Settings(guidance=2.0)), generator.step, request_.to(GPU)
    policy.sample(request, SEEDS)  # chooses kernels
    with ExitStack() as loop:
        loop.callback(torch.cuda.set_sync_debug_mode, "default")

        def strict(state: Any, drawn: Tensor | None) -> Tensor:
            torch.cuda.set_sync_debug_mode("error")
            return step(state, drawn)

        generator.step = strict
        policy.sample(request, SEEDS)


@each_model
def test_rewards_beside_drawing(build: Build, request_: Request):
    """Scoring on a stream of its own, while the next images are drawn, gives the same scores."""
    apart, beside = (trainer_on(GPU, build, sample_batch_size=1, overlap_rewards=overlap) for overlap in (False, True))
    (batch, _), (other, _) = (trainer.collect(request_.to(GPU)) for trainer in (apart, beside))
    torch.testing.assert_close(batch.rewards, other.rewards, rtol=0, atol=1e-6)
    assert batch.reference_log_probs is not None
    torch.testing.assert_close(batch.reference_log_probs, other.reference_log_probs, rtol=0, atol=1e-5)


@each_model
def test_a_checkpoint_continues_the_run(build: Build, request_: Request, tmp_path: Path):
    first, second = trainer_on(GPU, build), trainer_on(GPU, build)
    train(first, request_, updates=2)
    first.engine.save(tmp_path)()
    second.engine.load(tmp_path)
    for name, tensor in first.engine.weights().items():
        assert torch.equal(tensor, second.engine.weights()[name]), name
    check_same_update(first, second, request_)
