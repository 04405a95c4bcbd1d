"""Plan a run: measure the memory and the work of its phases on a fake GPU, before anything is loaded.

The model, the engine and the rollouts are built as for a run, but on the tensors of `fake_cuda`, which take no memory.
Each phase then runs once, with the batch sizes of one process.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.capabilities import HasParts
from sfumato.data.classes import ClassSampler
from sfumato.engine.engine_config import EngineConfig
from sfumato.engine.fake_cuda import fake_cuda
from sfumato.engine.meter import Meter, Phase
from sfumato.engine.process import Process
from sfumato.engine.timing import PhaseTimer
from sfumato.errors import UserError
from sfumato.families.folder import card_from, read_config
from sfumato.families.library import find_family, locate, releases
from sfumato.plugins import is_path
from sfumato.policy import Generator, Policy
from sfumato.request import Request, Words
from sfumato.rewards import build_reward
from sfumato.rollout import Fork, Rollout
from sfumato.text.reader import ReadsCaptions
from sfumato.training.train_config import TrainConfig

GIB = 2**30
CONTEXT = 1.5 * GIB
"""Memory outside torch's tensors: the CUDA context with its kernels, and the workspaces of cuBLAS and cuDNN."""
NCCL = 1.0 * GIB
"""Buffers for the communication of several processes."""
FRAGMENTS = 0.05
"""Share of the peak that is lost between tensors in torch's allocator."""
MACHINE = 8
"""Number of GPUs that a machine has, for sharding within machines."""
MOMENTS_8BIT = 2 + 2 * 4 / 256
"""Bytes of the two moments of a parameter in `adamw8bit`: a byte each, and a scale for every 256."""
EXECUTED = 12
"""Number of units of each part that are drawn for a family that draws many equal ones."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Memory and work of one process of a run."""

    static: dict[str, int]
    """bytes of what lasts, by name: weights, tokenizer, reference (with all other copies of the weights: averages, and
    one that draws), optimizer; and gradients, which last from a minibatch's first micro-batch to its end"""
    phases: dict[str, Phase]
    """measurements of sample, decode and reference for the images drawn at once, and of update for one minibatch"""
    processes: int
    """number of processes, each on its own GPU"""
    reward_memory: float
    """bytes that reward models take on the GPU"""

    @property
    def peak(self) -> int:
        """Largest number of bytes of tensors in any phase."""
        return max(phase.peak for phase in self.phases.values())

    def needed(self, phase: str) -> float:
        """Return the bytes that a GPU needs for a phase: tensors, what is lost between them, context, reward models."""
        peak = self.phases[phase].peak * (1 + FRAGMENTS)
        return peak + CONTEXT + (NCCL if self.processes > 1 else 0) + self.reward_memory

    def too_large(self, memory: float) -> list[str]:
        """Return the phases that need more than this number of bytes."""
        return [name for name in self.phases if self.needed(name) > memory]


def make_plan(config: TrainConfig, processes: int = 1, reward_memory: float = 0.0) -> Plan:
    """Measure one process of a run on a fake GPU. Nothing is loaded but the `config.json` of a model folder.

    Reward models are not loaded; a pixel reward stands for them. Captions have the maximum length, so neither prompts
    nor a text encoder are needed. Where numbers determine sizes, the largest are taken: all conditions of a batch are
    different. The optimizer's state is there from the beginning, as in all steps but the first.

    Drawing with CUDA graphs counts the kernels in them. If a family draws many equal units (a token each) without
    graphs, only `EXECUTED` of each part are drawn, at even distances from first to last; see `Excerpt`. Kernels and
    floating-point operations of the others lie on a straight line between their neighbors, which is exact where a unit
    adds the same work as the one before. Memory needs no estimate: the caches are allocated for all units at once, and
    the last unit is drawn.

    Args:
        config: the run.
        processes: number of processes that share the images of a step and, if the engine shards, what `divide` says.
        reward_memory: bytes that reward models take on the GPU.

    Raises:
        UserError: a setting is wrong, or there is no such model.
    """
    config.validate(processes)
    return Plan(
        processes=processes, reward_memory=reward_memory, **measure(config, processes, drawing=True, updating=True)
    )


def measure(config: TrainConfig, processes: int, *, drawing: bool, updating: bool) -> dict[str, Any]:
    """Measure drawing, the update, or both on a fake GPU; returns `static` and `phases` of a plan."""
    meter = Meter(torch.device("cuda"))
    with fake_cuda() as device, meter:
        return run_phases(config, build_unloaded(config.model), meter, device, processes, drawing, updating)


