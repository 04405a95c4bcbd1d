"""Pre-training of next-token generators on classes and on captions, and of the image-text model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from errors import bad_input
from PIL import Image
from run_folders import assert_equal
from safetensors.torch import load_file
from tiny import LLAMAGEN, VQ_TOKENIZER, tiny_request

from sfumato.data.images import FolderImages
from sfumato.emoji.image_text import ImageTextConfig, ImageTextModel, load_image_text
from sfumato.emoji.source import EMOJI_SCENES, EmojiImages
from sfumato.families.library import load, load_generator
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.interrupt import Interrupt
from sfumato.policy import Generator
from sfumato.pretraining.generator_stage import GeneratorTrainer, GeneratorTraining
from sfumato.pretraining.image_text_stage import ImageTextTrainer, ImageTextTraining, contrastive_loss
from sfumato.pretraining.pretrain import build_generator, pretrain
from sfumato.pretraining.pretrain_config import AnyPretrainConfig, ImageTextPretrainConfig, PretrainConfig
from sfumato.pretraining.tokenizer_stage import TokenizerTraining
from sfumato.request import Inputs, TextInputs, Words
from sfumato.rewards import build_reward
from sfumato.settings import Settings
from sfumato.text.encoders import load_text_encoder

THINGS = (
    "apple", "trumpet", "horse", "rocket", "pizza", "snow", "crab", "tulip",
    "robot", "whale", "bread", "guitar", "tiger", "spider", "cactus", "medal",
    "lemon", "boat", "sheep", "candle", "owl", "violin", "carrot", "ghost",
    "train", "coffee", "shark", "mushroom", "penguin", "drum", "grapes", "kite",
)  # fmt: skip
CLASSES = PretrainConfig(
    tokenizer=VQ_TOKENIZER,
    transformer=LLAMAGEN,
    tokenizer_training=TokenizerTraining(steps=3, batch_size=4, warmup_steps=1),
    generator_training=GeneratorTraining(steps=3, batch_size=4, warmup_steps=1),
    save_every=2,
)
CAPTIONS = replace(
    CLASSES,
    transformer=replace(LLAMAGEN, num_classes=0, caption_width=64, num_caption_tokens=8, text_encoder="word-vectors"),
    tokenizer_training=TokenizerTraining(steps=0),
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of two 12-pixel pictures, one of them with a caption of its own."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = torch.Generator().manual_seed(0)
    for name in ("red apple", "green pear", "blue plum"):
        (folder / name).mkdir()
        for number in range(2):
            pixels = torch.randint(256, (12, 12, 3), generator=rng, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{number}.png")
    (folder / "red apple/1.txt").write_text("a bitten apple\n")
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the npm package with 32 emoji, each with its own colors."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "img/google/64").mkdir(parents=True)
    rng = torch.Generator().manual_seed(1)
    entries = []
    for number in range(32):
        pixels = torch.zeros(64, 64, 4, dtype=torch.uint8)
        pixels[..., :3] = (
            torch.randint(256, (4, 4, 3), generator=rng, dtype=torch.uint8)
            .repeat_interleave(16, 0)
            .repeat_interleave(16, 1)
        )
        pixels[8:56, 8:56, 3] = 255
        Image.fromarray(pixels.numpy(), "RGBA").save(folder / f"img/google/64/{number}.png")
        entry = {
            "name": THINGS[number].upper(),
            "category": "Food & Drink",
            "subcategory": "food",
            "sort_order": number,
        }
        entries.append({**entry, "has_img_google": True, "image": f"{number}.png"})
    (folder / "emoji.json").write_text(json.dumps(entries))
    return folder


def run(config: AnyPretrainConfig, data: Path, folder: Path, stop_at: int = 0, resume: bool = False) -> bool:
    interrupt = Interrupt()

    def report(stage: str, step: int, steps: int, stats: dict[str, float]) -> None:
        if step == stop_at and stage != "tokenizer":
            interrupt.request(2, None)

    return pretrain(config, data, folder, resume=resume, report=report, interrupt=interrupt)


def weights(folder: Path) -> dict[str, dict]:
    return {path.name: load_file(path) for path in (folder / "model").glob("*.safetensors")}


@pytest.fixture(scope="module")
def class_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    assert run(CLASSES, pictures, folder)
    return folder


def test_classes(class_run: Path, pictures: Path, tmp_path: Path):
    assert not run(CLASSES, pictures, tmp_path / "parts", stop_at=2)
    assert run(CLASSES, pictures, tmp_path / "parts", resume=True)
    assert_equal(weights(tmp_path / "parts"), weights(class_run))
    generator = load(class_run).generator
    assert generator.card.class_names == ("blue plum", "green pear", "red apple")
    assert generator.units == (1,) * 9


def test_captions_start_from_another_model(class_run: Path, pictures: Path, tmp_path: Path):
    steps = replace(CAPTIONS.generator_training, steps=0)
    settings = Settings(guidance=1.5, temperature=0.8)
    config = replace(CAPTIONS, start_from=str(class_run), generator_training=steps, settings=settings, judge="emoji")
    assert run(config, pictures, tmp_path / "text")
    text, classes = weights(tmp_path / "text"), weights(class_run)
    assert_equal(text["tokenizer.safetensors"], classes["tokenizer.safetensors"])
    shared = text["transformer.safetensors"].keys() & classes["transformer.safetensors"].keys()
    assert len(shared) == 2 * 6 + 3
    for name in shared:
        assert torch.equal(text["transformer.safetensors"][name], classes["transformer.safetensors"][name])
    generator = load(tmp_path / "text").generator
    assert isinstance(generator, LlamaGen)
    assert (generator.card.settings, generator.card.judge) == (settings, "emoji")
    assert (generator.reader.encoder, generator.reader.longest, generator.card.class_names) == ("word-vectors", 8, ())


def test_nothing_to_start_from(class_run: Path, pictures: Path, tmp_path: Path):
    wider = replace(VQ_TOKENIZER, base_channels=12, latent_channels=12, code_width=3, vocab_size=15, patch=1)
    config = replace(CAPTIONS, start_from=str(class_run), tokenizer=wider)
    config = replace(config, transformer=replace(CAPTIONS.transformer, width=32, feed_forward_width=40))
    with bad_input("start_from", str(class_run)):
        run(config, pictures, tmp_path / "run")


def test_captions_are_what_is_learnt(pictures: Path, tmp_path: Path):
    assert run(replace(CAPTIONS, tokenizer_training=CLASSES.tokenizer_training), pictures, tmp_path / "text")
    source, encoder = FolderImages(pictures, 12), load_text_encoder("word-vectors")
    rng = torch.Generator().manual_seed(0)
    trainer = GeneratorTrainer(load_generator(tmp_path / "text"), source, GeneratorTraining(), rng)
    words = trainer.words(torch.tensor([4, 5]), rng)
    assert words.names == ("red apple", "a bitten apple")
    inputs = trainer.model.inputs(words)
    assert isinstance(inputs, TextInputs)
    expected = encoder.encode(["red apple", "a bitten apple"])
    assert inputs.rows.tolist() == [0, 1]
    assert torch.equal(inputs.captions.features[1], expected[1])
    assert torch.equal(inputs.captions.features[0, -2:], expected[0])
    assert inputs.captions.mask.sum(1).tolist() == [len(e) for e in expected]
    dropped = inputs.drop(torch.tensor([True, True]))
    tokens = trainer.tokens[4:6]
    assert trainer.loss(dropped, tokens, tokens)[1] != trainer.loss(inputs, tokens, tokens)[1]


def test_long_captions_are_cut(pictures: Path, tmp_path: Path):
    steps = replace(CAPTIONS.generator_training, steps=0)
    assert run(replace(CAPTIONS, generator_training=steps), pictures, tmp_path / "text")
    source = FolderImages(pictures, 12)
    source.captions = lambda index, rng: ["red apple " * 10] * len(index)
    rng = torch.Generator().manual_seed(0)
    trainer = GeneratorTrainer(load_generator(tmp_path / "text"), source, GeneratorTraining(), rng)
    inputs = trainer.model.inputs(trainer.words(torch.tensor([0, 1]), rng))
    assert isinstance(inputs, TextInputs)
    assert inputs.captions.features.shape[1] == 8
    assert trainer.loss(inputs, trainer.tokens[:2], trainer.tokens[:2])[0].isfinite()


def text_trainer(package: Path, config: GeneratorTraining) -> GeneratorTrainer:
    return GeneratorTrainer(load_tiny_text(), EmojiImages(package, 12), config, torch.Generator().manual_seed(0))


def test_token_noise(package: Path):
    trainer = text_trainer(package, GeneratorTraining(token_noise=0.2))
    tokens = torch.arange(4000)[:, None] * 64 + torch.arange(64)
    disturbed = trainer.disturbed(tiny_request([0] * 4000).inputs, tokens, 0.0)
    from_neighbor = disturbed == tokens.roll(1, 0)
    assert torch.equal(disturbed[~from_neighbor], tokens[~from_neighbor])
    # Every image has its own share, from 0 to 0.2.
    shares = from_neighbor.float().mean(1)
    assert shares.mean().item() == pytest.approx(0.1, abs=0.003)
    assert shares[:2000].std().item() == pytest.approx((0.2**2 / 12 + 0.1 * 0.9 / 64) ** 0.5, rel=0.1)
    quiet = text_trainer(package, GeneratorTraining())
    assert quiet.disturbed(tiny_request([0] * 4000).inputs, tokens, 0.0) is tokens


@pytest.mark.parametrize("token_noise", [0.0, 0.5])
def test_own_tokens(package: Path, monkeypatch: pytest.MonkeyPatch, token_noise: float):
    trainer, read = text_trainer(package, GeneratorTraining(token_noise=token_noise)), []

    def logits(_: Inputs, tokens: torch.Tensor, settings: Settings) -> torch.Tensor:
        """Return logits for token 0 with probability 0.75, otherwise token 1."""
        assert settings == Settings()
        read.append(tokens)
        return torch.tensor([0.75, 0.25]).log().expand(*tokens.shape, 2).contiguous()

    monkeypatch.setattr(trainer.model, "logits", logits)
    tokens = torch.arange(2, 4002)[:, None] * 64 + torch.arange(64)
    disturbed = trainer.disturbed(tiny_request([0] * 4000).inputs, tokens, 0.8)
    # The generator reads the tokens after noise, and its draws then replace up to 80 % of them.
    from_neighbor = read[0] != tokens
    assert torch.equal(read[0][from_neighbor], tokens.roll(1, 0)[from_neighbor])
    assert from_neighbor.float().mean().item() == pytest.approx(token_noise / 2, abs=0.005)
    own = disturbed != read[0]
    assert own.float().mean().item() == pytest.approx(0.4, abs=0.01)
    assert own.float().mean(1).max() > 0.75
    assert (disturbed[own] == 0).float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert ((disturbed[own] == 0) | (disturbed[own] == 1)).all()


def test_own_tokens_grow_over_the_first_quarter(package: Path, monkeypatch: pytest.MonkeyPatch):
    trainer, most = text_trainer(package, GeneratorTraining(own_tokens=0.8, steps=16, batch_size=2)), []

    def disturbed(_: Inputs, tokens: torch.Tensor, own_tokens: float) -> torch.Tensor:
        most.append(own_tokens)
        return tokens

    monkeypatch.setattr(trainer, "disturbed", disturbed)
    for step in (0, 1, 2, 4, 15):
        trainer.step(step)
    assert most == pytest.approx([0, 0.2, 0.4, 0.8, 0.8])


def test_emoji_captions(package: Path):
    source = EmojiImages(package)
    words = [scene.words for scene in EMOJI_SCENES]
    assert source.caption(3 * 15 + 11, with_scene=True) == "rocket on a yellow background"
    assert source.caption(3 * 15 + 14, with_scene=True) == "rocket in dim light"
    assert source.caption(3 * 15, with_scene=False) == "rocket"
    drawn = source.captions(torch.arange(15).repeat(40), torch.Generator().manual_seed(0))
    share = sum(caption.endswith(tuple(words)) for caption in drawn) / 600
    assert share == pytest.approx(0.5, abs=0.07)
    # About a tenth of the captions with a scene are held out, each with all of its items.
    validation = {source.caption(i, True) for i in range(len(source)) if source.validation[i]}
    trained = {source.caption(i, True) for i in range(len(source)) if not source.validation[i]}
    assert not validation & trained
    assert len(validation) / (len(validation) + len(trained)) == pytest.approx(0.1, abs=0.03)


def test_held_out_pairs_are_not_trained_on(package: Path):
    source = EmojiImages(package, 12)
    text = GeneratorTrainer(load_tiny_text(), source, GeneratorTraining(), torch.Generator().manual_seed(0))
    assert text.weights[source.validation].sum() == 0
    assert torch.equal(text.weights[~source.validation], source.weights[~source.validation])


def load_tiny_text() -> Generator:
    return build_generator(CAPTIONS, ())


def test_contrastive_loss_by_hand():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    captions = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    # Similarities 0.6, 0 / 0.8, 1, times 2.
    logits = torch.tensor([[1.2, 0.0], [1.6, 2.0]]).double()
    rows = -(logits.log_softmax(1)[0, 0] + logits.log_softmax(1)[1, 1]) / 2
    columns = -(logits.log_softmax(0)[0, 0] + logits.log_softmax(0)[1, 1]) / 2
    loss, accuracy = contrastive_loss(images, captions, torch.tensor(2.0).log())
    assert loss.item() == pytest.approx(((rows + columns) / 2).item(), abs=1e-6)
    assert accuracy == 1.0
    capped, _ = contrastive_loss(images, captions, torch.tensor(20.0))
    at_100, _ = contrastive_loss(images, captions, torch.tensor(100.0).log())
    assert capped.item() == pytest.approx(at_100.item(), rel=1e-4)


def test_image_text_model_learns_and_scores(package: Path, tmp_path: Path):
    shape = ImageTextConfig(widths=(16, 32), text_hidden=32, width=16)
    training = ImageTextTraining(steps=120, batch_size=24, learning_rate=3e-3, warmup_steps=5)
    config = ImageTextPretrainConfig(shape=shape, image_size=16, training=training)
    assert run(config, package, tmp_path / "run")
    recall = json.loads((tmp_path / "run/recall.json").read_text())
    # 30 of the 32 classes are used in training; by chance, the recall is 1/32.
    assert recall["trained_among_all_recall_1"] > 5 / 32
    assert recall["validation_recall_5"] == 1.0  # there are two held-out classes
    assert recall["trained_among_all_recall_5"] >= recall["trained_among_all_recall_1"]
    source = EmojiImages(package, 16)
    reward = build_reward({f"emoji-clip?weights={tmp_path}/run/model": 1.0})
    labels = torch.tensor([0, 1, 2, 3])
    images = source[labels * 15 + 7][0]
    right = Words(labels=labels, names=tuple(source.class_names[:4]))
    wrong = Words(labels=labels, names=tuple(source.class_names[4:8]))
    scores, others = reward(images, right)[0], reward(images, wrong)[0]
    assert scores.mean() > others.mean() + 0.1
    model = load_image_text(tmp_path / "run/model")
    by_hand = (model.embed_images(images) * model.embed_captions(right.names)).sum(1)
    torch.testing.assert_close(scores, by_hand, rtol=0, atol=1e-6)
    # With a prompt, every image is compared with the prompt.
    prompted = build_reward({f"emoji-clip?prompt={right.names[2]}&weights={tmp_path}/run/model": 1.0})
    by_hand = model.embed_images(images) @ model.embed_captions(right.names[2:3])[0]
    torch.testing.assert_close(prompted(images, wrong)[0], by_hand, rtol=0, atol=1e-6)


def test_held_out_classes_are_not_trained_on(package: Path):
    source = EmojiImages(package, 16)
    trainer = ImageTextTrainer(
        ImageTextModel(ImageTextConfig(widths=(4, 8))),
        source,
        ImageTextTraining(batch_size=16),
        torch.Generator().manual_seed(0),
    )
    assert trainer.validation.nonzero()[:, 0].tolist() == [15, 31]
    for _ in range(20):
        index = trainer.draw()
        labels = trainer.labels[index].tolist()
        assert len(labels) == 16 == len(set(labels))
        assert not {15, 31} & set(labels)
        assert not source.validation[index].any()
