"""A training run, from its config to its run folder."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from sfumato.capabilities import DecodesPrefixes, Forks, HasParts, ScoresPrefixes
from sfumato.data.classes import WordsSampler
from sfumato.emoji.judges import Classifier
from sfumato.engine.engine import Engine
from sfumato.engine.process import Process, check_device, joined
from sfumato.engine.schedule import cosine_schedule
from sfumato.engine.torch_engine import TorchEngine
from sfumato.engine.watch import WORK
from sfumato.errors import UserError
from sfumato.evaluation.judging import load_judge
from sfumato.families import bundled_models, load_generator, read_card, releases
from sfumato.families.library import base_of
from sfumato.files import locked, step_of
from sfumato.interrupt import Interrupt, catch_interrupt
from sfumato.objectives import Objective
from sfumato.objectives.objective import (
    LearnsFromData,
    LearnsFromEntropy,
    LearnsFromPrefixes,
    LearnsFromPreviews,
    LearnsFromTrees,
)
from sfumato.objectives.reasoning_grpo import ReasoningGRPO
from sfumato.policy import Generator, Policy
from sfumato.rewards import WeightedSum, build_reward
from sfumato.rewards.deadline import Deadline
from sfumato.rewards.placement import placed
from sfumato.rollout import Fork
from sfumato.rollouts.dataset import ROLLOUTS, DataRollouts, DataSet
from sfumato.rollouts.inline import InlineRollouts
from sfumato.settings import Settings
from sfumato.trackers import Tracked, open_trackers
from sfumato.training.fixed_set import FixedSet
from sfumato.training.hooks.before_after import BeforeAfter
from sfumato.training.hooks.budget import Budget
from sfumato.training.hooks.checkpoints import Checkpoints
from sfumato.training.hooks.held_out import HeldOut
from sfumato.training.hooks.hook import Hook
from sfumato.training.hooks.metrics import Metrics
from sfumato.training.hooks.sample_pictures import Pictures
from sfumato.training.hooks.stop import Stop
from sfumato.training.loop import BatchError, learn
from sfumato.training.plan import require_fit
from sfumato.training.requests import build_data_set, build_sampler, check_request
from sfumato.training.run_folder import check_run_folder, create_run_folder, recorded
from sfumato.training.thresholds import fix_thresholds
from sfumato.training.train_config import TrainConfig, to_json
from sfumato.training.training_view import TrainingView


def train(config: TrainConfig, run_dir: Path, *, resume: bool = False, console: Console | None = None) -> bool:
    """Train in `run_dir`; return True if the run finished, False if it was stopped (everything is then saved).

    Raises:
        UserError: a setting is wrong, the run folder is in use or belongs to another run, or a reward fails (everything
            is then saved).
    """
    console = console or Console(markup=False)
    with joined(config.device, patience=config.reward_timeout + WORK) as process, ExitStack() as held:
        with process.together():  # the main process fills the folder once all have checked
            config.validate(process.count)
            if process.is_main:
                held.enter_context(locked("run_dir", run_dir))
            check_run_folder(run_dir, config, resume)
        if process.is_main:
            console.print(f"Loading {config.model} and the rewards", highlight=False, soft_wrap=True)
        run = prepare(config, run_dir, process)
        own = run.engine.policy.generator.card.settings
        if process.is_main and config.policy != own and config.model not in {*bundled_models(), *releases()}:
            text = f"Training draws with {config.policy}; the model itself draws with {own}"
            console.print(text, highlight=False, soft_wrap=True)
        if process.is_main:
            held.enter_context(recorded(run_dir))
        checkpoints = Checkpoints(
            run_dir / "checkpoints",
            run.engine,
            process,
            run.rng,
            run.reward,
            config.save_every,
            config.keep_checkpoints,
        )
        first = checkpoints.restore() if resume else 0
        view = TrainingView(console, run_dir.name, config.steps, first)
        tracked = Tracked(run_dir, to_json(config), first)
        start_trackers = partial(open_trackers, config.track, tracked)
        with catch_interrupt() as interrupt, Metrics.opened(view, run_dir, first, process, start_trackers) as metrics:
            try:
                finished = learn(
                    first,
                    config.steps,
                    run.rollouts,
                    config.objective,
                    run.engine,
                    build_hooks(run, checkpoints, metrics, interrupt),
                    run.rng,
                    minibatch_size=config.minibatch_size,
                    learning_rate=learning_rate_of(config),
                )
            except BatchError as error:
                if error.done:
                    checkpoints.save(error.done)
                    checkpoints.finish()
                    process.wait()  # the launcher ends all processes as soon as one of them ends
                raise
        if not finished and process.is_main:
            done = step_of(checkpoints.all()[-1])
            view.note(f"Stopped after step {done}. Everything is saved.")
        return finished


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of a run, once everything is loaded."""

    config: TrainConfig
    run_dir: Path
    process: Process
    engine: Engine
    sampler: WordsSampler
    reward: WeightedSum
    held_out: WeightedSum | None
    """rewards that are measured but never optimized"""
    judge: Classifier | None
    """classifier that knows the model's classes"""
    rollouts: InlineRollouts | DataRollouts
    rng: torch.Generator


