"""Settings of a training run."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sfumato.engine.engine_config import EngineConfig, at_least, check_seed
from sfumato.errors import UserError
from sfumato.objectives import GRPO, Objective, find_objective, name_of
from sfumato.objectives.objective import LearnsFromData, LearnsFromTrees
from sfumato.settings import Settings
from sfumato.trackers import find_tracker

# If the type is Any, tyro offers the options of the default's own class; if it is a protocol, tyro offers none.
if TYPE_CHECKING:
    AnyObjective = Objective
else:
    AnyObjective = Any


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run. The defaults are those of Gallici & Sáez de Ocáriz Borde (2025)."""

    model: str
    """bundled or released model (emoji-var, var-d16, ...), run or checkpoint folder, or path/to/file.py:build"""
    weights: str | None = None
    """file with the network of a released model; downloaded from the Hugging Face Hub if not given"""
    tokenizer: str | None = None
    """file with the tokenizer of a released model; downloaded from the Hugging Face Hub if not given"""
    policy: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=lambda: Settings(temperature=0.7))
    """sampling settings, for both drawing and scoring"""
    score_guidance: float | None = None
    """ablation: other guidance for ratios and KL than for sampling; 0 scores the conditional distribution alone"""
    objective: AnyObjective = field(default_factory=GRPO)
    """training objective; to use another one, give --objective NAME or --objective path/to/file.py:Class"""
    engine: Annotated[EngineConfig, tyro.conf.arg(name="")] = field(default_factory=EngineConfig)
    """optimizer, precision and memory"""
    reward: dict[str, float] = field(default_factory=dict)
    """rewards (see `sfumato rewards`) and weights, e.g. "clip?prompt=a painting" 1 path/to/file.py:function 0.5"""
    max_unscored: float = 0.1
    """largest share of a step's images that a reward may leave without a score (NaN); beyond it, the run stops"""
    reward_timeout: float = 600.0
    """time limit of every call of a reward, in seconds; beyond it, the run saves and stops"""
    overlap_rewards: bool = False
    """score images while the next ones are drawn; the results are the same"""
    held_out: tuple[str, ...] = ()
    """rewards to measure on fixed conditions but never optimize, to detect reward hacking"""
    held_out_every: int = 10
    """number of steps between measurements of the held-out rewards"""
    stop_when_hacking: bool = False
    """stop the run on signs of reward hacking, instead of only warning; requires held_out.
    The signs are that the reward rises while held-out rewards, accuracy, diversity or entropy fall"""
    classes: tuple[str, ...] = ()
    """classes to train on, as names, numbers or ranges (0-499); all classes if none are given"""
    prompts: str | None = None
    """file of captions (.txt, .jsonl, .json, .csv), or the bundled emoji-captions, for a model that reads captions"""
    caption_template: str = "a photo of a {name}"
    """caption of a class, for rewards that read text; {name} stands for the name of the class"""
    data: str | None = None
    """folder of images with one subfolder per class, or the unpacked npm package emoji-datasource-google, for
    objectives that learn from a data set: cca, va-pi"""
    text_encoder: str | None = None
    """Hugging Face Hub id or folder of a text encoder to use instead of the model's own"""
    text_cache: str | None = None
    """folder that caches the features of captions; ~/.cache/sfumato/text if not given"""
    steps: int = 300
    """number of training steps; each step draws one batch of images and learns from it"""
    stop_after_seconds: float | None = None
    """end the run at the first step at which drawing, decoding, rewards, reference and updates have used this many
    processor seconds (on a GPU: seconds), even if there are more steps; pictures and measurements do not count"""
    groups_per_step: int = 32
    """number of classes or captions per step"""
    group_size: int = 16
    """number of images per class or caption (G); they are compared with one another"""
    redraws: int = 0
    """how often groups with equal rewards, which teach nothing, are drawn again with other classes or captions (dynamic
    sampling)"""
    candidates: int = 0
    """number of images drawn per class or caption, of which the group_size whose rewards have the largest variance are
    learned from (PODS); 0 to draw no more than group_size"""
    minibatch_size: int = 32
    """number of images per optimizer update"""
    sample_batch_size: int = 64
    """number of images drawn, decoded and scored at once, without gradients"""
    device: str = "auto"
    """device to run on: auto, cpu, cuda or cuda:N"""
    reward_device: str = "auto"
    """device of rewards that run in this process: cpu or cuda:N; auto is the device of the run"""
    seed: int = 0
    """seed of all random choices"""
    sample_every: int = 10
    """number of steps between sample pictures, which always show the same conditions and seeds"""
    save_every: int = 25
    """number of steps between checkpoints"""
    keep_checkpoints: int = 2
    """number of checkpoints to keep; older ones are deleted"""
    eval_images: int = 256
    """number of fresh images to score before and after training; 0 turns this off"""
    track: tuple[str, ...] = ()
    """trackers that get metrics and pictures: wandb, swanlab, mlflow, tensorboard, or path/to/file.py:Class"""

    @property
    def images_per_step(self) -> int:
        """Number of images per step that are learned from."""
        return self.groups_per_step * self.group_size

    @property
    def drawn_per_step(self) -> int:
        """Number of images drawn per step."""
        return self.groups_per_step * (self.candidates or self.group_size)

    def validate(self, num_processes: int = 1) -> None:
        """Check everything that can be checked before anything is loaded.

        Raises:
            UserError: a field is out of range, or one size is not a multiple of another.
        """
        for name in ("steps", "groups_per_step", "minibatch_size", "sample_batch_size"):
            at_least(name, getattr(self, name), 1)
        for name in ("sample_every", "save_every", "keep_checkpoints", "held_out_every"):
            at_least(name, getattr(self, name), 1)
        at_least("eval_images", self.eval_images, 0)
        at_least("redraws", self.redraws, 0)
        at_least("candidates", self.candidates, 0)
        check_seed(self.seed)
        self.engine.validate()
        for name in self.track:
            find_tracker(name)
        if not 0 <= (self.score_guidance or 0) < math.inf:
            raise UserError(f"score_guidance: {self.score_guidance} is out of range; give 0 or more")
        at_least("group_size", self.group_size, 2)
        if not 0 <= self.max_unscored <= 1:
            raise UserError(f"max_unscored: {self.max_unscored} is not a share; give a number from 0 to 1")
        if self.stop_after_seconds is not None and not self.stop_after_seconds > 0:
            raise UserError(f"stop_after_seconds: {self.stop_after_seconds} is not positive; give a number above 0")
        if not self.reward_timeout > 0:
            raise UserError(f"reward_timeout: {self.reward_timeout} is not positive; give a number above 0")
        if self.policy.truncates:
            # A token outside the kept set has log-probability -inf, and its ratio has no gradient.
            raise UserError("top_k: truncated sampling cannot be scored in training; set top_k and top_p to 0")
        if self.stop_when_hacking and not self.held_out:
            raise UserError("stop_when_hacking: there are no held-out rewards to measure; name some with --held-out")
        if "{name}" not in self.caption_template:
            raise UserError(f"caption_template: {self.caption_template!r} does not contain {{name}}; add it")
        if not self.reward:
            raise UserError("reward: no reward is given; give at least one with its weight, e.g. brightness 1")
        if self.images_per_step % self.minibatch_size:
            raise UserError(
                f"minibatch_size: {self.minibatch_size} does not divide the {self.images_per_step} images per step "
                f"({self.groups_per_step} groups × {self.group_size}); give a divisor"
            )
        if self.candidates and self.candidates < self.group_size:
            raise UserError(
                f"candidates: {self.candidates} is fewer than the group_size {self.group_size}, which is chosen from "
                "them; give a larger number, or 0"
            )
        self._check_data()
        if self.images_per_step % num_processes:
            raise UserError(
                f"groups_per_step: {self.groups_per_step} groups × {self.group_size} are {self.images_per_step} images "
                f"per step, which {num_processes} processes cannot share equally; give another number of groups or of "
                "processes"
            )
        if self.drawn_per_step % num_processes:
            raise UserError(
                f"candidates: {self.groups_per_step} groups × {self.candidates} are {self.drawn_per_step} images drawn "
                f"per step, which {num_processes} processes cannot share equally; give another number"
            )
        if isinstance(self.objective, LearnsFromTrees):
            self._check_trees(self.objective.fork.continuations, num_processes)
        if self.minibatch_size % num_processes:
            raise UserError(
                f"minibatch_size: {self.minibatch_size} images cannot be shared equally by {num_processes} processes; "
                f"give a multiple of {num_processes}, or use fewer processes"
            )

    def _check_data(self) -> None:
        """Check that there is a data set if, and only if, the objective learns from one, and that the rest fits it."""
        name = name_of(self.objective)
        if not isinstance(self.objective, LearnsFromData):
            if self.data is not None:
                raise UserError(f"data: {self.data} is not used by {name}, which draws its images; leave it out")
            return
        if self.data is None:
            raise UserError(
                f"data: {name} learns from images and has none; give a folder with one subfolder per class, or for the "
                "emoji models the unpacked npm package emoji-datasource-google"
            )
        for option, value in {"redraws": self.redraws, "candidates": self.candidates}.items():
            if value:
                raise UserError(f"{option}: {value} is for drawn images, but {name} draws none; give 0")
        if self.objective.learns_from == "conditions":
            if self.policy.guidance:
                raise UserError(
                    f"guidance: with {self.policy.guidance}, {name} would learn on top of guidance, which it is to "
                    "replace; give None"
                )
            if self.images_per_step % 2 or self.images_per_step < 4:
                raise UserError(
                    f"groups_per_step: {self.groups_per_step} groups × {self.group_size} are not two or more images, "
                    f"each of which {name} takes twice; give an even number"
                )
        elif self.group_size < 3:
            raise UserError(
                f"group_size: {self.group_size} leaves {name} no two reconstructions of an image to compare, as the "
                "first of each group is the image itself; give at least 3"
            )

    def _check_trees(self, count: int, num_processes: int) -> None:
        """Check that the images of a step are whole trees of `count` images."""
        if self.candidates:
            raise UserError(f"candidates: {self.candidates} would cut trees apart; give 0 for this objective")
        if self.group_size % count or self.group_size < 2 * count:
            raise UserError(
                f"objective.continuations: {count} does not divide the group_size {self.group_size} into two or more "
                "equal parts; give a divisor of it"
            )
        if self.minibatch_size % count:
            raise UserError(
                f"minibatch_size: {self.minibatch_size} is not a multiple of the {count} images of a tree; give one"
            )
        if self.sample_batch_size < count:
            raise UserError(f"sample_batch_size: {self.sample_batch_size} holds no tree of {count} images; raise it")
        if self.images_per_step % (num_processes * count):
            raise UserError(
                f"groups_per_step: {self.images_per_step // count} trees per step cannot be shared equally by "
                f"{num_processes} processes; give another number of groups or of processes"
            )


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Convert a config to the form that `config.json` stores."""
    values = dataclasses.asdict(config)
    values["objective"] = {"name": name_of(config.objective), **values["objective"]}
    return values


def from_json(saved: dict[str, Any]) -> TrainConfig:
    """Return the config that `to_json` converted. Settings that are newer than the run have their default values.

    Raises:
        UserError: there are settings that this version does not know, or no such objective.
        KeyError: a part is missing, so these are not the settings of a run.
    """
    values = _restored(upgraded(saved))
    objective = dict(values["objective"])
    values["objective"] = _built(find_objective(objective.pop("name")), objective)
    values["policy"], values["engine"] = _built(Settings, values["policy"]), _built(EngineConfig, values["engine"])
    return _built(TrainConfig, values)


def _restored(value: Any) -> Any:
    """Convert lists, which JSON has in place of tuples, back to tuples."""
    if isinstance(value, dict):
        return {name: _restored(part) for name, part in value.items()}
    return tuple(map(_restored, value)) if isinstance(value, list) else value


def _built(kind: Any, values: dict[str, Any]) -> Any:
    unknown = sorted(values.keys() - {f.name for f in dataclasses.fields(kind)})
    if unknown:
        raise UserError(f"{unknown[0]}: this version has no such setting; resume with the version that started the run")
    return kind(**values)


def upgraded(saved: dict[str, Any]) -> dict[str, Any]:
    """Convert the `config.json` of a run folder to the current form.

    Version 0.1 stored all settings on one level, its only objective as `loss`, and no guidance as 0.
    """
    if "labels_per_step" not in saved:
        return saved
    saved = dict(saved)
    policy = Settings(guidance=saved.pop("guidance", None), temperature=saved.pop("temperature", 0.7))
    objective = {"name": "gdpo" if saved.pop("combine", "sum") == "gdpo" else "grpo", **saved.pop("loss", {})}
    engine = {f.name: saved.pop(f.name) for f in dataclasses.fields(EngineConfig) if f.name in saved}
    saved["groups_per_step"] = saved.pop("labels_per_step")
    return {**saved, "policy": dataclasses.asdict(policy), "objective": objective, "engine": engine}
