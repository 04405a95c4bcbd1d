"""Time each phase of a training step: sample, decode, reward, reference, update.

    python benchmarks/phases.py emoji-var --batch 32
    python benchmarks/phases.py var-d16 --batch 4        # random weights: speed does not depend on them

Prints a Markdown table with seconds, floating-point operations (matrix multiplications, convolutions and attention, as
executed) and the share of the machine's matrix-multiply peak; then the peak memory. The matrix-multiply peak is
measured before each phase and the best value counts, so a brief slowdown does not inflate the shares. The seconds are
also printed during the measurement.
"""

import platform
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import tyro
from measuring import build_generator, matmul_peak, seconds
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sfumato.engine.engine_config import EngineConfig
from sfumato.engine.memory import keep_freed_memory
from sfumato.engine.process import join
from sfumato.engine.timing import PhaseTimer
from sfumato.policy import Policy
from sfumato.rewards import build_reward
from sfumato.settings import Settings
from sfumato.training.requests import build_sampler
from sfumato.training.train import build_engine, build_rollouts
from sfumato.training.train_config import TrainConfig


@dataclass(frozen=True)
class Arguments:
    """Settings of the benchmark."""

    model: tyro.conf.Positional[str] = "emoji-var"
    """bundled generator, or released one with random weights"""
    batch: int = 32
    """number of images"""
    repeats: int = 3
    """number of runs of each phase after a warm-up; the median counts"""
    guidance: float = 0.0
    """scale of classifier-free guidance"""
    device: str = "auto"
    """auto, cpu or cuda"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """precision of the computation; bf16 uses autocast"""


def attention_operations(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    """Return the operations of the two products of attention between (B, heads, T, d) and (B, heads, N, d)."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def attention_gradient_operations(grad: torch.Size, *shapes: torch.Size, **__: object) -> int:
    """Return the operations of the backward pass: two products for every product of the forward pass, and one product
    that is recomputed."""
    return attention_operations(*shapes[:3]) * 5 // 2


# Torch's counter knows attention only on CUDA.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_operations,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_gradient_operations,
}


def operations(run: Callable[[], object]) -> float:
    """Count the floating-point operations of matrix products, convolutions and attention in one run (the warm-up)."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        run()
    return counter.get_total_flops()


def main(arguments: Arguments) -> None:
    """Time the phases and print the table."""
    keep_freed_memory()  # as the `sfumato` command does
    process = join(arguments.device)
    device = process.device
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    count = arguments.batch
    config = TrainConfig(
        model=arguments.model,
        policy=Settings(guidance=arguments.guidance, temperature=0.7),
        engine=EngineConfig(micro_batch_size=count, precision=arguments.precision),
        reward={"brightness": 1.0},
        groups_per_step=1,
        group_size=count,
        minibatch_size=count,
        sample_batch_size=count,
    )
    generator = build_generator(arguments.model, device)
    policy, objective = Policy(generator, config.policy), config.objective
    sampler, reward = build_sampler(config, generator, device), build_reward(config.reward)
    engine = build_engine(config, policy, process)
    words = sampler.next(1, torch.Generator().manual_seed(config.seed)).repeat(count)
    request, seeds = policy.request(words).to(device), torch.arange(count)

    @torch.no_grad()
    def phase(run: Callable[[], object]) -> object:
        with engine.autocast():
            return run()

    def ask_reference() -> Tensor:
        with engine.reference() as before:
            return before.log_probs(request, tokens)

    rollouts = build_rollouts(config, engine, process, sampler, reward)
    batch = rollouts.collect(request, seeds, PhaseTimer(device))
    credit, everything, rate = objective.credit(batch), [torch.arange(count)], config.engine.learning_rate
    tokens = batch.rollout.tokens
    images = policy.decode(tokens).float()
    phases: dict[str, Callable[[], object]] = {
        "sample": lambda: phase(lambda: policy.sample(request, seeds)),
        "decode": lambda: phase(lambda: policy.decode(tokens)),
        "reward": lambda: reward(images, words),
        "reference": lambda: phase(ask_reference),
        "update": lambda: engine.update(objective.loss, batch, credit, everything, rate),
    }
    measured, peak = {}, 0.0
    for name, run in phases.items():
        work = operations(run)
        run()  # the second run still causes page faults
        peak = max(peak, matmul_peak(device, dtype))
        measured[name] = (seconds(run, arguments.repeats, device), work)
        print(f"{name}: {measured[name][0]:.3f} s", file=sys.stderr)
    print(f"{arguments.model}, batch {count}, guidance {arguments.guidance}, {arguments.precision}, {device}: ", end="")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, ", end="")
    print(f"matrix-multiply peak {peak / 1e9:.0f} GFLOP/s\n")
    print("| phase | seconds | images/s | GFLOP | GFLOP/s | share of peak |\n|---|---|---|---|---|---|")
    for name, (took, work) in measured.items():
        rate = work / took
        share = f"{rate / 1e9:.0f} | {rate / peak:.0%}" if work else " | "
        print(f"| {name} | {took:.3f} | {count / took:.1f} | {work / 1e9:.1f} | {share} |")
    if device.type == "cuda":
        print(f"\nPeak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU")
    else:
        print(f"\nPeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB (whole process)")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
