"""Accept a GPU: run the tests that need one, then measure rounding, speed, memory and learning.

    python benchmarks/gpu.py                       # about 10 minutes on an H100; nothing is downloaded
    python benchmarks/gpu.py --quick               # small models, one seed, no compilation
    python benchmarks/gpu.py --only tests phases   # some sections

Released models have random weights: speed and memory do not depend on them. Each section runs in a process of its own
with a time limit, so that a crash, or memory that one of them fills, leaves the others alone. A section that fails
keeps the rows that it has so far, and its error is reported. The results replace gpu.md and gpu.json next to this file.
The exit status is 1 if any section failed.
"""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from measuring import MemoryTimer, build_generator, matmul_peak, seconds
from sections import Row, Section, accept

from sfumato.engine.engine_config import EngineConfig
from sfumato.engine.process import Process, join
from sfumato.engine.torch_engine import TorchEngine
from sfumato.objectives import GRPO
from sfumato.policy import Policy
from sfumato.recipes import TRAIN_RECIPES
from sfumato.request import Request
from sfumato.rewards import build_reward
from sfumato.settings import Settings
from sfumato.training.hooks.hook import Progress
from sfumato.training.loop import learn
from sfumato.training.plan import GIB, StandIns, make_plan
from sfumato.training.train import build_engine, build_rollouts, learning_rate_of
from sfumato.training.train_config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
Name = Literal["tests", "mismatch", "phases", "drawing", "dark"]
WARM_UP = 2
"""Steps before measuring: the first chooses kernels and makes the optimizer's state, the second is the first to have
both."""
PHASES = ("sample", "decode", "reference", "update")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EAGER = EngineConfig(precision="bf16", cuda_graphs=False)
GRAPHS = replace(EAGER, cuda_graphs=True)
VARIANTS = {"eager": EAGER, "CUDA graphs": GRAPHS, "CUDA graphs, compiled": replace(GRAPHS, compile=True)}
"""Ways to draw, by name; the others are compared with the first."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Settings of the script."""

    only: tuple[Name, ...] = ()
    """sections to run; all if none are given"""
    quick: bool = False
    """small models, one seed, no compilation"""


def build_sections(quick: bool, device: str) -> dict[str, Section]:
    """Return all sections by name, for a GPU of at least 80 GB."""
    models = ("var-d16", "llamagen-b-256") if quick else ("var-d16", "llamagen-b-256", "llamagen-xl-256")
    drawn = ("llamagen-b-256",) if quick else ("llamagen-b-256", "llamagen-xl-384")
    recipes = ("var-d16-dark", *(() if quick else ("var-d30-dark",)), *drawn)
    ways = {name: engine for name, engine in VARIANTS.items() if not (quick and engine.compile)}
    dark = TRAIN_RECIPES["emoji-dark"].build()
    dark = replace(  # as many updates per step as on the CPU, each with four times as many images
        dark,
        groups_per_step=32,
        minibatch_size=128,
        sample_batch_size=512,
        engine=replace(dark.engine, micro_batch_size=128),
    )
    return {
        "tests": Section(
            title="Tests that need a GPU",
            rows=partial(run_tests, ROOT / "tests/cuda", 110.0),
            limit=120,
        ),
        "mismatch": Section(
            title="Rounding: log-probabilities of scoring against those of sampling, in bfloat16",
            rows=partial(compare_scores, models, (None, 2.0), 32, device),
            limit=90,
            note="Absolute differences per token, in nats, and the mean ratio exp(difference), which should be 1.",
        ),
        "phases": Section(
            title="Phases of a step with the recipes' settings, and their memory against `sfumato plan`",
            rows=partial(measure_phases, {name: TRAIN_RECIPES[name].build() for name in recipes}, 3, device),
            limit=150,
            note="Operations are those of the plan. The peak rate is that of square matrix products in the same "
            "precision. Memory is that of tensors. An update is one minibatch. The reward is the mean brightness.",
        ),
        "drawing": Section(
            title="Drawing of next-token images",
            rows=partial(compare_drawing, drawn, ways, 64, 3, device),
            limit=180,
            note="Guidance 2, bfloat16. The first pass includes compilation and the recording of graphs. Equal tokens: "
            "the share of tokens that are those of eager drawing; after one that differs, all later ones may differ.",
        ),
        "dark": Section(
            title="Time until 90 % of emoji pictures are darker than 0.2",
            rows=partial(train_until, dark, 0.9, (0,) if quick else (0, 1, 2), device),
            limit=60,
            note=f"Recipe `emoji-dark` with {dark.images_per_step} images per step. Loading is not counted.",
        ),
    }


