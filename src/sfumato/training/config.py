"""Everything that a GRPO run is made of."""

from dataclasses import dataclass, field
from typing import Literal

from sfumato.errors import UserError
from sfumato.objectives.grpo import LossConfig


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """A GRPO run; the defaults are those of Gallici & Sáez de Ocáriz Borde (2025)."""

    model: str
    """bundled generator, run folder, or released checkpoint (var-d16 ..., llamagen-b-256 ...)"""
    weights: str | None = None
    """file of a released transformer; fetched from the hub if not given"""
    tokenizer: str | None = None
    """file of a released tokenizer; fetched from the hub if not given"""
    reward: dict[str, float] = field(default_factory=dict)
    """rewards and their weights; a reward of your own is path/to/file.py:function; options follow a ?, as in
    "clip?prompt=a painting" (`sfumato rewards` lists all)"""
    combine: Literal["sum", "gdpo"] = "sum"
    """sum adds the rewards, then normalises in the group; gdpo normalises each, then adds (arXiv 2601.05242)"""
    max_unscored: float = 0.1
    """share of the images of a step that a reward may leave without a score (NaN) before the run stops"""
    held_out: tuple[str, ...] = ()
    """rewards that are measured on fixed conditions and never optimised, against reward hacking"""
    held_out_every: int = 10
    """steps between these measurements"""
    stop_when_hacking: bool = False
    """stop when the reward rises while held-out rewards, accuracy, diversity or entropy fall; else only warn.
    It needs `held_out`"""
    overlap_rewards: bool = False
    """score a batch while the next is drawn; the results are the same"""
    classes: tuple[str, ...] = ()
    """classes to train on, as names, numbers or ranges such as 0-499; all if none is given"""
    prompts: str | None = None
    """file of captions (.txt, .jsonl, .json, .csv) for a model that reads them, or a bundled one: emoji-captions"""
    caption_template: str = "a photo of a {name}"
    """what rewards that read text are told of a class"""
    text_encoder: str | None = None
    """hub id or folder of the text encoder, if not the model's own"""
    text_cache: str | None = None
    """folder for the features of captions; ~/.cache/sfumato/text if not given"""
    steps: int = 300
    """rollouts to draw and learn from"""
    labels_per_step: int = 32
    """classes or captions drawn a step"""
    group_size: int = 16
    """images of each class or caption, compared with one another (G)"""
    minibatch_size: int = 32
    """images an optimizer update"""
    micro_batch_size: int = 32
    """images that go through the network with gradients at once; less saves memory and changes nothing else"""
    sample_batch_size: int = 64
    """images drawn, decoded and scored at once, without gradients"""
    temperature: float = 0.7
    """divides the logits in sampling and scoring (tau)"""
    guidance: float = 0.0
    """classifier-free guidance in sampling and scoring; 0 is none (and 1 for LlamaGen)"""
    score_guidance: float | None = None
    """ablation: guidance of ratios and KL, if not that of sampling; 0 scores the conditional distribution alone"""
    loss: LossConfig = field(default_factory=LossConfig)
    """clip and KL weight"""
    learning_rate: float = 1e-4
    """AdamW's"""
    final_learning_rate: float = 1e-4
    """reached at the last step along a half cosine"""
    warmup_steps: int = 0
    """steps of linear warm-up"""
    weight_decay: float = 0.0
    """AdamW's"""
    max_grad_norm: float = 1.0
    """gradient clipping"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes under autocast; weights and optimizer stay fp32"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    seed: int = 0
    """of every random choice"""
    sample_every: int = 10
    """steps between pictures of the fixed classes and seeds"""
    save_every: int = 25
    """steps between checkpoints"""
    keep_checkpoints: int = 2
    """checkpoints kept, the newest"""
    eval_images: int = 256
    """fresh images scored before and after training; 0 for none"""

    @property
    def images_per_step(self) -> int:
        """Images drawn a step."""
        return self.labels_per_step * self.group_size

    def validate(self, num_workers: int = 1) -> None:
        """Check what can be checked before anything is loaded.

        Raises:
            UserError: a field is out of range, or sizes do not divide.
        """
        for name in ("steps", "labels_per_step", "minibatch_size", "micro_batch_size", "sample_batch_size"):
            at_least(name, getattr(self, name), 1)
        for name in ("sample_every", "save_every", "keep_checkpoints", "held_out_every"):
            at_least(name, getattr(self, name), 1)
        for name in ("warmup_steps", "seed", "eval_images", "guidance", "weight_decay", "final_learning_rate"):
            at_least(name, getattr(self, name), 0)
        at_least("score_guidance", self.score_guidance or 0, 0)
        at_least("group_size", self.group_size, 2)
        if not 0 <= self.max_unscored <= 1:
            raise UserError(f"max_unscored: {self.max_unscored} is no share; give 0 to 1")
        for name in ("temperature", "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: {getattr(self, name)} must be above 0")
        if self.stop_when_hacking and not self.held_out:
            raise UserError("stop_when_hacking: nothing is measured; name rewards with --held-out")
        if "{name}" not in self.caption_template:
            raise UserError(f"caption_template: {self.caption_template!r} has no {{name}}; write it in")
        if not self.reward:
            raise UserError("reward: none is given; give at least one with its weight, such as brightness 1")
        if self.images_per_step % self.minibatch_size:
            raise UserError(
                f"minibatch_size: {self.minibatch_size} does not divide the {self.images_per_step} images a step "
                f"({self.labels_per_step} labels × {self.group_size}); give a divisor"
            )
        for name in ("labels_per_step", "minibatch_size"):
            if getattr(self, name) % num_workers:
                raise UserError(
                    f"{name}: {getattr(self, name)} is not a multiple of the {num_workers} processes; make it one"
                )


def at_least(name: str, value: float, minimum: float) -> None:
    """Raise a ValueError that names the field if the value is below the minimum (or NaN)."""
    if not value >= minimum:
        raise UserError(f"{name}: {value} is too small; give at least {minimum}")
