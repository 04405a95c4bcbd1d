"""Pre-training: a generator (first its tokenizer, then the transformer on its tokens), a classifier, or CLIP."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from sfumato.data.images import ImageSource
from sfumato.data.pictures import save_picture
from sfumato.emoji.augmentations import augmented_scenes
from sfumato.emoji.image_text import ImageTextModel, save_image_text
from sfumato.emoji.judges import Classifier, ClassifierConfig, PatchClassifier, PatchClassifierConfig, save_classifier
from sfumato.emoji.rival_scenes import rival_scenes
from sfumato.emoji.source import EmojiImages, open_source
from sfumato.engine.checkpoint import load_state, save_state
from sfumato.errors import UserError
from sfumato.evaluation.judging import check_judge
from sfumato.families.folder import read_config, read_tensors
from sfumato.families.library import family_of_shape, locate, save_model
from sfumato.files import claim_folder, finite, locked, read_lines, write_atomically, write_text
from sfumato.interrupt import Interrupt
from sfumato.notes import note
from sfumato.policy import Card
from sfumato.policy import Generator as ImageGenerator
from sfumato.pretraining.bitwise_stages import (
    BitGeneratorTrainer,
    BitGeneratorTraining,
    BitTokenizerTrainer,
    BitTokenizerTraining,
)
from sfumato.pretraining.classifier_stage import ClassifierTrainer
from sfumato.pretraining.generator_stage import GeneratorTrainer, GeneratorTraining
from sfumato.pretraining.image_text_stage import ImageTextTrainer
from sfumato.pretraining.pretrain_config import (
    AnyPretrainConfig,
    ClassifierPretrainConfig,
    ImageTextPretrainConfig,
    PretrainConfig,
    RivalPretrainConfig,
    check_ranges,
)
from sfumato.pretraining.tokenizer_stage import (
    AutoencoderTrainer,
    AutoencoderTraining,
    DecoderTrainer,
    TokenizerTrainer,
    TokenizerTraining,
)
from sfumato.pretraining.validation import hold_out, memorizing
from sfumato.settings import Settings


@runtime_checkable
class Stage(Protocol):
    """A trainer of one model, as `run_stage` drives it."""

    rng: torch.Generator

    def step(self, step: int) -> dict[str, float]: ...
    def validate(self) -> dict[str, float]: ...
    def sample(self) -> Image.Image: ...
    def state(self) -> dict: ...
    def load_state(self, state: dict) -> None: ...


Report = Callable[[str, int, int, dict[str, float]], None]
"""Function that is called with the name of the stage, the steps done, the total steps, and the step's statistics."""


def open_run(run_dir: Path, config: AnyPretrainConfig, data: Path, size: int, resume: bool) -> ImageSource:
    """Open the images, and begin the run as `begin` does.

    Raises:
        UserError: the data cannot be read; the folder is not empty and `resume` is False; or its settings or data
            differ.
    """
    source = open_source(data, size)
    begin(run_dir, config, source, resume)
    return source


def begin(run_dir: Path, config: AnyPretrainConfig, source: ImageSource, resume: bool) -> None:
    """Hold some images out, and create the run folder, or check that an existing one is of this run.

    Raises:
        UserError: the folder is not empty and `resume` is False, or its settings or data differ.
    """
    held_out = claim(run_dir, config, source, resume)
    classes = "1 class" if len(source.class_names) == 1 else f"{len(source.class_names)} classes"
    note(f"data: {len(source)} images of {classes}, {held_out or 'none'} of them held out for validation")