def run_tests(folder: Path, limit: float) -> Iterator[Row]:
    """Run the tests marked `cuda` in a folder; it is an error if one fails, or if none runs."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    print(done.stdout, done.stderr, sep="", flush=True)
    summary = (done.stdout.strip() or "nothing").splitlines()[-1]
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|skipped|error)", summary)}
    yield {name: counts.get(name, 0) for name in ("passed", "failed", "skipped")}
    if done.returncode or not counts.get("passed"):
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        raise RuntimeError("; ".join([summary, *failed]))


def build_drawing(
    model: str, settings: Settings, engine: EngineConfig, images: int, process: Process
) -> tuple[TorchEngine, Request]:
    """Build an engine without a reference, and a request for this number of images, all of different classes."""
    torch.manual_seed(0)
    objective = GRPO(kl_weight=0.0)
    config = TrainConfig(model=model, policy=settings, engine=engine, objective=objective, reward={"brightness": 1.0})
    generator = build_generator(model, process.device)
    built = build_engine(config, Policy(generator, settings), process)
    return built, built.policy.request(StandIns(generator, config).spread(images)).to(process.device)


def compare_scores(models: Sequence[str], guidances: Sequence[float | None], images: int, device: str) -> Iterator[Row]:
    """Compare the log-probabilities of sampling with those of scoring in bfloat16; one row per model and guidance."""
    process = join(device)
    for model in models:
        for guidance in guidances:
            engine, request = build_drawing(
                model, Settings(guidance=guidance), EngineConfig(precision="bf16"), images, process
            )
            with torch.no_grad(), engine.drawing(), engine.autocast():
                drawn = engine.sample(request, torch.arange(images))
                change = engine.scorer.log_probs(request, drawn.tokens) - drawn.log_probs
            yield {
                "model": model,
                "guidance": guidance,
                "entropy": drawn.entropy.mean().item(),
                "mean difference": change.abs().mean().item(),
                "max difference": change.abs().max().item(),
                "mean ratio - 1": change.exp().mean().item() - 1,
            }


def measure_phases(configs: Mapping[str, TrainConfig], repeats: int, device: str) -> Iterator[Row]:
    """Compare the phases of a step with their plan; one row per phase, and one for the whole step."""
    process = join(device)
    for name, config in configs.items():
        plan = make_plan(config)
        peak = matmul_peak(process.device, DTYPES[config.engine.precision])
        timers = run_steps(config, WARM_UP + repeats, process)
        drawn = min(config.sample_batch_size, config.images_per_step)
        total = 0.0
        for phase in PHASES:
            images = config.minibatch_size if phase == "update" else drawn
            took = statistics.median(timer.seconds[phase] for timer in timers[WARM_UP:])
            memory = max(timer.peaks[phase] for timer in timers[WARM_UP:])
            total += took * config.images_per_step / images
            planned, rate = plan.phases[phase].peak, plan.phases[phase].flops / took
            yield {
                "recipe": name,
                "phase": phase,
                "images": images,
                "seconds": took,
                "images/s": images / took,
                "TFLOP/s": rate / 1e12,
                "share of peak": rate / peak,
                "GiB": memory / GIB,
                "planned GiB": planned / GIB,
                "measured / planned": memory / planned,
            }
        images = config.images_per_step
        yield {"recipe": name, "phase": "step", "images": images, "seconds": total, "images/s": images / total}


def run_steps(config: TrainConfig, count: int, process: Process) -> list[MemoryTimer]:
    """Draw one batch of `sample_batch_size` and learn one minibatch, this number of times; return their timers."""
    torch.manual_seed(0)
    generator = build_generator(config.model, process.device)
    engine = build_engine(config, Policy(generator, config.policy), process)
    sampler, objective = StandIns(generator, config), config.objective
    rollouts = build_rollouts(config, engine, process, sampler, build_reward({"brightness": 1.0}))
    images = min(config.sample_batch_size, config.images_per_step)
    request = engine.policy.request(sampler.images(images)).to(process.device)
    timers = []
    for _ in range(count):
        timers.append(MemoryTimer(process.device))
        drawn = rollouts.collect(request, torch.arange(images), timers[-1])
        batch = drawn[torch.arange(config.images_per_step) % images]  # as large as that of a step
        credit, minibatch = objective.credit(batch), torch.arange(config.minibatch_size)
        with timers[-1]("update"):
            engine.update(objective.loss, batch, credit, [minibatch], config.engine.learning_rate)
    return timers


def compare_drawing(
    models: Sequence[str], variants: Mapping[str, EngineConfig], images: int, repeats: int, device: str
) -> Iterator[Row]:
    """Time the drawing of images in several ways; one row per model and way."""
    process = join(device)
    for model in models:
        expected = None
        for name, variant in variants.items():
            engine, request = build_drawing(model, Settings(guidance=2.0), variant, images, process)
            draw = partial(engine.sample, request, torch.arange(images))
            with engine.drawing(), engine.autocast():
                first = seconds(draw, 1, process.device)
                tokens = draw().tokens
                took = seconds(draw, repeats, process.device)
            expected = tokens if expected is None else expected
            yield {
                "model": model,
                "way": name,
                "first pass (s)": first,
                "seconds": took,
                "images/s": images / took,
                "ms per token": 1000 * took / tokens.shape[1],
                "equal tokens": (tokens == expected).float().mean().item(),
            }


def train_until(config: TrainConfig, target: float, seeds: Sequence[int], device: str) -> Iterator[Row]:
    """Train until the mean reward of a step's images reaches the target; one row per seed.

    Raises:
        RuntimeError: the run ended below the target.
    """
    process = join(device)
    for seed in seeds:
        generator = build_generator(config.model, process.device)
        engine = build_engine(config, Policy(generator, config.policy), process)
        sampler, reward = StandIns(generator, config), build_reward(config.reward)
        rollouts = build_rollouts(config, engine, process, sampler, reward)
        stop = StopAt(target)
        began = time.perf_counter()
        learn(
            0, config.steps, rollouts, config.objective, engine, [stop], torch.Generator().manual_seed(seed),
            minibatch_size=config.minibatch_size, learning_rate=learning_rate_of(config),
        )  # fmt: skip
        took, images = time.perf_counter() - began, stop.steps * config.images_per_step
        yield {"seed": seed, "steps": stop.steps, "seconds": took, "share": stop.reached, "images/s": images / took}
        if stop.reached < target:
            raise RuntimeError(f"seed {seed}: {stop.reached:.0%} after {stop.steps} steps, below {target:.0%}")


class StopAt:
    """A hook that ends a run once the mean reward of a step reaches a target."""

    def __init__(self, target: float):
        self.target = target
        self.steps, self.reached = 0, 0.0
        """steps done, and the mean reward of the last one"""

    def __call__(self, progress: Progress) -> None:
        self.steps, self.reached = progress.step, progress.metrics.get("reward_mean", 0.0)
        progress.stop = self.reached >= self.target


def main(arguments: Arguments) -> int:
    """Run the script on the first GPU."""
    if not torch.cuda.is_available():
        print("device: there is no GPU, or torch does not see it; run this on a machine with one", file=sys.stderr)
        return 2
    chosen = {n: s for n, s in build_sections(arguments.quick, "cuda:0").items() if n in (arguments.only or (n,))}
    gpu = torch.cuda.get_device_properties(0)
    machine = (
        f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"{date.today()}. Released models have random weights."
    )
    return accept(chosen, machine, " ".join(["python benchmarks/gpu.py", *sys.argv[1:]]), Path(__file__).parent)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
