"""Estimate how a step scales over GPUs: `python benchmarks/scaling.py` prints the tables of docs/scaling.md.

The work of a step comes from `sfumato plan`, which runs it on fake tensors. The formulas are those of docs/scaling.md.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from sfumato.families.library import releases
from sfumato.recipes import TRAIN_RECIPES
from sfumato.training.plan import make_plan
from sfumato.training.train_config import TrainConfig

COUNTS = (1, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Figures of an H100 SXM in machines of eight."""

    flops: float = 989e12
    """peak of bf16 products, in FLOP/s"""
    share: float = 0.4
    """share of the peak that training reaches"""
    memory: float = 3.35e12
    """bandwidth of memory, in bytes/s"""
    launch: float = 5e-6
    """seconds to launch a kernel"""
    inside: float = 360e9
    """bandwidth of one GPU to the others of its machine (NVLink, 80 % of 450 GB/s), in bytes/s"""
    outside: float = 40e9
    """bandwidth of one GPU to other machines (400 Gb/s, 80 %), in bytes/s"""
    gpus: int = 8
    """GPUs of a machine"""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Work of a step. All figures are of the whole step, or of one image."""

    name: str
    parameters: float
    images: int
    """images of a step"""
    minibatch: int
    """images of an update"""
    micro_batch: int
    """images of a pass"""
    drawing: float
    """FLOP to draw, decode and score an image, with the reference's pass"""
    learning: float
    """FLOP of forward and backward passes of an image"""
    units: int
    """units that are drawn one after another"""
    kernels: float
    """kernels to draw a batch, if they are launched one by one"""
    cached: float = 0.0
    """bytes of keys and values that drawing reads for an image, over all units"""
    batch: int = 64
    """images drawn at once"""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds and bytes of a step on a number of GPUs."""

    gpus: int
    drawing: float
    learning: float
    exposed: float
    """seconds of communication that no computation hides"""
    sent: float
    """bytes that a GPU sends in a step"""

    @property
    def seconds(self) -> float:
        """Length of a step."""
        return self.drawing + self.learning + self.exposed


def estimate(work: Work, gpus: int, sharding: str, machine: Machine | None = None) -> Estimate:
    """Estimate a step; `sharding` is none, full or hybrid, as in `--sharding`."""
    machine = machine or Machine()
    rate, images = machine.flops * machine.share, work.images / gpus
    batches = -(-images // work.batch)
    weights = 2 * work.parameters  # bytes in bfloat16, which every unit reads once for a batch
    reading = (batches * work.units * weights + images * work.cached) / machine.memory
    drawing = max(images * work.drawing / rate, reading, batches * work.kernels * machine.launch)
    updates, mine = work.images / work.minibatch, work.minibatch / gpus
    learning = updates * mine * work.learning / rate
    outside = machine.outside if gpus > machine.gpus else machine.inside
    across, machines = (gpus - 1) / gpus, gpus / machine.gpus
    whole = 4 * work.parameters  # bytes of the gradients
    if gpus == 1:
        return Estimate(gpus=1, drawing=drawing, learning=learning, exposed=0.0, sent=0.0)
    passes = -(-mine // work.micro_batch)
    if sharding == "none":
        sent, seconds = 2 * across * whole, 2 * across * whole / outside
        hidden = 2 / 3 * learning / updates / passes  # gradients are summed during the last backward pass
    elif sharding == "full":
        sent = passes * across * (2 * weights + whole)
        seconds, hidden = sent / outside, learning / updates
    else:
        local = (machine.gpus - 1) / machine.gpus
        inner, outer = passes * local * (2 * weights + whole), 2 * (machines - 1) / machines * whole / machine.gpus
        sent, hidden = inner + outer, learning / updates
        seconds = inner / machine.inside + outer / machine.outside
    gathered = 0.0 if sharding == "none" else across * weights
    exposed = updates * max(0.0, seconds - hidden) + gathered / (machine.inside if sharding == "hybrid" else outside)
    return Estimate(gpus=gpus, drawing=drawing, learning=learning, exposed=exposed, sent=updates * sent + gathered)


def work_of(name: str, config: TrainConfig) -> Work:
    """Return the work of a recipe, from its plan."""
    plan = make_plan(config)
    phases, batch = plan.phases, config.sample_batch_size
    drawn = sum(phases[phase].flops for phase in ("sample", "decode", "reference") if phase in phases) / batch
    family, release = releases()[config.model]
    with torch.device("meta"):
        generator: Any = family.build(release.shape)
    shape, units = generator.config, len(generator.units)
    one_by_one = len(set(generator.units)) == 1
    rows = 2 if config.policy.guidance else 1
    keys = sum(sum(generator.units[:unit]) for unit in range(units))  # that all units read
    return Work(
        name=name,
        parameters=plan.static["weights"] / 4,
        images=config.images_per_step,
        minibatch=config.minibatch_size,
        micro_batch=config.engine.micro_batch_size,
        drawing=drawn,
        learning=phases["update"].flops / config.minibatch_size,
        units=units,
        kernels=units if one_by_one else phases["sample"].kernels,  # with CUDA graphs, a launch for each token
        cached=4.0 * rows * shape.depth * shape.width * keys,  # keys and values in bfloat16
        batch=batch,
    )


def infinity() -> Work:
    """Return the work of Infinity-8B at 512 pixels with guidance, by formula: it draws 2521 tokens in 10 scales.

    A pass takes 2 FLOP for each weight and token, and 4 · depth · width for each pair of a token and a key it sees,
    about half of all pairs.
    """
    parameters, depth, width, tokens = 8.2e9, 40, 3584, 2521
    forward = 2 * (2 * parameters * tokens + 4 * depth * width * tokens**2 / 2)  # two rows with guidance
    return Work(
        name="Infinity-8B 512",
        parameters=parameters,
        images=512,
        minibatch=64,
        micro_batch=1,
        drawing=2 * forward,
        learning=4 * forward,  # with recomputation
        units=10,
        kernels=20 * depth * 10,
        batch=16,
    )


def table(work: Work, sharding: str) -> str:
    """Return a Markdown table of a step on several numbers of GPUs."""
    rows = [f"{work.name}, `--sharding {sharding}`", ""]
    rows += ["| GPUs | drawing s | update s | exposed s | GB sent | kFLOP/byte | images/s | efficiency |"]
    rows += ["|---|---|---|---|---|---|---|---|"]
    single = estimate(work, 1, "none").seconds
    for gpus in COUNTS:
        if work.minibatch % gpus:
            rows.append(f"| {gpus} | a minibatch has {work.minibatch} images |||||||")
            continue
        e = estimate(work, gpus, sharding)
        flop = work.images / gpus * (work.drawing + work.learning)
        density = f"{flop / e.sent / 1e3:.0f}" if e.sent else "-"
        rows.append(
            f"| {gpus} | {e.drawing:.2f} | {e.learning:.2f} | {e.exposed:.2f} | {e.sent / 1e9:.0f} | {density} | "
            f"{work.images / e.seconds:.0f} | {single / e.seconds / gpus:.0%} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Print all tables."""
    var = TRAIN_RECIPES["var-d30-bright"].build()
    xl = TRAIN_RECIPES["llamagen-xl-384"].build()
    for work, layouts in (
        (work_of("VAR-d30", var), ("none", "hybrid")),
        (work_of("VAR-d30, minibatches of 128", replace(var, minibatch_size=128)), ("none", "hybrid")),
        (work_of("LlamaGen-XL 384", xl), ("none",)),
        (infinity(), ("full", "hybrid")),
    ):
        for sharding in layouts:
            print(table(work, sharding), end="\n\n")


if __name__ == "__main__":
    main()
