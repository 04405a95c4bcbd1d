"""Pre-training of bitwise models: quantization and losses by hand, self-correction, and a run of both stages."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from errors import bad_input
from PIL import Image
from run_folders import assert_equal
from safetensors.torch import load_file
from tiny import BSQ_TOKENIZER, INFINITY, TOKENIZER, TRANSFORMER, tiny_infinity
from torch import Tensor

from sfumato.data.images import FolderImages
from sfumato.families.infinity.generator import Infinity
from sfumato.families.infinity.tokenizer import BSQTokenizer
from sfumato.families.library import load
from sfumato.interrupt import Interrupt
from sfumato.pretraining.bitwise_stages import (
    BitGeneratorTrainer,
    BitGeneratorTraining,
    BitTokenizerTrainer,
    BitTokenizerTraining,
    bitwise_loss,
    entropy_loss,
    random_flips,
    self_corrected,
    straight_through,
)
from sfumato.pretraining.generator_stage import GeneratorTraining
from sfumato.pretraining.pretrain import build_generator, pretrain, tokenizer_trainer
from sfumato.pretraining.pretrain_config import PretrainConfig
from sfumato.pretraining.tokenizer_stage import TokenizerTraining, edge_loss
from sfumato.recipes import PRETRAIN_RECIPES
from sfumato.settings import Settings

CONFIG = PretrainConfig(
    tokenizer=BSQ_TOKENIZER,
    transformer=replace(INFINITY, caption_width=64, num_caption_tokens=4, text_encoder="word-vectors"),
    tokenizer_training=BitTokenizerTraining(steps=3, batch_size=4, warmup_steps=1),
    generator_training=BitGeneratorTraining(steps=3, batch_size=4, warmup_steps=1),
    settings=Settings(guidance=(2.0, 1.5, 1.0), temperature=0.7),
    save_every=2,
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of two 12-pixel pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = torch.Generator().manual_seed(0)
    for name in ("red apple", "green pear", "blue plum"):
        (folder / name).mkdir()
        for number in range(2):
            pixels = torch.randint(256, (12, 12, 3), generator=rng, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{number}.png")
    return folder


def run(data: Path, folder: Path, stop_at: int = 0, resume: bool = False) -> bool:
    interrupt = Interrupt()

    def report(stage: str, step: int, steps: int, stats: dict[str, float]) -> None:
        if (stage, step) == ("generator", stop_at):
            interrupt.request(2, None)

    return pretrain(CONFIG, data, folder, resume=resume, report=report, interrupt=interrupt)


def tokenizer() -> BSQTokenizer:
    return tiny_infinity().tokenizer


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def test_straight_through_by_hand():
    directions = torch.tensor([0.5, -0.7, 0.0, 0.1], requires_grad=True)
    codes = straight_through(directions.view(1, 4, 1, 1))
    assert codes.flatten().tolist() == [0.5, -0.5, -0.5, 0.5]
    (codes.flatten() * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert directions.grad is not None
    assert directions.grad.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_entropy_loss_is_the_naive_one():
    directions = torch.nn.functional.normalize(
        torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)), dim=1
    )
    directions = 0.01 * directions  # soft enough for the naive formula

    def entropy(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    rows = directions.permute(0, 2, 3, 1).flatten(0, 2).tolist()
    soft = [[1 / (1 + math.exp(-4 * 100 * z / 4**0.5)) for z in row] for row in rows]
    each = sum(entropy(p) for row in soft for p in row) / len(soft)
    overall = sum(entropy(sum(column) / len(soft)) for column in zip(*soft, strict=True))
    assert entropy_loss(directions).item() == pytest.approx((each - overall) / 100, rel=1e-4)
    assert each < overall  # mixing raises the entropy


def test_entropy_loss_of_certain_bits():
    """Bits that are certain and balanced have the lowest loss, -d·log 2 / 100; those that never change have 0."""
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]]).view(4, 2, 1, 1) / 2**0.5
    assert entropy_loss(signs).item() == pytest.approx(-2 * math.log(2) / 100, rel=1e-5)
    fixed = signs[:1].expand(4, 2, 1, 1).clone().requires_grad_()
    loss = entropy_loss(fixed)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, fixed)
    assert gradient.isfinite().all()


def test_the_loss_quantizes_as_the_tokenizer_does():
    model, pixels = tokenizer(), images()
    config = BitTokenizerTraining(l1_weight=0.5, edge_weight=0.25, commitment_weight=0.0, entropy_weight=0.0)
    loss, stats = bitwise_loss(model, pixels, config)
    with torch.no_grad():
        output = model.decoder(model.quantize(model.features(pixels))[1][-1])
    error = output - (pixels * 2 - 1)
    expected = error.square().mean() + 0.5 * error.abs().mean() + 0.25 * edge_loss(output, pixels * 2 - 1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert 0 < stats["bit_balance"] <= 1
    heavier = replace(config, commitment_weight=2.0)
    added = bitwise_loss(model, pixels, heavier)[0] - loss
    assert added.item() == pytest.approx(2 * stats["quantization_error"], rel=1e-4)


def test_gradients_pass_through_every_scale():
    model, pixels = tokenizer().requires_grad_(True), images()
    config = BitTokenizerTraining(commitment_weight=0.0, entropy_weight=0.0)
    bitwise_loss(model, pixels, config)[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert max(p.grad.norm().item() for p in model.encoder.parameters() if p.grad is not None) > 1e-6


def test_self_correction_by_hand():
    """One channel of one image: the first scale is a pixel, and the finer ones repair what its flip has changed."""
    model = BSQTokenizer(replace(BSQ_TOKENIZER, scales=((1, 1), (2, 2)), latent_channels=1))
    features = torch.tensor([[[[1.5, 0.5], [0.5, 0.5]]]])
    bits, read = self_corrected(model, features, torch.zeros(1, 5, dtype=torch.bool))
    assert bits.tolist() == read.tolist() == [[1, 1, 0, 0, 0]]  # 1.5 - 1 is positive, and 0.5 - 1 is negative
    bits, read = self_corrected(model, features, torch.tensor([[True, False, False, False, True]]))
    assert bits.tolist() == [[1, 1, 1, 1, 1]]  # -1 was read instead of 1, so all that is left is positive
    assert read.tolist() == [[0, 1, 1, 1, 0]]


def test_share_of_flips():
    flips = random_flips(4000, (3, 12, 27), 0.4, torch.Generator().manual_seed(0))
    shares = flips[:, 15:].float().mean(1)  # those of the last scale, 27 bits
    assert shares.mean().item() == pytest.approx(0.2, abs=0.01)
    # Every scale of an image has its own share, from 0 to 0.4.
    assert shares.std().item() == pytest.approx((0.4**2 / 12 + 0.2 * 0.8 / 27) ** 0.5, rel=0.1)
    assert abs(torch.corrcoef(torch.stack([shares, flips[:, 3:15].float().mean(1)]))[0, 1].item()) < 0.05
    assert not random_flips(10, (3, 12, 27), 0.0, torch.Generator().manual_seed(0)).any()


def test_without_flips_bits_are_those_of_the_tokenizer():
    model = tokenizer()
    features = torch.randn(10, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    bits, read = self_corrected(model, features, torch.zeros(10, 42, dtype=torch.bool))
    assert torch.equal(bits, torch.cat(model.quantize(features)[0], dim=1))
    assert torch.equal(bits, read)


def test_finer_scales_correct_the_generators_own_mistakes(pictures: Path, monkeypatch: pytest.MonkeyPatch):
    source, rng = FolderImages(pictures, 12), torch.Generator().manual_seed(0)
    config = BitGeneratorTraining(bit_flips=0.0, own_tokens=1.0)
    trainer = BitGeneratorTrainer(build_generator(CONFIG, ()), source, config, rng)
    index, wrong = torch.arange(6), torch.zeros(6, 42, dtype=torch.bool)
    wrong[:, 0] = True
    # The generator would draw the first bit wrongly, and all others rightly.
    monkeypatch.setattr(trainer, "disturbed", lambda inputs, bits, own: bits ^ wrong if own == 0.7 else bits)
    inputs = trainer.model.inputs(trainer.words(index, rng))
    bits, read = trainer.lesson(index, inputs, 0.7)
    expected = self_corrected(trainer.model.tokenizer, trainer.features, wrong)
    assert torch.equal(bits, expected[0])
    assert torch.equal(read, expected[1])
    assert torch.equal(bits[:, :3], trainer.tokens[:, :3])
    assert not torch.equal(bits[:, 3:], trainer.tokens[:, 3:])
    assert torch.equal(torch.stack(trainer.lesson(index, inputs, 0.0)), trainer.tokens.expand(2, -1, -1))


def test_a_generator_learns_the_corrected_bits(pictures: Path, monkeypatch: pytest.MonkeyPatch):
    source, rng = FolderImages(pictures, 12), torch.Generator().manual_seed(0)
    trainer = BitGeneratorTrainer(build_generator(CONFIG, ()), source, BitGeneratorTraining(batch_size=6), rng)
    assert torch.equal(trainer.tokens, trainer.model.encode(source[torch.arange(6)][0]))
    seen = []
    monkeypatch.setattr(trainer, "loss", lambda inputs, tokens, read: seen.append((tokens, read)) or (
        sum(p.sum() for p in trainer.model.network.parameters()), {}))  # fmt: skip
    trainer.step(0)
    bits, read = seen[0]
    assert bits.shape == read.shape == (6, 42)
    assert 0.05 < (bits != read).float().mean() < 0.3
    # Some of the bits to predict differ from those of the picture, because they make up for flips.
    assert (bits[:, None] != trainer.tokens[None]).any(2).all(1).any()


def test_bits_of_large_scales_weigh_less(pictures: Path):
    source, rng = FolderImages(pictures, 12), torch.Generator().manual_seed(0)
    trainer = BitGeneratorTrainer(build_generator(CONFIG, ()), source, BitGeneratorTraining(), rng)
    losses = torch.cat([torch.full((2, count), value) for count, value in ((3, 1.0), (12, 10.0), (27, 100.0))], dim=1)
    # The sides are 1, 2 and 3, so the bits have the weights 1, 1/2 and 1/3: 3, 6 and 9 for each scale.
    assert trainer.mean(losses).item() == pytest.approx((3 * 1 + 6 * 10 + 9 * 100) / 18, rel=1e-5)


def test_training_improves_reconstruction(pictures: Path):
    training = BitTokenizerTraining(steps=20, batch_size=6, learning_rate=1e-2, warmup_steps=5)
    model = tokenizer().requires_grad_(True).train()
    trainer = BitTokenizerTrainer(model, FolderImages(pictures, 12), training, torch.Generator().manual_seed(0))
    stats = [trainer.step(step) for step in range(20)]
    first, last = (sum(line["psnr"] for line in part) / 5 for part in (stats[:5], stats[-5:]))
    assert last > first + 2


def test_a_decoder_alone_reads_the_same_bits(pictures: Path):
    training = BitTokenizerTraining(steps=20, batch_size=6, learning_rate=1e-2, warmup_steps=5, decoder_only=True)
    model, source = tokenizer().requires_grad_(True).train(), FolderImages(pictures, 12)
    bits, before = model.encode(images()), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = tokenizer_trainer(model, source, training, torch.Generator().manual_seed(0))
    stats = [trainer.step(step) for step in range(20)]
    assert stats[-1]["psnr"] > stats[0]["psnr"] + 2
    assert torch.equal(model.encode(images()), bits)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.startswith("decoder.")}


def test_both_stages_and_resuming(pictures: Path, tmp_path: Path):
    assert run(pictures, tmp_path / "whole")
    assert not run(pictures, tmp_path / "parts", stop_at=2)
    assert run(pictures, tmp_path / "parts", resume=True)
    whole, parts = (
        {path.name: load_file(path) for path in (tmp_path / name / "model").glob("*.safetensors")}
        for name in ("whole", "parts")
    )
    assert len(whole) == 2
    assert_equal(parts, whole)
    generator = load(tmp_path / "whole").generator
    assert isinstance(generator, Infinity)
    assert (generator.card.settings, generator.card.class_names) == (CONFIG.settings, ())
    lines = [json.loads(line) for line in (tmp_path / "whole/tokenizer/metrics.jsonl").read_text().splitlines()]
    assert {"psnr", "bit_balance", "quantization_error"} < lines[0].keys()
    for stage in ("tokenizer", "generator"):
        assert (tmp_path / f"whole/{stage}/samples/step-000003.png").is_file()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tokenizer_training": TokenizerTraining()}, "tokenizer_training"),
        ({"tokenizer": TOKENIZER, "transformer": TRANSFORMER}, "tokenizer_training"),
        (
            {"tokenizer": TOKENIZER, "transformer": TRANSFORMER, "tokenizer_training": TokenizerTraining()},
            "generator_training",
        ),
    ],
)
def test_settings_of_another_kind(changes: dict, field: str):
    with bad_input(field, "give"):
        build_generator(replace(CONFIG, **changes), ("ant",))


def test_shares_are_checked(tmp_path: Path):
    config = replace(CONFIG, generator_training=BitGeneratorTraining(bit_flips=1.5))
    with bad_input("generator_training.bit_flips", "1.5", "0 to 1"):
        pretrain(config, tmp_path, tmp_path / "run", resume=False, report=lambda *_: None, interrupt=Interrupt())


def test_images_must_be_square(pictures: Path, tmp_path: Path):
    wide = replace(CONFIG, tokenizer=replace(BSQ_TOKENIZER, scales=((1, 1), (2, 3))))
    with bad_input("tokenizer.scales", "8×12"):
        pretrain(wide, pictures, tmp_path / "run", resume=False, report=lambda *_: None, interrupt=Interrupt())


def test_generators_may_ignore_flips():
    config = replace(CONFIG, generator_training=GeneratorTraining())
    assert isinstance(build_generator(config, ()), Infinity)


def test_recipe():
    config = PRETRAIN_RECIPES["emoji-infinity"].build()
    generator = build_generator(config, ())
    assert isinstance(generator, Infinity)
    assert generator.tokenizer.config.image_size == (64, 64)
    assert sum(generator.units) == 8 * 130
    size = sum(p.numel() for part in (generator.network, generator.tokenizer) for p in part.parameters())
    assert 2 * size < 25 * 2**20  # bytes in half precision
