"""A GRPO run from config to run folder: set-up, logging, pictures, checkpoints, resuming."""

import dataclasses
import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from sfumato.data.pictures import COLUMNS, grid, save_png, side_by_side
from sfumato.emoji.judges import load_classifier
from sfumato.engine.checkpoint import fingerprint, load_state, save_state
from sfumato.engine.process import join, leave
from sfumato.errors import UserError
from sfumato.evaluation.class_accuracy import class_accuracy
from sfumato.families.library import class_names, load, load_part, save_model
from sfumato.files import check_writable, remove, write_atomically, write_text
from sfumato.interrupt import Interrupt, catch_interrupt
from sfumato.rewards import build_reward
from sfumato.rollout import Conditions, Rollout, concatenate
from sfumato.training import thresholds
from sfumato.training.config import GRPOConfig
from sfumato.training.curves import plot_curves, plot_held_out
from sfumato.training.grpo import GRPO
from sfumato.training.held_out import REPEATS, HeldOut
from sfumato.training.logger import MetricsFile, TrainingView, read_lines
from sfumato.training.requests import build_sampler, check_request


def train(config: GRPOConfig, run_dir: Path, *, resume: bool = False, console: Console | None = None) -> bool:
    """Run GRPO in `run_dir`; returns whether it was finished (False: interrupted, with everything saved).

    Raises:
        UserError: a setting is wrong, the run folder is taken, or a reward fails.
    """
    workers = join(config.device)
    try:
        config.validate(workers.count)
        folder = RunFolder(run_dir, workers.is_main)
        folder.check(config, resume)
        check_request(config, class_names(config.model))
        reward = build_reward(config.reward)
        held_out = build_reward(dict.fromkeys(config.held_out, 1.0)).require_thresholds() if config.held_out else None
        policy = load(
            config.model,
            weights=config.weights,
            tokenizer=config.tokenizer,
            guidance=config.guidance,
            temperature=config.temperature,
            device=workers.device,
        )
        sampler = build_sampler(config, policy.generator, workers.device)
        algorithm = GRPO(config, policy, sampler, reward, workers)
        run = Run(config, folder, algorithm, console or Console())
        run.probe_reward()
        folder.create(config)
        run.fix_thresholds()
        if held_out is not None and folder.writes:
            classifier = load_classifier()
            run.held_out = HeldOut(algorithm.reward, held_out, classifier, folder.path / "held_out.jsonl")
        with catch_interrupt() as interrupt:
            return run.train(folder.restore(algorithm) if resume else 0, interrupt)
    finally:
        leave()


