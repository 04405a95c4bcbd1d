"""Time each phase of a GRPO step: sample, decode, reward, reference, update.

    python benchmarks/phases.py emoji-var --batch 32
    python benchmarks/phases.py var-d16 --batch 4        # random weights: speed does not depend on them

Prints a Markdown table: seconds, floating-point operations (matrix multiplications, convolutions and attention, as they
are carried out), and the share of the machine's matrix-multiply peak; then peak memory. The peak is the best of what is
measured before each phase, so that a moment's disturbance does not flatter the shares. Seconds are told on the way.
"""

import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from sfumato.data.classes import ClassSampler
from sfumato.engine.memory import keep_freed_memory
from sfumato.engine.process import join
from sfumato.families.library import RELEASES, imagenet_class_names, load
from sfumato.families.var.generator import VAR
from sfumato.families.var.network import VARConfig
from sfumato.families.var.tokenizer import MultiScaleVQVAE, VQVAEConfig
from sfumato.objectives.advantages import group_advantages
from sfumato.policy import Policy
from sfumato.rewards import build_reward
from sfumato.training.config import GRPOConfig
from sfumato.training.grpo import GRPO, Experience


@dataclass(frozen=True)
class Arguments:
    """What to time."""

    model: tyro.conf.Positional[str] = "emoji-var"
    """a bundled generator, or a released one with random weights"""
    batch: int = 32
    """images"""
    repeats: int = 3
    """runs of each phase after a warm-up; the median counts"""
    guidance: float = 0.0
    """classifier-free guidance"""
    device: str = "auto"
    """auto, cpu or cuda"""
    precision: Annotated[str, tyro.conf.arg(help="fp32 or bf16")] = "fp32"


def random_release(name: str) -> VAR:
    """A released VAR with random weights."""
    release = RELEASES[name]
    if not release.is_var:
        raise ValueError(f"model: {name} is no VAR; benchmarks/decode.py times the decoding of LlamaGen")
    with torch.no_grad():
        tokenizer = MultiScaleVQVAE(VQVAEConfig(scales=release.scales))
        config = VARConfig(
            depth=release.depth,
            width=64 * release.depth,
            num_heads=release.depth,
            shared_adaln=release.depth == 36,
        )
        return VAR(config, tokenizer, imagenet_class_names()).eval()


def seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median wall-clock seconds; the caller has warmed up."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Best floating-point operations a second of square matrix products of a few sizes."""
    best = 0.0
    for size in (1024, 2048, 4096) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        torch.mm(a, b)
        best = max(best, 2 * size**3 / seconds(lambda a=a, b=b: a @ b, 5, device))
    return best


def attention_operations(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    """Operations of the two products of attention (B, heads, T, d) with (B, heads, N, d)."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def attention_gradient_operations(grad: torch.Size, *shapes: torch.Size, **__: object) -> int:
    """Two products for every product of the forward pass, and one more that is computed again."""
    return attention_operations(*shapes[:3]) * 5 // 2


# Torch's counter knows attention on CUDA alone.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_operations,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_gradient_operations,
}


def operations(run: Callable[[], object]) -> float:
    """Floating-point operations of matrix products, convolutions and attention, counted in one run (the warm-up)."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        run()
    return counter.get_total_flops()


def main(arguments: Arguments) -> None:
    """Time the phases and print the table."""
    keep_freed_memory()  # as the command does
    workers = join(arguments.device)
    device = workers.device
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    if arguments.model in RELEASES:
        policy = Policy(random_release(arguments.model).to(device), temperature=0.7)
    else:
        policy = load(arguments.model, temperature=0.7, device=device)
    policy.generator.guidance = arguments.guidance
    batch = arguments.batch
    config = GRPOConfig(
        model=arguments.model,
        reward={"brightness": 1.0},
        labels_per_step=1,
        group_size=batch,
        minibatch_size=batch,
        micro_batch_size=batch,
        sample_batch_size=batch,
        precision=arguments.precision,  # pyright: ignore[reportArgumentType]
    )
    sampler = ClassSampler(policy.generator.class_names)
    algorithm = GRPO(config, policy, sampler, build_reward(config.reward), workers)
    conditions = sampler.next(1, algorithm.rng).repeat(batch).to(device)
    seeds = torch.arange(batch)

    @torch.no_grad()
    def phase(run: Callable[[], object]) -> object:
        with algorithm.autocast():
            return run()

    rollout = policy.sample(conditions, seeds)
    images = policy.decode(rollout.tokens).float()
    rewards, _ = algorithm.reward(images, conditions)
    advantages, _ = group_advantages(rewards, batch)
    with torch.no_grad():
        reference = algorithm.reference.log_probs(conditions, rollout.tokens)
    experience = Experience(rollout=rollout, advantages=advantages, reference_log_probs=reference)
    phases: dict[str, Callable[[], object]] = {
        "sample": lambda: phase(lambda: policy.sample(conditions, seeds)),
        "decode": lambda: phase(lambda: policy.decode(rollout.tokens)),
        "reward": lambda: algorithm.reward(images, conditions),
        "reference": lambda: phase(lambda: algorithm.reference.log_probs(conditions, rollout.tokens)),
        "update": lambda: algorithm.update(experience, torch.arange(batch)),
    }
    measured, peak = {}, 0.0
    for name, run in phases.items():
        work = operations(run)
        run()  # the second run still faults in memory
        peak = max(peak, matmul_peak(device, dtype))
        measured[name] = (seconds(run, arguments.repeats, device), work)
        print(f"{name}: {measured[name][0]:.3f} s", file=sys.stderr)
    print(f"{arguments.model}, batch {batch}, guidance {arguments.guidance}, {arguments.precision}, {device}: ", end="")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, ", end="")
    print(f"matrix-multiply peak {peak / 1e9:.0f} GFLOP/s\n")
    print("| phase | seconds | images/s | GFLOP | GFLOP/s | share of peak |\n|---|---|---|---|---|---|")
    for name, (took, work) in measured.items():
        rate = work / took
        share = f"{rate / 1e9:.0f} | {rate / peak:.0%}" if work else " | "
        print(f"| {name} | {took:.3f} | {batch / took:.1f} | {work / 1e9:.1f} | {share} |")
    if device.type == "cuda":
        print(f"\nPeak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU")
    else:
        print(f"\nPeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB (whole process)")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
