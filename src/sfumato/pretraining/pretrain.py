"""Pre-training: a generator (first its tokenizer, then the transformer on its tokens), a classifier, or a CLIP."""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from PIL import Image

from sfumato.data.images import ImageSource
from sfumato.data.pictures import save_png
from sfumato.emoji.augmentations import augmented_scenes
from sfumato.emoji.image_text import ImageTextConfig, ImageTextModel, save_image_text
from sfumato.emoji.judges import Classifier, ClassifierConfig, PatchClassifier, PatchClassifierConfig, save_classifier
from sfumato.emoji.rival_scenes import rival_scenes
from sfumato.emoji.source import open_source
from sfumato.engine.checkpoint import load_state, save_state
from sfumato.errors import UserError
from sfumato.families.library import build_generator, family_of, load_part, locate, read_config, save_model
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.llamagen.network import LlamaGenConfig
from sfumato.families.llamagen.tokenizer import VQConfig
from sfumato.families.var.generator import VAR
from sfumato.families.var.network import VARConfig
from sfumato.families.var.tokenizer import MultiScaleVQVAE, VQVAEConfig
from sfumato.files import check_writable, write_atomically, write_text
from sfumato.interrupt import Interrupt
from sfumato.pretraining.classifier_stage import ClassifierTrainer, ClassifierTraining
from sfumato.pretraining.generator_stage import GeneratorTrainer, GeneratorTraining
from sfumato.pretraining.image_text_stage import ImageTextTrainer, ImageTextTraining
from sfumato.pretraining.tokenizer_stage import TokenizerTrainer, TokenizerTraining
from sfumato.settings import Inference
from sfumato.text.encoders import load_text_encoder


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A generator trained from scratch."""

    tokenizer: VQVAEConfig | VQConfig
    """shape of the tokenizer"""
    transformer: VARConfig | LlamaGenConfig
    """shape of the transformer; `num_classes` is set from the data"""
    start_from: str | None = None
    """bundled model or folder whose tensors are taken over wherever name and shape agree; none: all start at random"""
    tokenizer_training: TokenizerTraining = field(default_factory=TokenizerTraining)
    """first stage"""
    generator_training: GeneratorTraining = field(default_factory=GeneratorTraining)
    """second stage"""
    inference: Inference = field(default_factory=Inference)
    """settings that the model folder carries: how it is best drawn from"""
    seed: int = 0
    """of weights and draws"""
    save_every: int = 250
    """steps between checkpoints and sample grids"""


@dataclass(frozen=True, kw_only=True)
class ClassifierPretrainConfig:
    """A classifier for evaluation, trained from scratch."""

    widths: tuple[int, ...] = (32, 64, 128, 192)
    """channels of each stage; every stage halves the side"""
    image_size: int = 64
    """side of the images in pixels"""
    training: ClassifierTraining = field(default_factory=ClassifierTraining)
    """the only stage"""
    seed: int = 0
    """of weights and draws"""
    save_every: int = 250
    """steps between checkpoints and sample grids"""


@dataclass(frozen=True, kw_only=True)
class RivalPretrainConfig:
    """A classifier for rewards, of another shape and from other images than that of evaluation."""

    widths: tuple[int, ...] = (64, 128, 192)
    """channels of each stage; every stage after the first merges 2 × 2 patches"""
    depths: tuple[int, ...] = (1, 2, 2)
    """blocks of each stage"""
    image_size: int = 64
    """side of the images in pixels"""
    training: ClassifierTraining = field(default_factory=ClassifierTraining)
    """the only stage"""
    seed: int = 1
    """of weights and draws"""
    save_every: int = 250
    """steps between checkpoints and sample grids"""


@dataclass(frozen=True, kw_only=True)
class ImageTextPretrainConfig:
    """An image-text model for rewards, trained from scratch."""

    shape: ImageTextConfig = field(default_factory=ImageTextConfig)
    """shape of the model"""
    image_size: int = 64
    """side of the images in pixels"""
    training: ImageTextTraining = field(default_factory=ImageTextTraining)
    """the only stage"""
    seed: int = 0
    """of weights and draws"""
    save_every: int = 250
    """steps between checkpoints and sample grids"""


AnyPretrainConfig = PretrainConfig | ClassifierPretrainConfig | RivalPretrainConfig | ImageTextPretrainConfig


@runtime_checkable
class Stage(Protocol):
    """What `run_stage` drives: a trainer of one model."""

    rng: torch.Generator

    def step(self, step: int) -> dict[str, float]: ...
    def sample(self) -> Image.Image: ...
    def state(self) -> dict: ...
    def load_state(self, state: dict) -> None: ...


Report = Callable[[str, int, int, dict[str, float]], None]
"""Called with the stage's name, the steps done, the steps in all, and the step's statistics."""


def claim(run_dir: Path, config: AnyPretrainConfig, source: ImageSource, resume: bool) -> None:
    """Make the run folder with `config.json` and `data.json`, or see that those there say the same.

    Raises:
        UserError: the folder is not empty and `resume` was not asked for, or its settings or data are others.
    """
    settings, saved = json.loads(json.dumps(dataclasses.asdict(config))), run_dir / "config.json"
    data, seen = {"items": len(source), "class_names": list(source.class_names)}, run_dir / "data.json"
    if resume:
        if not saved.exists():
            raise UserError(f"run_dir: {run_dir} holds no run to resume; start it without --resume")
        if json.loads(saved.read_text()) != settings:
            raise UserError(f"resume: {saved} has other settings; give the same ones or another --run-dir")
        if seen.exists() and json.loads(seen.read_text()) != data:
            raise UserError(f"data: these are not the images that the run began with (see {seen}); give the same")
    elif run_dir.exists() and any(run_dir.iterdir()):
        raise UserError(f"run_dir: {run_dir} is not empty; continue it with --resume or choose another --run-dir")
    check_writable("run_dir", run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(seen, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    write_text(saved, json.dumps(settings, indent=1) + "\n")


def pretrain(
    config: AnyPretrainConfig, data: Path, run_dir: Path, *, resume: bool, report: Report, interrupt: Interrupt
) -> bool:
    """Train what the config describes in `run_dir`, whose `model/` is the result; returns whether it was finished.

    Raises:
        UserError: the data cannot be read, or the run folder is taken.
    """
    run = {
        PretrainConfig: pretrain_generator,
        ClassifierPretrainConfig: pretrain_classifier,
        RivalPretrainConfig: pretrain_classifier,
        ImageTextPretrainConfig: pretrain_image_text,
    }[type(config)]
    return run(config, data, run_dir, resume=resume, report=report, interrupt=interrupt)


def pretrain_image_text(
    config: ImageTextPretrainConfig, data: Path, run_dir: Path, *, resume: bool, report: Report, interrupt: Interrupt
) -> bool:
    """Train an image-text model in `run_dir`, with its recall in `recall.json`; returns whether it was finished."""
    source = open_source(data, config.image_size)
    claim(run_dir, config, source, resume)
    torch.manual_seed(config.seed)  # initial weights
    model = ImageTextModel(config.shape)
    trainer = ImageTextTrainer(model, source, config.training, torch.Generator().manual_seed(config.seed))
    if not run_stage(trainer, run_dir / "image-text", config.training.steps, config.save_every, report, interrupt):
        return False
    write_atomically(run_dir / "model", lambda p: save_image_text(p, model))
    write_text(run_dir / "recall.json", json.dumps(trainer.report(), indent=1) + "\n")
    return True


def pretrain_classifier(
    config: ClassifierPretrainConfig | RivalPretrainConfig,
    data: Path,
    run_dir: Path,
    *,
    resume: bool,
    report: Report,
    interrupt: Interrupt,
) -> bool:
    """Train a classifier in `run_dir`, whose `model/` is the result; returns whether it was finished."""
    source = open_source(data, config.image_size)
    claim(run_dir, config, source, resume)
    torch.manual_seed(config.seed)  # initial weights
    names, draw = source.class_names, augmented_scenes
    if isinstance(config, RivalPretrainConfig):
        shape = PatchClassifierConfig(num_classes=len(names), widths=config.widths, depths=config.depths)
        model, draw = PatchClassifier(shape, names), rival_scenes
    else:
        model = Classifier(ClassifierConfig(num_classes=len(names), widths=config.widths), names)
    trainer = ClassifierTrainer(model, source, config.training, torch.Generator().manual_seed(config.seed), draw)
    if not run_stage(trainer, run_dir / "classifier", config.training.steps, config.save_every, report, interrupt):
        return False
    write_atomically(run_dir / "model", lambda p: save_classifier(p, model))
    top1, top5 = trainer.held_out_accuracy()
    write_text(run_dir / "accuracy.json", json.dumps({"top1": top1, "top5": top5}) + "\n")
    return True


def pretrain_generator(
    config: PretrainConfig, data: Path, run_dir: Path, *, resume: bool, report: Report, interrupt: Interrupt
) -> bool:
    """Train both stages in `run_dir`, whose `model/` is the result; returns whether they were finished.

    Raises:
        UserError: the data cannot be read, or the run folder is taken.
    """
    source = open_source(data, config.tokenizer.image_size)
    claim(run_dir, config, source, resume)
    torch.manual_seed(config.seed)  # initial weights
    shape, reader = config.transformer, None
    if isinstance(shape, LlamaGenConfig) and shape.caption_width:
        reader = load_text_encoder(shape.text_encoder)
        generator = build_generator(shape, config.tokenizer, ())
    else:
        shape = dataclasses.replace(shape, num_classes=len(source.class_names))
        generator = build_generator(shape, config.tokenizer, source.class_names)
    generator.inference = config.inference
    if config.start_from is not None:
        take_over(generator, locate(config.start_from))
    tokenizer = generator.tokenizer.requires_grad_(True).train()
    if not (run_dir / "tokenizer/model").exists():
        rng = torch.Generator().manual_seed(config.seed)
        first = TokenizerTrainer(tokenizer, source, config.tokenizer_training, rng)
        if not run_stage(
            first, run_dir / "tokenizer", config.tokenizer_training.steps, config.save_every, report, interrupt
        ):
            return False
        if isinstance(tokenizer, MultiScaleVQVAE):
            tokenizer.quantizer.usage.copy_(code_usage(tokenizer, source))
        # Half precision is what ships, so the generator learns the tokens of the rounded tokenizer.
        write_atomically(run_dir / "tokenizer/model", lambda p: save_model(p, generator, torch.float16))
    tokenizer.load_state_dict(load_part(run_dir / "tokenizer/model", "tokenizer"))
    tokenizer.requires_grad_(False).eval()

    rng = torch.Generator().manual_seed(config.seed)
    second = GeneratorTrainer(generator, source, config.generator_training, rng, reader)
    if not run_stage(
        second, run_dir / "generator", config.generator_training.steps, config.save_every, report, interrupt
    ):
        return False
    write_atomically(run_dir / "model", lambda p: save_model(p, second.averaged(), torch.float16))
    return True


def take_over(generator: VAR | LlamaGen, folder: Path) -> None:
    """Give a generator the tensors of a model folder wherever name and shape agree; of another family, the tokenizer's.

    Raises:
        UserError: none agree.
    """
    same_family = read_config(folder)["family"] == family_of(generator)
    taken = 0
    for part in ("tokenizer", "transformer") if same_family else ("tokenizer",):
        own = getattr(generator, part).state_dict()
        agreed = {k: v for k, v in load_part(folder, part).items() if k in own and own[k].shape == v.shape}
        getattr(generator, part).load_state_dict(agreed, strict=False)
        taken += len(agreed)
    if not taken:
        raise UserError(f"start_from: no tensor of {folder} has the name and shape of one here; give another model")


def run_stage(trainer: Stage, folder: Path, steps: int, save_every: int, report: Report, interrupt: Interrupt) -> bool:
    """Train from the stage's checkpoint, if there is one, to the end; returns False when interrupted (and saved)."""
    first = 0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = load_state(checkpoint)
        trainer.load_state(saved["trainer"])
        trainer.rng.set_state(saved["rng"])
        first = saved["step"]
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for step in range(first, steps):
        stats = trainer.step(step)
        done = step + 1
        report(folder.name, done, steps, stats)
        due = done % save_every == 0 or done == steps
        if due or interrupt:
            save_state(checkpoint, {"trainer": trainer.state(), "rng": trainer.rng.get_state(), "step": done})
        if due:
            save_png(trainer.sample(), folder / f"samples/step-{done:06d}.png")
            line = {"step": done, **stats, "seconds": round(time.monotonic() - began, 1)}
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        if interrupt:
            return False
    return True


@torch.no_grad()
def code_usage(tokenizer: MultiScaleVQVAE, source: ImageSource) -> torch.Tensor:
    """How often each scale uses each code (S, V), over the whole source."""
    units = [side * side for side in tokenizer.config.scales]
    counts = torch.zeros(len(units), tokenizer.config.vocab_size)
    for index in torch.arange(len(source)).split(64):
        for scale, tokens in enumerate(tokenizer.encode(source[index][0]).split(units, dim=1)):
            counts[scale] += torch.bincount(tokens.flatten(), minlength=counts.shape[1])
    return counts