@dataclass
class Run:
    """One algorithm and the folder it reports to."""

    config: GRPOConfig
    folder: "RunFolder"
    algorithm: GRPO
    console: Console
    held_out: HeldOut | None = None

    def train(self, first: int, interrupt: Interrupt) -> bool:
        """Steps `first` to the last, then the closing pictures and measurements."""
        config, folder, workers = self.config, self.folder, self.algorithm.workers
        view = TrainingView(self.console, folder.path.name, config.steps, first)
        metrics_file = MetricsFile(folder.path, first) if workers.is_main else None
        if first == 0:
            self.draw_samples(0)
            self.measure("before")
            self.measure_held_out(0)
        elif self.picture_due(first) and not folder.sample_path(first).exists():  # stopped between the two
            self.draw_samples(first)
        with view.open() if workers.is_main else nullcontext():
            for step in range(first, config.steps):
                try:
                    metrics = {"step": step + 1, **self.algorithm.step(step)}
                except UserError as error:
                    raise UserError(f"step {step + 1}: {error}") from error
                due = (step + 1) % config.held_out_every == 0 or step + 1 == config.steps
                metrics |= self.measure_held_out(step + 1) if due else {}
                if metrics_file is not None:
                    metrics_file.write(metrics)
                    view.show(metrics)
                signs = self.held_out.signs() if self.held_out is not None and due else []
                if signs:
                    view.note(f"Step {step + 1}: signs of reward hacking: the reward rose, but {'; '.join(signs)}.")
                stop = workers.any(bool(interrupt) or (bool(signs) and config.stop_when_hacking))
                if (step + 1) % config.save_every == 0 or step + 1 == config.steps or stop:
                    folder.save(self.algorithm, step + 1, config.keep_checkpoints)
                if self.picture_due(step + 1):
                    self.draw_samples(step + 1)
                if stop and step + 1 < config.steps:
                    if workers.is_main:
                        view.note(f"Stopped after step {step + 1}, saved in {folder.path}; go on with --resume.")
                    return False
        self.measure("after")
        if metrics_file is not None:
            metrics_file.close()
        return True

    def picture_due(self, step: int) -> bool:
        """Whether the fixed set is drawn after so many steps."""
        return step % self.config.sample_every == 0 or step == self.config.steps

    def probe_reward(self) -> None:
        """Score two images before any long work, so that a broken reward is found at once."""
        conditions = self.algorithm.sampler.next(2, torch.Generator().manual_seed(0)).to(self.algorithm.workers.device)
        self.algorithm.reward(self.algorithm.policy.draw(conditions, torch.arange(2)), conditions)

    def fix_thresholds(self) -> None:
        """Measure the thresholds that quantised rewards lack, or take those that the run folder has."""
        algorithm, path = self.algorithm, self.folder.path / "thresholds.json"

        def draw() -> tuple[Tensor, Conditions]:
            conditions = algorithm.sampler.next(thresholds.IMAGES, torch.Generator().manual_seed(self.config.seed))
            conditions = conditions.to(algorithm.workers.device)
            return self.draw(conditions, torch.arange(len(conditions))), conditions

        algorithm.reward = thresholds.fix_thresholds(algorithm.reward, path, draw, self.folder.writes)

    def measure_held_out(self, step: int) -> dict[str, float]:
        """Held-out rewards and what else warns of hacking, on the same conditions and seeds at every step."""
        if self.held_out is None:
            return {}
        figures = self.held_out.measure(step, *self.draw_fixed_set(REPEATS))
        plot_held_out(self.folder.path)
        return figures

    def draw_samples(self, step: int) -> None:
        """Pictures of the same conditions and seeds at every step, and how uncertain the policy is there."""
        if not self.folder.writes:
            return
        rollout, images = self.draw_fixed_set(2)
        self.log_fixed_set(step, rollout, images)
        save_png(grid(images, COLUMNS, zoom=max(1, 96 // images.shape[-1])), self.folder.sample_path(step))
        first, now = self.folder.sample_path(0), self.folder.sample_path(step)
        with Image.open(first) as before, Image.open(now) as after:
            titled = [("before", before.copy()), (f"after {step} steps", after.copy())]
        save_png(side_by_side(titled), self.folder.path / "before_after.png")
        plot_curves(self.folder.path)

    def draw_fixed_set(self, repeats: int) -> tuple[Rollout, Tensor]:
        """So many images of each of the fixed conditions, in [0, 1], of the same seeds at every call."""
        conditions = self.algorithm.sampler.spread(16).repeat(repeats).to(self.algorithm.workers.device)
        seeds, parts = torch.arange(len(conditions)), []
        with self.algorithm.autocast():
            for index in seeds.split(self.config.sample_batch_size):
                parts.append(self.algorithm.policy.sample(conditions[index], seeds[index]))
            images = [self.algorithm.policy.decode(part.tokens).float() for part in parts]
        return concatenate(parts, conditions), torch.cat(images)

    def log_fixed_set(self, step: int, rollout: Rollout, images: Tensor) -> None:
        """Entropy a unit and in the mean, and the reward, of the fixed conditions, and the name and reward of each of
        their pictures; a line in `fixed_set.jsonl`."""
        units = rollout.entropy.mean(0).split(self.algorithm.policy.generator.units)
        total, _ = self.algorithm.reward(images, rollout.conditions)
        line = {
            "step": step,
            "entropy": rollout.entropy.mean().item(),
            "reward_mean": total.nanmean().item(),
            "entropy_by_unit": [round(unit.mean().item(), 4) for unit in units],
            "names": rollout.conditions.names,
            "rewards": [round(score, 4) for score in total.tolist()],
        }
        path = self.folder.path / "fixed_set.jsonl"
        kept = [row for row in read_lines(path) if row["step"] < step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in [*kept, line]))

    def measure(self, moment: str) -> None:
        """Rewards, and class accuracy where a classifier is at hand, of fresh images; into `evaluation.json`."""
        config, path = self.config, self.folder.path / "evaluation.json"
        if not self.folder.writes or config.eval_images == 0:
            return
        rng = torch.Generator().manual_seed(config.seed + 2**40)
        conditions = self.algorithm.sampler.next(config.eval_images, rng).to(self.algorithm.workers.device)
        seeds = torch.randint(2**62, (len(conditions),), generator=rng)
        images = self.draw(conditions, seeds)
        total, parts = self.algorithm.reward(images, conditions)
        result = {"images": len(images), "reward_mean": total.nanmean().item()}
        result |= {f"reward/{name}": scores.nanmean().item() for name, scores in parts.items()}
        classifier = load_classifier()
        accuracy = class_accuracy(classifier, images, conditions)
        if accuracy is not None:
            result |= {"class_accuracy_top1": accuracy.top1, "class_accuracy_top5": accuracy.top5}
        results = json.loads(path.read_text()) if path.exists() else {}
        results[moment] = result
        write_text(path, json.dumps(results, indent=1) + "\n")
        text = "  ".join(f"{name} {value:.3f}" for name, value in result.items() if name != "images")
        self.console.print(f"{moment:>6}: {text}  (on {len(images)} fresh images)", highlight=False, soft_wrap=True)

    def draw(self, conditions: Conditions, seeds: Tensor) -> Tensor:
        """Images of the policy as it is, drawn as training draws them."""
        conditions = conditions.to(self.algorithm.workers.device)
        with self.algorithm.autocast():
            return self.algorithm.policy.draw(conditions, seeds, self.config.sample_batch_size)


class RunFolder:
    """The files of a run. Only the main worker writes."""

    def __init__(self, path: Path, writes: bool):
        self.path, self.writes = path, writes

    def check(self, config: GRPOConfig, resume: bool) -> None:
        """Refuse to overwrite another run, or to go on with other settings.

        Raises:
            UserError: the message says which, and what to do.
        """
        saved = self.path / "config.json"
        if resume:
            if not saved.exists():
                raise UserError(f"run_dir: {self.path} holds no run to resume; start it without --resume")
            before, now = json.loads(saved.read_text()), json.loads(json.dumps(dataclasses.asdict(config)))
            # Settings that the run's version did not have yet are not held against it.
            different = sorted(k for k in now.keys() & before.keys() - {"steps", "device"} if before[k] != now[k])
            done = [int(checkpoint.name.removeprefix("step-")) for checkpoint in self.checkpoints()]
            if done and config.steps < done[-1]:
                raise UserError(f"steps: {config.steps} are fewer than the {done[-1]} done; give as many or more")
            if different:
                name = different[0]
                raise UserError(
                    f"{name}: {now[name]!r} differs from the run's {before.get(name)!r}; "
                    f"resume with the settings in {saved}"
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise UserError(f"run_dir: {self.path} is not empty; continue it with --resume or choose another --run-dir")
        check_writable("run_dir", self.path)

    def create(self, config: GRPOConfig) -> None:
        """Make the folder and write the resolved config."""
        if self.writes:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            write_text(self.path / "config.json", json.dumps(dataclasses.asdict(config), indent=1) + "\n")

    def sample_path(self, step: int) -> Path:
        """Picture of the fixed classes and seeds after `step` steps."""
        return self.path / f"samples/step-{step:06d}.png"

    def save(self, algorithm: GRPO, step: int, keep: int) -> None:
        """Write a checkpoint, then delete all but the newest `keep`."""
        if not self.writes:
            return

        def write(folder: Path) -> None:
            save_model(folder / "model", algorithm.policy.generator)
            base = fingerprint(algorithm.reference.generator.transformer)
            save_state(folder / "state.pt", {**algorithm.state(), "step": step, "base": base})

        write_atomically(self.path / f"checkpoints/step-{step:06d}", write)
        for old in self.checkpoints()[:-keep]:
            remove(old)

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*"))

    def restore(self, algorithm: GRPO) -> int:
        """Load the newest checkpoint; returns the number of steps it has behind it, 0 if there is none.

        Raises:
            UserError: the base model is not what it was, so that the KL would be to another one.
        """
        if not self.checkpoints():
            return 0
        newest = self.checkpoints()[-1]
        state = load_state(newest / "state.pt")
        base = fingerprint(algorithm.reference.generator.transformer)
        if state.get("base", base) != base:
            model = algorithm.config.model
            raise UserError(f"model: {model} is not what it was when the run began; put its weights back to resume")
        algorithm.policy.generator.transformer.load_state_dict(load_part(newest / "model", "transformer"))
        algorithm.load_state(state)
        return state["step"]
