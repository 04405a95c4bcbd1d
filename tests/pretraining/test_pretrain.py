"""Pre-training on a tiny folder of images: stages, resuming, and the resulting models."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from errors import bad_input
from PIL import Image
from run_folders import assert_equal
from safetensors.torch import load_file
from tiny import TOKENIZER, TRANSFORMER

from sfumato.data.images import FolderImages
from sfumato.emoji.augmentations import augment
from sfumato.emoji.judges import load_classifier
from sfumato.families.library import load
from sfumato.families.var.generator import VAR
from sfumato.families.vqvae import MultiScaleVQVAE
from sfumato.interrupt import Interrupt
from sfumato.policy import Card
from sfumato.pretraining.classifier_stage import ClassifierTraining
from sfumato.pretraining.generator_stage import GeneratorTrainer, GeneratorTraining, cache_tokens
from sfumato.pretraining.pretrain import pretrain_classifier, pretrain_generator
from sfumato.pretraining.pretrain_config import ClassifierPretrainConfig, PretrainConfig
from sfumato.pretraining.tokenizer_stage import TokenizerTraining
from sfumato.request import ClassInputs

CONFIG = PretrainConfig(
    tokenizer=TOKENIZER,
    transformer=TRANSFORMER,
    tokenizer_training=TokenizerTraining(steps=4, batch_size=4, warmup_steps=1),
    generator_training=GeneratorTraining(steps=4, batch_size=4, warmup_steps=1),
    save_every=2,
)
CLASSIFIER = ClassifierPretrainConfig(
    widths=(4, 8), image_size=8, training=ClassifierTraining(steps=3, batch_size=4, warmup_steps=1), save_every=2
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of two pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = torch.Generator().manual_seed(0)
    for name in ("red", "green", "blue"):
        (folder / name).mkdir()
        for number in range(2):
            pixels = torch.randint(256, (8, 8, 3), generator=rng, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{name}/{number}.png")
    return folder


def run(data: Path, folder: Path, stop_at: tuple[str, int] | None = None, resume: bool = False) -> bool:
    """Run both stages, with Ctrl-C during one step of one of them."""
    interrupt = Interrupt()

    def report(stage: str, step: int, steps: int, stats: dict[str, float]) -> None:
        assert steps == 4
        assert stats
        if (stage, step) == stop_at:
            interrupt.request(2, None)

    return pretrain_generator(CONFIG, data, folder, resume=resume, report=report, interrupt=interrupt)


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretraining") / "run"
    assert run(pictures, folder)
    return folder


def files_of(folder: Path) -> dict[str, object]:
    """Return everything that a run has written, except for times."""
    contents: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            contents[name] = load_file(path)
        elif path.suffix == ".pt":
            contents[name] = torch.load(path, weights_only=True)
        elif path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            contents[name] = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
        elif path.is_file():
            contents[name] = path.read_bytes()
    return contents


def test_files(finished: Path):
    assert set(files_of(finished)) == {
        "config.json", "data.json",
        *(f"{stage}/{name}" for stage in ("tokenizer", "generator") for name in (
            "checkpoint.pt", "metrics.jsonl", "samples/step-000002.png", "samples/step-000004.png",
        )),
        *(f"{folder}/{name}" for folder in ("tokenizer/model", "model") for name in (
            "config.json", "tokenizer.safetensors", "transformer.safetensors",
        )),
    }  # fmt: skip
    lines = [json.loads(line) for line in (finished / "generator/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[0].keys() == {"step", "loss", "accuracy", "grad_norm", "seconds"}


def test_the_result_is_a_model(finished: Path, pictures: Path):
    policy = load(finished)
    generator = policy.generator
    assert isinstance(generator, VAR)
    assert generator.card.class_names == ("blue", "green", "red")
    assert generator.config.num_classes == 3
    state = torch.load(finished / "generator/checkpoint.pt", weights_only=True)
    for name, tensor in generator.network.state_dict().items():
        # The model is saved in half precision.
        assert torch.equal(tensor, state["trainer"]["average"][name].half().float()), name
    # The generator was trained, and code usage was counted, with the tokenizer as it is saved.
    source = FolderImages(pictures, 8)
    usage = generator.tokenizer.quantizer.usage
    assert usage.sum(1).tolist() == [6 * 1, 6 * 4]
    tokens, labels = cache_tokens(generator, source)
    assert tokens.shape == (6, 5)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_only_the_decoder_is_trained(finished: Path, pictures: Path, tmp_path: Path):
    training = TokenizerTraining(steps=30, batch_size=6, learning_rate=1e-2, warmup_steps=5, decoder_only=True)
    config = replace(
        CONFIG, start_from=str(finished), tokenizer_training=training, generator_training=GeneratorTraining(steps=0)
    )
    assert pretrain_generator(
        config, pictures, tmp_path / "run", resume=False, report=lambda *_: None, interrupt=Interrupt()
    )
    before, after = (load_file(run / "model/tokenizer.safetensors") for run in (finished, tmp_path / "run"))
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in after if name.split(".")[0] in ("decoder", "post_conv")}
    generators = [load_file(run / "model/transformer.safetensors") for run in (finished, tmp_path / "run")]
    assert_equal(generators[0], generators[1])
    lines = [json.loads(line) for line in (tmp_path / "run/tokenizer/metrics.jsonl").read_text().splitlines()]
    assert lines[0].keys() == {"step", "loss", "psnr", "grad_norm", "seconds"}
    assert sum(line["psnr"] for line in lines[-5:]) > sum(line["psnr"] for line in lines[:5]) + 3


def test_a_decoder_needs_a_tokenizer(pictures: Path, tmp_path: Path):
    config = replace(CONFIG, tokenizer_training=TokenizerTraining(decoder_only=True))
    with bad_input("tokenizer_training.decoder_only", "--start-from"):
        pretrain_generator(
            config, pictures, tmp_path / "run", resume=False, report=lambda *_: None, interrupt=Interrupt()
        )
    assert not (tmp_path / "run").exists()


def test_a_decoder_needs_the_whole_tokenizer(finished: Path, pictures: Path, tmp_path: Path):
    other = replace(TOKENIZER, vocab_size=TOKENIZER.vocab_size * 2)
    training = TokenizerTraining(decoder_only=True)
    config = replace(CONFIG, start_from=str(finished), tokenizer=other, tokenizer_training=training)
    with bad_input("tokenizer_training.decoder_only", "--start-from"):
        pretrain_generator(
            config, pictures, tmp_path / "run", resume=False, report=lambda *_: None, interrupt=Interrupt()
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "stops",
    [
        [("tokenizer", 1), ("tokenizer", 3), ("generator", 1)],
        [("tokenizer", 4), ("generator", 3)],
        [("tokenizer", 2), ("generator", 2), ("generator", 4)],
    ],
)
def test_resumed_equals_uninterrupted(finished: Path, pictures: Path, tmp_path: Path, stops: list[tuple[str, int]]):
    for number, stop in enumerate(stops):
        assert not run(pictures, tmp_path / "run", stop, resume=number > 0)
    assert run(pictures, tmp_path / "run", resume=True)
    assert_equal(files_of(tmp_path / "run"), files_of(finished))


def test_existing_runs_and_other_settings_are_refused(finished: Path, pictures: Path):
    def report(*args: object) -> None:
        raise AssertionError

    with bad_input("run_dir", str(finished), "--resume"):
        run(pictures, finished)
    other = replace(CONFIG, seed=1)
    with bad_input("resume", "config.json"):
        pretrain_generator(other, pictures, finished, resume=True, report=report, interrupt=Interrupt())


def test_a_run_of_version_0_1_goes_on(finished: Path, pictures: Path, tmp_path: Path):
    """Version 0.1 called the sampling settings inference, stored no guidance as 0, and had no judge and no
    `decoder_only`."""
    assert not run(pictures, tmp_path / "run", stop_at=("generator", 2))
    config = tmp_path / "run/config.json"
    saved = json.loads(config.read_text())
    del saved["judge"], saved["settings"], saved["tokenizer_training"]["decoder_only"]
    old = {**saved, "inference": {"guidance": 0.0, "temperature": 0.5, "top_k": 0, "top_p": 0.0}}
    config.write_text(json.dumps(old))
    with bad_input("resume", "config.json"):
        run(pictures, tmp_path / "run", resume=True)
    old["inference"]["temperature"] = 1.0
    config.write_text(json.dumps(old))
    assert run(pictures, tmp_path / "run", resume=True)
    assert_equal(files_of(tmp_path / "run"), files_of(finished))


def test_nothing_is_overwritten(pictures: Path, tmp_path: Path):
    (tmp_path / "project/model").mkdir(parents=True)
    (tmp_path / "project/model/precious.txt").write_text("mine")
    with bad_input("run_dir", "project ", "--resume"):
        run(pictures, tmp_path / "project")
    with bad_input("run_dir", "project ", "without --resume"):
        run(pictures, tmp_path / "project", resume=True)
    assert (tmp_path / "project/model/precious.txt").read_text() == "mine"
    assert len(list((tmp_path / "project").rglob("*"))) == 2


def test_resuming_on_other_images_is_refused(pictures: Path, tmp_path: Path):
    assert not run(pictures, tmp_path / "run", stop_at=("tokenizer", 2))
    other = tmp_path / "other"
    shutil.copytree(pictures, other)
    next(other.rglob("*.png")).unlink()
    with bad_input("data", "data.json"):
        run(other, tmp_path / "run", resume=True)


def test_wrong_data(tmp_path: Path):
    with bad_input("data", "nowhere "):
        run(tmp_path / "nowhere", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_code_usage_counts_tokens(pictures: Path):
    torch.manual_seed(0)
    tokenizer, source = MultiScaleVQVAE(TOKENIZER), FolderImages(pictures, 8)
    for size in (6, 4):  # earlier counts are discarded
        tokenizer.count_usage(source[index][0] for index in torch.arange(6).split(size))
    usage = tokenizer.quantizer.usage
    tokens = tokenizer.encode(source[torch.arange(6)][0])
    for scale, part in enumerate(tokens.split((1, 4), dim=1)):
        expected = [(part == code).sum().item() for code in range(16)]
        assert usage[scale].tolist() == expected


def fresh_trainer(pictures: Path, **changes: float) -> GeneratorTrainer:
    torch.manual_seed(0)
    source = FolderImages(pictures, 8)
    card = Card(family="var", class_names=source.class_names)
    generator = VAR(replace(TRANSFORMER, num_classes=3), MultiScaleVQVAE(TOKENIZER), card)
    config = GeneratorTraining(steps=30, batch_size=6, warmup_steps=2, learning_rate=5e-3)
    return GeneratorTrainer(generator, source, replace(config, **changes), torch.Generator().manual_seed(0))


def test_likelihood_rises(pictures: Path):
    trainer = fresh_trainer(pictures)
    losses = [trainer.step(step)["loss"] for step in range(30)]
    # At first, the head is close to zero, so all 16 codes are equally likely.
    assert losses[0] == pytest.approx(2.7726, abs=0.05)
    assert losses[-1] < losses[0] - 0.3


def test_loss_by_hand(pictures: Path):
    trainer = fresh_trainer(pictures)
    assert isinstance(trainer.model, VAR)
    tokens, labels = trainer.tokens[:2], torch.tensor([0, trainer.model.config.num_classes])
    inputs = ClassInputs(labels=torch.tensor([0, 1]), null=torch.tensor([False, True]))
    loss, stats = trainer.loss(inputs, tokens, tokens)
    with torch.no_grad():
        codes = trainer.model.tokenizer.quantizer.codes_before(tokens.split(trainer.model.units, dim=1))
        logits = trainer.model.network(labels, codes)
    expected = -logits.log_softmax(-1).gather(-1, tokens[..., None]).mean()
    assert loss.item() == stats["loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert stats["accuracy"] == pytest.approx((logits.argmax(-1) == tokens).float().mean().item(), abs=1e-6)


def test_average_of_the_weights(pictures: Path):
    trainer = fresh_trainer(pictures)
    parameter, average = (m.get_parameter("head.weight") for m in (trainer.model.network, trainer.average))
    expected = average.clone()
    for step in range(3):
        trainer.step(step)
        decay = (step + 1) / (step + 10)
        expected = decay * expected + (1 - decay) * parameter.detach()
        torch.testing.assert_close(average, expected, rtol=0, atol=1e-6)
    assert trainer.averaged().network is trainer.average


def test_share_of_dropped_labels(pictures: Path, monkeypatch: pytest.MonkeyPatch):
    trainer, seen = fresh_trainer(pictures, class_drop=0.25, batch_size=400), []
    loss = trainer.loss
    monkeypatch.setattr(trainer, "loss", lambda asked, tokens, read: (seen.append(asked), loss(asked, tokens, read))[1])
    trainer.step(0)
    assert seen[0].null.float().mean().item() == pytest.approx(0.25, abs=0.08)


def run_classifier(data: Path, folder: Path, stop_at: int = 0, resume: bool = False) -> bool:
    interrupt = Interrupt()

    def report(stage: str, step: int, steps: int, stats: dict[str, float]) -> None:
        if step == stop_at:
            interrupt.request(2, None)

    return pretrain_classifier(CLASSIFIER, data, folder, resume=resume, report=report, interrupt=interrupt)


def test_items_are_drawn_by_weight(pictures: Path, monkeypatch: pytest.MonkeyPatch):
    trainer, seen = fresh_trainer(pictures, class_drop=0.0, batch_size=500), []
    trainer.weights = torch.tensor([0.0, 3.0, 0.0, 0.0, 1.0, 0.0])
    loss = trainer.loss
    monkeypatch.setattr(trainer, "loss", lambda asked, tokens, read: (seen.append(asked), loss(asked, tokens, read))[1])
    trainer.step(0)
    counts = torch.bincount(seen[0].labels, minlength=3)
    assert counts[1] == 0
    assert counts[0].item() / 500 == pytest.approx(0.75, abs=0.08)


def test_classifier(pictures: Path, tmp_path: Path):
    assert run_classifier(pictures, tmp_path / "whole")
    assert not run_classifier(pictures, tmp_path / "stopped", stop_at=1)
    assert run_classifier(pictures, tmp_path / "stopped", resume=True)
    assert_equal(files_of(tmp_path / "stopped"), files_of(tmp_path / "whole"))
    classifier = load_classifier(tmp_path / "whole/model")
    assert classifier.class_names == ("blue", "green", "red")
    assert classifier.log_probs(torch.rand(2, 3, 8, 8)).exp().sum(1).tolist() == pytest.approx([1, 1], abs=1e-5)
    accuracy = json.loads((tmp_path / "whole/accuracy.json").read_text())
    assert 0 <= accuracy["top1"] <= accuracy["top5"] == 1.0  # the top five include all three classes


def test_augmented_images_stay_in_range():
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    one, other = (augment(images, torch.Generator().manual_seed(seed)) for seed in (0, 0))
    assert torch.equal(one, other)
    assert one.min() >= 0
    assert one.max() <= 1
    assert (one - images).abs().mean() > 0.05