def claim(run_dir: Path, config: AnyPretrainConfig, source: ImageSource, resume: bool) -> int:
    """Create the run folder with `config.json` and `data.json`, or check that existing ones are the same; hold images
    of the source out, and return how many.

    Raises:
        UserError: the folder is not empty and `resume` is False, or its settings or data differ.
    """
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    data: dict[str, Any] = {"items": len(source), "class_names": list(source.class_names)}
    saved, seen = claim_folder("run_dir", run_dir, "config.json", resume=resume), run_dir / "data.json"
    if saved is not None and upgraded(saved) != upgraded(settings):
        raise UserError(f"resume: {run_dir}/config.json has other settings; give the same ones or another --run-dir")
    before = None if saved is None else json.loads(seen.read_text()) if seen.exists() else {}
    if before is None or "held_out" in before:  # a run of version 0.1 has been trained on all images
        data["held_out"] = hold_out(source)
    if before and before != data:
        raise UserError(f"data: these are not the images that the run started with (see {seen}); give the same images")
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(seen, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    write_text(run_dir / "config.json", json.dumps(settings, indent=1) + "\n")
    return len(data.get("held_out", ()))


def upgraded(settings: dict) -> dict:
    """Convert the settings of a run to the current form.

    Version 0.1 called the sampling settings `inference`, and had no judge and no `decoder_only`.
    """
    settings = {name: value for name, value in settings.items() if name != "judge"}
    if first := settings.get("tokenizer_training"):
        settings["tokenizer_training"] = {"decoder_only": False, **first}
    old = settings.pop("inference", None)
    return settings if old is None else {**settings, "settings": dataclasses.asdict(Settings(**old))}


def pretrain(
    config: AnyPretrainConfig, data: Path, run_dir: Path, *, resume: bool, report: Report, interrupt: Interrupt
) -> bool:
    """Train the config's model in `run_dir`, with the result in its `model/`; return whether training finished.

    Raises:
        UserError: a number is out of range, the data cannot be read, or the run folder is already in use.
    """
    check_ranges(config)
    run = {
        PretrainConfig: pretrain_generator,
        ClassifierPretrainConfig: pretrain_classifier,
        RivalPretrainConfig: pretrain_classifier,
        ImageTextPretrainConfig: pretrain_image_text,
    }[type(config)]
    with locked("run_dir", run_dir):
        return run(config, data, run_dir, resume=resume, report=report, interrupt=interrupt)


def pretrain_image_text(
    config: ImageTextPretrainConfig, data: Path, run_dir: Path, *, resume: bool, report: Report, interrupt: Interrupt
) -> bool:
    """Train an image-text model in `run_dir`, with its recall in `recall.json`; return whether training finished."""
    source = open_run(run_dir, config, data, config.image_size, resume)
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
    """Train a classifier in `run_dir`, with the result in its `model/`; return whether training finished."""
    source = open_run(run_dir, config, data, config.image_size, resume)
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
    top1, top5 = trainer.validation_accuracy()
    write_text(run_dir / "accuracy.json", json.dumps({"top1": top1, "top5": top5}) + "\n")
    return True


def pretrain_generator(
    config: PretrainConfig, data: Path, run_dir: Path, *, resume: bool, report: Report, interrupt: Interrupt
) -> bool:
    """Train both stages in `run_dir`, with the result in its `model/`; return whether training finished.

    Raises:
        UserError: the data cannot be read, or the run folder is already in use.
    """
    check_judge(config.judge)
    if config.tokenizer_training.decoder_only and config.start_from is None:
        raise UserError("tokenizer_training.decoder_only: no tokenizer to start from; give its model with --start-from")
    source = open_source(data, side_of(config.tokenizer))
    torch.manual_seed(config.seed)  # initial weights
    generator = build_generator(config, source.class_names)
    if config.start_from is not None:
        take_over(generator, locate(config.start_from), config.tokenizer_training.decoder_only)
    begin(run_dir, config, source, resume)
    if config.start_from is None and not resume and not isinstance(source, EmojiImages):
        note("start_from: all weights are random; your own images are learned much faster with --start-from emoji-var")
    tokenizer = generator.tokenizer.requires_grad_(True).train()
    if not (run_dir / "tokenizer/model").exists():
        rng = torch.Generator().manual_seed(config.seed)
        first = tokenizer_trainer(tokenizer, source, config.tokenizer_training, rng)
        if not run_stage(
            first, run_dir / "tokenizer", config.tokenizer_training.steps, config.save_every, report, interrupt
        ):
            return False
        if isinstance(tokenizer, CountsUsage):
            tokenizer.count_usage(source[index][0] for index in torch.arange(len(source)).split(64))
        # The model is saved in half precision, so the generator learns the tokens of the rounded tokenizer.
        write_atomically(run_dir / "tokenizer/model", lambda p: save_model(p, generator, torch.float16))
    tokenizer.load_state_dict(read_tensors(run_dir / "tokenizer/model/tokenizer.safetensors"))
    tokenizer.requires_grad_(False).eval()

    rng = torch.Generator().manual_seed(config.seed)
    second = generator_trainer(generator, source, config.generator_training, rng)
    if not run_stage(
        second, run_dir / "generator", config.generator_training.steps, config.save_every, report, interrupt
    ):
        return False
    write_atomically(run_dir / "model", lambda p: save_model(p, second.averaged(), torch.float16))
    return True


def build_generator(config: PretrainConfig, class_names: tuple[str, ...]) -> ImageGenerator:
    """Build a generator with initial weights, for these classes, or for captions if the network has no classes.

    Raises:
        UserError: the tokenizer belongs to another family, or a stage's settings to another kind of tokenizer.
    """
    family, shape = family_of_shape(config.transformer), config.transformer
    if not isinstance(config.tokenizer, family.tokenizer_shape):
        raise UserError(
            f"tokenizer: {type(config.tokenizer).__name__} is not a {family.name} tokenizer; give one of that family"
        )
    num_classes = getattr(shape, "num_classes", 0)  # some families read captions only
    if num_classes:
        shape = dataclasses.replace(shape, num_classes=len(class_names))
    generator = family.build(
        {"transformer": dataclasses.asdict(shape), "tokenizer": dataclasses.asdict(config.tokenizer)}
    )
    bitwise = hasattr(generator.tokenizer, "bits_of")
    if isinstance(config.tokenizer_training, BitTokenizerTraining) != bitwise:
        fitting = BitTokenizerTraining if bitwise else TokenizerTraining
        raise UserError(f"tokenizer_training: these settings are for another kind; give {fitting.__name__}")
    if isinstance(config.generator_training, BitGeneratorTraining) and not bitwise:
        raise UserError("generator_training: these settings are for bits; give GeneratorTraining")
    generator.card = Card(
        family=family.name,
        class_names=class_names if num_classes else (),
        settings=config.settings,
        judge=config.judge,
    )
    return generator


def side_of(tokenizer: Any) -> int:
    """Return the side in pixels of a tokenizer's images.

    Raises:
        UserError: the images are not square.
    """
    size = tokenizer.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    if height != width:
        raise UserError(f"tokenizer.scales: the last one is of {height}×{width} pixels; give one as high as wide")
    return height


def tokenizer_trainer(
    tokenizer: Any, source: ImageSource, training: AutoencoderTraining, rng: torch.Generator
) -> AutoencoderTrainer:
    """Return the trainer that these settings are for."""
    if training.decoder_only:
        return DecoderTrainer(tokenizer, source, training, rng)
    if isinstance(training, BitTokenizerTraining):
        return BitTokenizerTrainer(tokenizer, source, training, rng)
    assert isinstance(training, TokenizerTraining)
    return TokenizerTrainer(tokenizer, source, training, rng)


def generator_trainer(
    generator: ImageGenerator, source: ImageSource, training: GeneratorTraining, rng: torch.Generator
) -> GeneratorTrainer:
    """Return the trainer that these settings are for."""
    if isinstance(training, BitGeneratorTraining):
        return BitGeneratorTrainer(generator, source, training, rng)
    return GeneratorTrainer(generator, source, training, rng)


@runtime_checkable
class CountsUsage(Protocol):
    """A tokenizer that stores how often each code is used."""

    def count_usage(self, batches: Iterable[Tensor], /) -> None:
        """Count the codes of all images (B, 3, H, W) in [0, 1]."""
        ...


def take_over(generator: ImageGenerator, folder: Path, whole_tokenizer: bool = False) -> None:
    """Copy tensors from a model folder to a generator where name and shape match. If the model is of another family,
    only tensors of the tokenizer are copied.

    Raises:
        UserError: no tensor matches, or `whole_tokenizer` is True and one of the tokenizer's does not.
    """
    parts = {"tokenizer": generator.tokenizer, "transformer": generator.network}
    if read_config(folder)["family"] != generator.card.family:
        del parts["transformer"]
    taken = 0
    for part, module in parts.items():
        own, tensors = module.state_dict(), read_tensors(folder / f"{part}.safetensors")
        agreed = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
        if whole_tokenizer and part == "tokenizer" and agreed.keys() != own.keys():
            raise UserError(
                f"tokenizer_training.decoder_only: the tokenizer in {folder} has another shape than the one to train; "
                "give a model with the same one, --start-from"
            )
        module.load_state_dict(agreed, strict=False)
        taken += len(agreed)
    if not taken:
        raise UserError(f"start_from: no tensor in {folder} matches this model in name and shape; give another model")


REMEDY = (
    "train fewer steps, add images, start from a model (--start-from), or let a generator read noisy tokens "
    "(--generator-training.token-noise 0.5)"
)
"""What to do about a model that memorizes."""


def run_stage(trainer: Stage, folder: Path, steps: int, save_every: int, report: Report, interrupt: Interrupt) -> bool:
    """Train from the stage's checkpoint, if there is one, to the end; return False if interrupted (and saved)."""
    first, checkpoint, metrics = 0, folder / "checkpoint.pt", folder / "metrics.jsonl"
    if checkpoint.exists():
        saved = load_state(checkpoint)
        trainer.load_state(saved["trainer"])
        trainer.rng.set_state(saved["rng"])
        first = saved["step"]
    folder.mkdir(parents=True, exist_ok=True)
    # A killed run may have written steps after its last checkpoint; these steps are repeated.
    kept = [line for line in read_lines(metrics) if line["step"] <= first]
    write_text(metrics, "".join(json.dumps(line) + "\n" for line in kept))
    began, warned = time.monotonic() - (kept[-1]["seconds"] if kept else 0.0), False
    for step in range(first, steps):
        stats = trainer.step(step)
        done = step + 1
        due = done % save_every == 0 or done == steps
        if due:
            stats |= trainer.validate()
        line = finite({"step": done, **stats, "seconds": round(time.monotonic() - began, 1)})
        with metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
        report(folder.name, done, steps, stats)
        if due or interrupt:
            save_state(checkpoint, {"trainer": trainer.state(), "rng": trainer.rng.get_state(), "step": done})
        if due:
            draw_picture(trainer, folder / f"samples/step-{done:06d}.png")
        if due and not warned and (finding := memorizing(read_lines(metrics))):
            warned = True
            note(f"{folder.name}: {finding}")
        if interrupt:
            return False
    if finding := memorizing(read_lines(metrics)):
        note(f"{folder.name}: {finding}; {REMEDY}")
    return True


def draw_picture(trainer: Stage, path: Path) -> None:
    """Write a picture of the trainer's samples. It is only there to be looked at: if it fails, whatever the reason, a
    note says so."""
    try:
        save_picture(trainer.sample(), path)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        note(f"{path} could not be written ({type(error).__name__}: {reason}); the run goes on")
