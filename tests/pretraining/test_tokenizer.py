"""Pre-training of the tokenizer: losses by hand, codebook averages by hand, one step."""

import math

import pytest
import torch
from tiny import TOKENIZER, tiny_var
from torch import Tensor

from sfumato.families.vqvae import MultiScaleQuantizer, MultiScaleVQVAE
from sfumato.pretraining.tokenizer_stage import (
    CodebookAverages,
    TokenizerTrainer,
    TokenizerTraining,
    edge_loss,
    psnr,
    tokenizer_loss,
)


class Quarters:
    """Images of four quarters, each in one of eight colors."""

    class_names: tuple[str, ...] = ("quarters",)

    def __init__(self, count: int = 12):
        rng = torch.Generator().manual_seed(0)
        quarters = torch.rand(count, 3, 2, 2, generator=rng).round()
        self.images = quarters.repeat_interleave(4, 2).repeat_interleave(4, 3)
        self.weights = torch.ones(count)
        self.validation = torch.zeros(count, dtype=torch.bool)

    def captions(self, index: Tensor, rng: torch.Generator) -> list[str]:
        return ["quarters"] * len(index)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[index], torch.zeros_like(index)


def fresh_tokenizer() -> MultiScaleVQVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MultiScaleVQVAE(TOKENIZER).train()


def test_psnr_by_hand():
    targets = torch.zeros(3, 3, 4, 4)
    images = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 1.0), torch.zeros(3, 4, 4)])
    # The mean squared errors are 0.01, 1 and 0; 0 is replaced with 1e-10.
    torch.testing.assert_close(psnr(images, targets), torch.tensor([20.0, 0.0, 100.0]), rtol=0, atol=1e-4)


def test_edge_loss_by_hand():
    targets, images = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    assert edge_loss(images + 0.5, targets).item() == 0.0  # a constant offset has no edges
    images[:, :, :2] = 1.0
    # One of three vertical differences is 1; all horizontal differences are 0.
    assert edge_loss(images, targets).item() == pytest.approx(1 / 3, abs=1e-6)
    images.zero_()[:, 0, :, 3] = 0.3
    # Horizontal: one of three columns, in one of three channels.
    assert edge_loss(images, targets).item() == pytest.approx(0.3 / 9, abs=1e-6)


def averages_of(codes: Tensor, decay: float) -> tuple[MultiScaleQuantizer, CodebookAverages]:
    quantizer = tiny_var().tokenizer.quantizer
    averages = CodebookAverages(quantizer, decay)
    with torch.no_grad():
        quantizer.codebook.weight.copy_(codes)
    return quantizer, averages


def test_codebook_averages_by_hand():
    quantizer, averages = averages_of(torch.zeros(16, 4), decay=0.75)
    averages.counts.fill_(2.0)
    averages.sums.copy_(torch.arange(16.0)[:, None].expand(16, 4) * 2)  # the vector of each code is its number
    vectors = torch.tensor([[8.0] * 4, [10.0] * 4, [-4.0] * 4])
    averages.update(vectors, torch.tensor([3, 3, 5]), torch.Generator().manual_seed(0))
    # counts: 0.75 * 2 + 0.25 * (2 and 1 and 0); sums: 0.75 * 2n + 0.25 * (18 and -4 and 0)
    counts = torch.full((16,), 1.5)
    counts[3], counts[5] = 2.0, 1.75
    torch.testing.assert_close(averages.counts, counts, rtol=0, atol=1e-6)
    expected = torch.arange(16.0)
    expected[3], expected[5] = (0.75 * 6 + 0.25 * 18) / 2.0, (0.75 * 10 - 0.25 * 4) / 1.75
    torch.testing.assert_close(quantizer.codebook.weight, expected[:, None].expand(16, 4), rtol=0, atol=1e-5)
    assert not quantizer.codebook.weight.requires_grad


def test_dead_codes_restart_at_live_vectors():
    quantizer, averages = averages_of(torch.zeros(16, 4), decay=0.9)
    vectors = torch.arange(12.0).reshape(3, 4)
    # All counts start at 0: only codes 0 and 1 are used, and the other fourteen restart.
    averages.update(vectors, torch.tensor([0, 0, 1]), torch.Generator().manual_seed(0))
    torch.testing.assert_close(quantizer.codebook.weight[0], vectors[:2].mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(quantizer.codebook.weight[1], vectors[2], rtol=0, atol=1e-5)
    for code in quantizer.codebook.weight[2:]:
        assert any(torch.allclose(code, vector, atol=1e-5) for vector in vectors)
    assert quantizer.codebook.weight[2:].unique(dim=0).shape[0] > 1
    torch.testing.assert_close(averages.counts[2:], torch.full((14,), 0.1), rtol=0, atol=1e-6)


def test_loss_by_hand():
    model, images = fresh_tokenizer(), Quarters()[torch.arange(4)][0]
    config = TokenizerTraining(l1_weight=0.5, edge_weight=0.25, commitment_weight=2.0)
    loss, stats, vectors, tokens = tokenizer_loss(model, images, config)
    with torch.no_grad():
        features = model.features(images)
        indices, accumulated, _ = model.quantizer.quantize(features)
        output, targets = model.decoder(model.post_conv(accumulated[-1])), images * 2 - 1
        distance = sum((a - features).square().mean() for a in accumulated) / 2
        error = output - targets
        reconstruction = error.square().mean() + 0.5 * error.abs().mean() + 0.25 * edge_loss(output, targets)
    assert loss.item() == pytest.approx((reconstruction + 3 * distance).item(), rel=1e-5)
    assert stats["quantization_error"] == pytest.approx(float(distance), rel=1e-5)
    assert stats["psnr"] == pytest.approx(psnr((output.clamp(-1, 1) + 1) / 2, images).mean().item(), rel=1e-4)
    assert torch.equal(tokens, torch.cat([i.flatten() for i in indices]))
    assert vectors.shape == (4 * (1 + 4), 4)


def test_gradients_reach_encoder_decoder_and_phi():
    model = fresh_tokenizer()
    trainer = TokenizerTrainer(model, Quarters(), TokenizerTraining(), torch.Generator().manual_seed(0))
    # Without the commitment term, the encoder learns only through the straight-through estimator.
    loss, *_ = tokenizer_loss(model, trainer.source[torch.arange(4)][0], TokenizerTraining(commitment_weight=0.0))
    loss.backward()
    for part in (model.encoder, model.decoder, model.pre_conv, model.post_conv):
        norms = [p.grad.norm().item() for p in part.parameters() if p.grad is not None]
        assert len(norms) == len(list(part.parameters()))
        assert max(norms) > 1e-6
    used = set(model.quantizer.phi_index)
    learning = {i for i, phi in enumerate(model.quantizer.phi) if any(p.grad is not None for p in phi.parameters())}
    assert learning == used
    assert model.quantizer.codebook.weight.grad is None


def test_training_learns_quarters():
    config = TokenizerTraining(steps=60, batch_size=6, learning_rate=1e-2, warmup_steps=5, codebook_decay=0.9)
    trainer = TokenizerTrainer(fresh_tokenizer(), Quarters(2), config, torch.Generator().manual_seed(0))
    stats = [trainer.step(step) for step in range(60)]
    assert all(math.isfinite(value) for line in stats for value in line.values())
    assert 0 < stats[-1]["codes_used"] <= 1
    first, last = (sum(s["psnr"] for s in part) / 5 for part in (stats[:5], stats[-5:]))
    assert last > first + 3