def learning_rate_of(config: TrainConfig) -> Callable[[int], float]:
    """Return the learning rate as a function of the step, counted from 0."""
    engine = config.engine
    floor = engine.final_learning_rate / engine.learning_rate
    schedule = cosine_schedule(config.steps, engine.warmup_steps, floor=floor)
    return lambda step: engine.learning_rate * schedule(step)


def prepare(config: TrainConfig, run_dir: Path, process: Process) -> Run:
    """Load everything, with cheap checks first, and create the run folder once everything works.

    Raises:
        UserError: a setting is wrong, or a reward fails on two images.
    """
    check_request(config, read_card(config.model).class_names)
    if process.device.type == "cuda":
        require_fit(config, process)
    deadline = Deadline(config.reward_timeout, begun=process.work)
    reward = replace(build_reward(config.reward), deadline=deadline)
    held_out = None
    if config.held_out:
        held_out = build_reward(dict.fromkeys(config.held_out, 1.0)).require_thresholds()
        held_out = replace(held_out, deadline=deadline)
    if config.reward_device != "auto":
        device = check_device("reward_device", config.reward_device)
        reward, held_out = placed(reward, device), held_out and placed(held_out, device)
    generator = load_generator(
        config.model,
        weights=config.weights,
        tokenizer=config.tokenizer,
        # A network that is divided may be too large for one device.
        device=process.device if config.engine.sharding == "none" else "cpu",
        text_encoder=config.text_encoder,
    )
    generator.tokenizer.to(process.device)
    data = build_data_set(config, generator)
    sampler = build_sampler(config, generator, process.device, data)
    engine = build_engine(config, Policy(generator, config.policy), process)
    words = sampler.next(2, torch.Generator().manual_seed(0))
    with engine.autocast(), engine.drawing():
        images = engine.policy.draw(engine.policy.request(words), torch.arange(2))
    reward(images, words)
    judge = load_judge(generator.card.judge) if config.held_out or config.eval_images else None
    rollouts = (
        build_rollouts(config, engine, process, sampler, reward)
        if data is None
        else build_data_rollouts(config, engine, process, data, reward)
    )
    if process.is_main:
        create_run_folder(run_dir, config)
    reward = fix_thresholds(
        reward, run_dir, engine, process, sampler, batch_size=config.sample_batch_size, seed=config.seed
    )
    return Run(
        config=config,
        run_dir=run_dir,
        process=process,
        engine=engine,
        sampler=sampler,
        reward=reward,
        held_out=held_out,
        judge=judge,
        rollouts=replace(rollouts, reward=reward),
        rng=torch.Generator().manual_seed(config.seed),
    )


def build_engine(config: TrainConfig, policy: Policy, process: Process) -> TorchEngine:
    """Build the engine of a run. It trains the policy's network, and keeps a reference if the objective needs one."""
    scoring = None
    if config.score_guidance is not None:
        scoring = Settings(guidance=config.score_guidance, temperature=config.policy.temperature)
    check_penalty(config.objective, policy.generator)
    check_parts(config.objective, policy.generator)
    return TorchEngine(
        policy,
        config.engine,
        process,
        base=base_of(config.model, config.weights, config.tokenizer),
        keep_reference=config.objective.needs_reference,
        with_entropy=isinstance(config.objective, LearnsFromEntropy),
        scoring=scoring,
    )


def check_penalty(objective: Objective, generator: Generator) -> None:
    """Raise a UserError if an objective wants the exact KL from the drawn tokens, but a token has more than two values;
    generators of bits say so by a `vocabulary` of 2."""
    if getattr(objective, "kl", None) == "exact" and getattr(generator, "vocabulary", None) != 2:
        family = generator.card.family
        raise UserError(f"objective.kl: exact needs tokens of two values, but those of {family} have more; use k3")


def check_parts(objective: Objective, generator: Generator) -> None:
    """Raise a UserError if an objective weighs texts, but the model writes none."""
    if isinstance(objective, ReasoningGRPO) and not isinstance(generator, HasParts):
        raise UserError(
            "objective: reasoning-grpo is for models that write a text before the image, such as "
            "janus-pro-1b-reasoning; use grpo"
        )