def run_phases(
    config: TrainConfig,
    generator: Generator,
    meter: Meter,
    device: torch.device,
    processes: int,
    drawing: bool,
    updating: bool,
) -> dict[str, Any]:
    """Run phases of a step with a generator on this device, measured by an active meter that counts the generator."""
    from sfumato.training.train import build_engine, build_rollouts  # here, because `train` calls `require_fit`

    # Other threads do not see the fake GPU, and compiled blocks have no operators to measure. Sharded policies draw
    # without CUDA graphs.
    graphs = config.engine.cuda_graphs and holders_of(config, processes) == 1
    small = config.engine.optimizer == "adamw8bit"
    engine_config = replace(config.engine, compile=False, cuda_graphs=graphs, optimizer="adamw")
    config = replace(config, overlap_rewards=False, engine=engine_config)
    loaded, before = nbytes(generator.network), meter.live
    process = Process(rank=0, count=1, device=device)
    engine = build_engine(config, Policy(generator, config.policy), process)
    # The engine may add adapters to the network, and convert what it freezes.
    static = {"weights": nbytes(generator.network), "tokenizer": nbytes(generator.tokenizer)}
    static["reference"] = meter.live - before - (static["weights"] - loaded)
    parameters = engine.policy.generator.network.parameters()
    static["gradients"] = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    units = generator.units
    if len(units) > EXECUTED and len(set(units)) == 1:
        engine.policy.sample = Excerpt(engine.policy, meter)  # pyright: ignore[reportAttributeAccessIssue]
    sampler = StandIns(generator, config)
    rollouts = build_rollouts(config, engine, process, sampler, build_reward({"brightness": 1.0}))
    count = min(config.sample_batch_size, config.drawn_per_step // processes) if drawing else 1
    tree = rollouts.fork.continuations if rollouts.fork else 1
    count = -(-count // tree) * tree
    request = engine.policy.request(sampler.images(count)).to(device)
    drawn = rollouts.collect(request, torch.arange(count), MeterTimer(device, meter))
    batch = drawn[torch.arange(config.images_per_step) % count]  # as large as that of a step

    def update(images: int) -> None:
        credit = replace(config.objective.credit(batch), taught=None)  # on a fake GPU, no image teaches anything
        engine.update(config.objective.loss, batch, credit, [torch.arange(images)], config.engine.learning_rate)

    before = meter.live
    update(1)
    moments = meter.live - before
    saved = int(moments * (1 - MOMENTS_8BIT / 8)) if small else 0
    static["optimizer"] = moments - saved
    for phase in meter.phases.values():  # the optimizer's state is there from the second step on
        phase.peak += static["optimizer"]
    if updating:
        measure_update(meter, update, config.engine.micro_batch_size, config.minibatch_size // processes)
        meter.phases["update"].peak -= saved
    names = [*(("sample", "decode", "reference") if drawing else ()), *(("update",) if updating else ())]
    phases = {name: meter.phases[name] for name in names if name in meter.phases and meter.phases[name].kernels}
    blocks = find_family(generator.card.family).blocks(generator.network)
    divide(static, phases, config, processes, 2 * max(map(nbytes, blocks), default=static["weights"]))
    return {"static": static, "phases": phases}


def holders_of(config: TrainConfig, processes: int) -> int:
    """Return the number of processes among which the engine divides parameters."""
    return {"none": 1, "full": processes, "hybrid": min(processes, MACHINE)}[config.engine.sharding]


def divide(
    static: dict[str, int], phases: Mapping[str, Phase], config: TrainConfig, processes: int, in_use: int
) -> None:
    """Take away, in place, what other processes hold if the engine shards: all but a part of everything but the
    tokenizer.

    A process also holds the parameters that it has gathered: the blocks in use, or all while it draws images
    (`gather_for_rollouts`). They are gathered in the precision of the arithmetic.

    Args:
        static: bytes of what lasts, by name, as if nothing were sharded.
        phases: measurements, as if nothing were sharded.
        config: the run.
        processes: number of processes.
        in_use: bytes of the blocks that are gathered at the same time: the one that computes, and the next.
    """
    engine, holders = config.engine, holders_of(config, processes)
    if holders == 1:
        return
    others = {name: size - size // holders for name, size in static.items() if name != "tokenizer"}
    half = 2 if engine.precision == "bf16" else 1
    # The first micro-batch has its peak before it has gradients.
    has_gradients = config.minibatch_size // processes > engine.micro_batch_size
    for name, phase in phases.items():
        drops = [n for n in others if n != "gradients" or (name == "update" and has_gradients)]
        gathered = static["weights"] if name == "sample" and engine.gather_for_rollouts else in_use
        phase.peak += gathered // half - sum(others[n] for n in drops)
    for name, size in others.items():
        static[name] -= size


def measure_update(meter: Meter, update: Callable[[int], None], size: int, images: int) -> None:
    """Measure the phase `update` on so many images, in micro-batches of this size.

    Of more than three micro-batches, only two are run, and the work of the second is multiplied: they are all alike.
    The second has the highest peak, because the gradients of the first are there.
    """
    number, rest = images // size, images % size
    if number <= 3:
        with meter.phase("update"):
            update(images)
        return
    with meter.phase("one micro-batch") as one:
        update(rest + size)
    with meter.phase("update") as two:
        update(rest + 2 * size)
    two.kernels += (number - 2) * (two.kernels - one.kernels)
    two.flops += (number - 2) * (two.flops - one.flops)


def build_unloaded(name: str) -> Generator:
    """Build the generator that `load_generator` would load, with initial weights, on the fake GPU.

    Raises:
        UserError: there is no model of this name.
    """
    published = releases()
    with torch.device("cuda"):
        if name in published:
            family, release = published[name]
            generator, card = family.build(release.shape), release.card(family.name)
        elif is_path(name):
            generator = find_family(name).build({})
            card = replace(generator.card, family=name)
        else:
            config = read_config(locate(name))
            generator, card = find_family(config["family"]).build(config), card_from(config)
    generator.card = card
    if isinstance(generator, nn.Module):
        generator.eval()
    if isinstance(generator, ReadsCaptions):
        generator.reader.use_zeros()
    return generator.to("cuda")


def nbytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    return sum(x.numel() * x.element_size() for x in module.state_dict().values())


class StandIns:
    """A sampler of classes or, for a model that reads captions, of captions without a file."""

    def __init__(self, generator: Generator, config: TrainConfig):
        self.group_size, self.groups = config.candidates or config.group_size, config.groups_per_step
        names = generator.card.class_names
        self.classes = ClassSampler(names, config.classes, config.caption_template) if names else None

    def images(self, count: int) -> Words:
        """Return words for the first `count` images of a step, group after group."""
        return self.spread(self.groups)[torch.arange(count) // self.group_size]

    def next(self, count: int, rng: torch.Generator) -> Words:
        """Return words for `count` groups."""
        return self.spread(count)

    def spread(self, count: int) -> Words:
        """Return words for `count` groups."""
        if self.classes is not None:
            return self.classes.spread(count)
        return Words(names=tuple(f"caption {number}" for number in range(count)))


class MeterTimer(PhaseTimer):
    """A timer that measures phases with a meter instead."""

    def __init__(self, device: torch.device, meter: Meter):
        super().__init__(device)
        self.meter = meter

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        with self.meter.phase(phase):
            yield


class Excerpt:
    """Draws the units at some positions, as if those between had been drawn too.

    A family counts units in its decoding state, with numbers that grow by the same amount at every unit of a part:
    those of the next position, and the lengths of caches. They are increased by as many units as are left out. Anything
    else in the state is tensors, whose numbers do not matter.
    """

    def __init__(self, policy: Policy, meter: Meter):
        self.policy, self.meter, generator = policy, meter, policy.generator
        self.places: list[int] = []  # of the units in their part
        self.positions: list[int] = []
        first = 0
        for count in generator.part_units if isinstance(generator, HasParts) else (len(generator.units),):
            # The growth is measured at the units 1 and 2. The work of the last unit ends with the drawing itself, so
            # that of the last but one is measured too.
            even = {round(2 + (count - 4) * number / (EXECUTED - 5)) for number in range(EXECUTED - 4)}
            places = sorted({0, 1, 2, *even, count - 2, count - 1} & set(range(count)))
            self.places += places
            self.positions += [first + place for place in places]
            first += count

    def __call__(self, request: Request, seeds: Tensor, fork: Fork | None = None, count: int | None = None) -> Rollout:
        """Draw like `Policy.sample`, but without sharing units. The result has the full length; it repeats what was
        drawn first."""
        policy, positions = self.policy, self.positions
        generator, settings = policy.generator, policy.settings
        lists = {name: value for name, value in vars(settings).items() if isinstance(value, tuple)}
        chosen = replace(settings, **{name: tuple(value[p] for p in positions) for name, value in lists.items()})
        marks: list[tuple[int, int]] = []
        seen: list[list[int]] = []

        def step(state: Any, drawn: Tensor | None) -> Tensor:
            number = len(marks)
            marks.append(self.meter.counts)
            if self.places[number] > 2:
                growth = [after - before for before, after in zip(*seen, strict=True)]
                skipped = positions[number] - positions[number - 1] - 1
                for (holder, key), amount in zip(counters(state), growth, strict=True):
                    holder[key] += skipped * amount
            logits = generator.step(state, drawn)
            if self.places[number] == 1:
                seen.clear()
            if self.places[number] in (1, 2):
                seen.append([holder[key] for holder, key in counters(state)])
            return logits

        excerpt: Any = copy.copy(generator)
        excerpt.units = tuple(generator.units[position] for position in positions)
        excerpt.start = lambda inputs, _: generator.start(inputs, settings)
        excerpt.step, excerpt.parts = step, lambda tokens: {}
        short = Policy(excerpt, chosen).sample(request, seeds)
        costs = [(k2 - k1, f2 - f1) for (k1, f1), (k2, f2) in pairwise(marks)]
        for place in range(len(costs) - 1):
            skipped = positions[place + 1] - positions[place] - 1
            (kernels, flops), (more_kernels, more_flops) = costs[place], costs[place + 1]
            self.meter.count(skipped * (kernels + more_kernels) // 2, skipped * (flops + more_flops) // 2)
        shape = (len(seeds), sum(generator.units))
        tokens = short.tokens[:, :1].expand(shape)
        return Rollout(
            request=request,
            tokens=tokens,
            log_probs=short.log_probs[:, :1].expand(shape),
            entropy=short.entropy[:, :1].expand(shape),
            units=tuple(generator.units),
            parts=generator.parts(tokens) if isinstance(generator, HasParts) else {},
        )


def counters(x: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the place of every integer in a decoding state, as a container and a key."""
    if isinstance(x, Tensor | nn.Module):
        return
    container = vars(x) if hasattr(x, "__dict__") else x
    if not isinstance(container, dict | list):
        return
    for key, value in container.items() if isinstance(container, dict) else enumerate(container):
        if type(value) is int:
            yield container, key
        else:
            yield from counters(value)


def find_remedies(config: TrainConfig, plan: Plan, memory: float) -> list[dict[str, int]]:
    """Try settings that use less memory, and measure each. Drawing needs a smaller `sample_batch_size`; an update needs
    a smaller `micro_batch_size`, or activation checkpointing, or both.

    Returns:
        Changes of the config, by names of options, that make it fit: alternatives, each with the largest batches.
    """

    def fitting(options: Iterable[dict[str, int]], drawing: bool) -> list[dict[str, int]]:
        """Return the first of these changes that fits, if any does."""
        for option in options:
            measured = measure(changed(config, option), plan.processes, drawing=drawing, updating=not drawing)
            if not replace(plan, **measured).too_large(memory):
                return [option]
        return []

    large = plan.too_large(memory)
    draws, ways = [{}], [{}]
    if set(large) - {"update"}:
        draws = fitting(({"sample_batch_size": size} for size in halves(config.sample_batch_size)), drawing=True)
    if draws and "update" in large:
        smaller = [{"micro_batch_size": size} for size in halves(config.engine.micro_batch_size)]
        recomputed = {"activation_checkpointing": 1}
        ways = fitting(smaller, drawing=False)
        if config.engine.activation_checkpointing != 1:
            ways += fitting([recomputed], drawing=False)
        ways = ways or fitting(({**recomputed, **change} for change in smaller), drawing=False)
    return [{**draw, **way} for draw in draws for way in ways]


def halves(size: int) -> list[int]:
    """Return size / 2, size / 4, ... down to 1, rounded down."""
    return [size >> shift for shift in range(1, size.bit_length())]


def changed(config: TrainConfig, changes: dict[str, int]) -> TrainConfig:
    """Return the config with other options, which may belong to its engine."""
    names = {f.name for f in dataclasses.fields(EngineConfig)}
    engine = replace(config.engine, **{name: value for name, value in changes.items() if name in names})
    return replace(config, engine=engine, **{name: value for name, value in changes.items() if name not in names})


def require_fit(config: TrainConfig, process: Process) -> None:
    """Check that a run fits the memory of this process's GPU, before anything is loaded.

    Raises:
        UserError: it does not fit; the message names the options that make it fit.
    """
    memory = torch.cuda.get_device_properties(process.device).total_memory
    plan = make_plan(config, process.count)
    large = plan.too_large(memory)
    if large:
        worst = max(large, key=plan.needed)
        raise UserError(
            f"{'micro_batch_size' if worst == 'update' else 'sample_batch_size'}: the phase {worst!r} needs "
            f"{plan.needed(worst) / GIB:.1f} GiB of GPU memory, and there are {memory / GIB:.1f} GiB; "
            f"{advice(find_remedies(config, plan, memory))}"
        )


def advice(remedies: Sequence[dict[str, int]]) -> str:
    """Return the options that make a run fit, as one would type them."""
    if not remedies:
        return "no batch is small enough; train adapters (--lora-rank), or use more GPUs with --sharding full"
    ways = [" ".join(f"--{name.replace('_', '-')} {value}" for name, value in way.items()) for way in remedies]
    return f"give {', or '.join(ways)}"