def build_rollouts(
    config: TrainConfig, engine: Engine, process: Process, sampler: WordsSampler, reward: WeightedSum
) -> InlineRollouts:
    """Build the rollouts of a run."""
    return InlineRollouts(
        engine=engine,
        process=process,
        sampler=sampler,
        reward=reward,
        groups=config.groups_per_step,
        group_size=config.group_size,
        batch_size=config.sample_batch_size,
        max_unscored=config.max_unscored,
        needs_reference=config.objective.needs_reference,
        scoring_size=config.engine.micro_batch_size,
        # With one update per step, the update takes the log-probabilities of its own pass.
        rescore=config.engine.recompute_log_probs and config.minibatch_size < config.images_per_step,
        overlap=config.overlap_rewards,
        redraws=config.redraws,
        candidates=config.candidates,
        prefix_probabilities=prefix_probabilities(config.objective, engine.policy.generator),
        preview=preview_of(config.objective, engine.policy.generator),
        fork=fork_of(config.objective, engine.policy.generator),
    )


def build_data_rollouts(
    config: TrainConfig, engine: Engine, process: Process, data: DataSet, reward: WeightedSum
) -> DataRollouts:
    """Build the rollouts of a run whose objective learns from a data set."""
    assert isinstance(config.objective, LearnsFromData)
    return ROLLOUTS[config.objective.learns_from](
        engine=engine,
        process=process,
        data=data,
        reward=reward,
        groups=config.groups_per_step,
        group_size=config.group_size,
        size=config.engine.micro_batch_size,
        needs_reference=config.objective.needs_reference,
    )


def prefix_probabilities(objective: Objective, generator: Generator) -> tuple[float, ...]:
    """Return the probability with which a batch keeps the tokens of the first 1, 2, ... units; empty if it keeps all.

    Raises:
        UserError: there are fewer units, or the family scores whole images only.
    """
    if not isinstance(objective, LearnsFromPrefixes):
        return ()
    if not isinstance(generator, ScoresPrefixes):
        raise UserError(f"objective: the family {generator.card.family} scores whole images only; use grpo")
    return objective.prefix_probabilities(len(generator.units))


def preview_of(objective: Objective, generator: Generator) -> int | None:
    """Return the number of units that are drawn and scored alone; None if images are drawn whole.

    Raises:
        UserError: there are fewer units, or the family decodes whole images only.
    """
    if not isinstance(objective, LearnsFromPreviews) or not objective.preview:
        return None
    if not isinstance(generator, DecodesPrefixes):
        raise UserError(f"objective.preview: the family {generator.card.family} decodes whole images only; give false")
    return objective.prefix_probabilities(len(generator.units)).index(1.0) + 1


def fork_of(objective: Objective, generator: Generator) -> Fork | None:
    """Return how images share their first units for an objective; None if each is drawn alone.

    Raises:
        UserError: there are fewer units, or the family draws whole images only.
    """
    if not isinstance(objective, LearnsFromTrees):
        return None
    unit, last = objective.fork.unit, len(generator.units) - 1
    if not 1 <= unit <= last:
        raise UserError(
            f"objective.fork_unit: {unit} leaves nothing to differ of {last + 1} units; give a number from 1 to {last}"
        )
    if not isinstance(generator, Forks):
        raise UserError(f"objective: the family {generator.card.family} cannot fork what it draws; use grpo")
    return objective.fork


def build_hooks(run: Run, checkpoints: Checkpoints, metrics: Metrics, interrupt: Interrupt) -> list[Hook]:
    """Build the hooks of a run, in order.

    Hooks that add metrics come before the hook that writes them. The processes agree to stop before the checkpoint
    hook, which saves a stopped run. Pictures come after the checkpoint, so no step is lost if a picture fails.
    """
    config, process, size = run.config, run.process, run.config.sample_batch_size
    fixed_set = FixedSet(run.engine, process, run.sampler, size)
    hooks: list[Hook] = []
    if config.stop_after_seconds is not None:
        hooks.append(Budget(run.run_dir, process, config.stop_after_seconds))
    if run.held_out is not None:
        hooks.append(
            HeldOut(
                run_dir=run.run_dir,
                fixed_set=fixed_set,
                optimized=run.reward,
                rewards=run.held_out,
                judge=run.judge,
                process=process,
                view=metrics.view,
                every=config.held_out_every,
                stop_when_hacking=config.stop_when_hacking,
            )
        )
    hooks += [
        metrics,
        Stop(process, interrupt),
        checkpoints,
        Pictures(run.run_dir, fixed_set, run.reward, process, metrics.view, metrics.trackers, config.sample_every),
    ]
    if config.eval_images:
        hooks.append(
            BeforeAfter(
                run_dir=run.run_dir,
                engine=run.engine,
                process=process,
                sampler=run.sampler,
                reward=run.reward,
                judge=run.judge,
                images=config.eval_images,
                batch_size=size,
                seed=config.seed,
                console=metrics.view.console,
            )
        )
    return hooks
