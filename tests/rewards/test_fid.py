"""Leave-one-out FID against moments without each image and the Fréchet distance of evaluation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from errors import bad_input
from PIL import Image
from rich.console import Console
from run_folders import assert_same_run, checkpoint_of
from tiny import tiny_config
from torch import Tensor

from sfumato.emoji.judges import load_rival
from sfumato.evaluation.statistics import Moments as Set
from sfumato.evaluation.statistics import frechet_distance
from sfumato.rewards import build_reward
from sfumato.rewards.fid import Fid, Moments, Reference, downdated_roots, leave_one_out
from sfumato.testing import class_request
from sfumato.training.train import train

WIDTH = 12


def rows(count: int, seed: int, scale: float = 1.0) -> Tensor:
    """Return correlated features in float64 whose scales differ by two decades."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9), dtype=torch.float64)).Q
    scales = torch.logspace(-1, 1, WIDTH, dtype=torch.float64)
    return scale * (torch.randn(count, WIDTH, generator=rng, dtype=torch.float64) * scales) @ mix + 0.1 * seed


def moments_of(batches: list[Tensor], decay: float) -> tuple[Tensor, Tensor]:
    """Return the mean and covariance of all rows with the weights of their batches."""
    weights = torch.cat(
        [
            torch.full((len(batch),), decay ** (len(batches) - 1 - number) / len(batch), dtype=torch.float64)
            for number, batch in enumerate(batches)
        ]
    )
    weights, whole = weights / weights.sum(), torch.cat(batches)
    mean = weights @ whole
    return mean, (whole - mean).T @ (weights[:, None] * (whole - mean))


def distance(mean: Tensor, covariance: Tensor, reference: Set) -> float:
    return frechet_distance(Set(2, mean, covariance), reference)  # of two images, the scatter is the covariance


def reference_of(real: Set) -> Reference:
    return Reference.of(real.mean, real.covariance)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("count", [30, 16])
def test_distances_without_each_image(decay: float, count: int):
    real = Set.of(rows(200, seed=7))
    batches = [rows(count, seed) for seed in (1, 2, 3)]
    nothing = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    before = Moments(nothing[0], nothing, 0.0)
    for batch in batches[:-1]:
        before = before.after(batch, decay)
    found = leave_one_out(batches[-1], before, decay, reference_of(real))
    whole = distance(*moments_of(batches, decay), real)
    expected = []
    for left_out in range(count):
        rest = batches[-1][torch.arange(count) != left_out]
        expected.append(distance(*moments_of([*batches[:-1], rest], decay), real) - whole)
    assert max(map(abs, expected)) > 0.1
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    now = before.after(batches[-1], decay)
    mean, covariance = moments_of(batches, decay)
    torch.testing.assert_close(now.mean, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(now.covariance, covariance, rtol=0, atol=1e-10)


def test_fewer_images_than_features():
    """Without an image, the covariance loses a rank."""
    real, batch, nothing = Set.of(rows(200, seed=7)), rows(5, seed=1), torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    found = leave_one_out(batch, Moments(nothing[0], nothing, 0.0), 0.9, reference_of(real))
    whole = distance(*moments_of([batch], 0.9), real)
    rest = [moments_of([batch[torch.arange(5) != n]], 0.9) for n in range(5)]
    expected = torch.tensor([distance(*moments, real) - whole for moments in rest], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("decades", [0, 6, 12])
def test_square_roots_after_a_downdate(decades: int):
    rng = torch.Generator().manual_seed(0)
    values = torch.logspace(-decades, 0, WIDTH, dtype=torch.float64)
    parts = torch.randn(20, WIDTH, generator=rng, dtype=torch.float64)
    # z zᵀ may be subtracted if Σ z_k² / λ_k is at most 1.
    parts = parts * values.sqrt() / parts.norm(dim=1, keepdim=True) * torch.linspace(0, 0.999, 20)[:, None].double()
    found = downdated_roots(values, parts)
    exact = [torch.linalg.eigvalsh(torch.diag(values) - torch.outer(z, z)).clamp_min(0).sqrt().sum() for z in parts]
    # Rounding of the eigenvalues of the whole matrix limits what this can show.
    exact = torch.stack(exact) - values.sqrt().sum()
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-13 if decades == 0 else 1e-8)


def test_equal_images_have_equal_scores():
    real, nothing = Set.of(rows(50, seed=7)), torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    found = leave_one_out(rows(1, 3).expand(4, -1), Moments(nothing[0], nothing, 0.0), 0.9, reference_of(real))
    torch.testing.assert_close(found, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 pictures."""
    folder = tmp_path_factory.mktemp("real")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


def test_a_rare_image_is_worth_more_than_copies(pictures: Path):
    """Of a batch of copies and one image that differs, the one that differs brings the distance down."""
    name = f"fid?features=emoji&reference={pictures}"
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).repeat(8, 1, 1, 1)
    images[3] = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))
    reward = build_reward({name: 1.0})
    words = class_request([0] * 8).words
    scores, _ = reward(images, words)
    assert scores.argmax() == 3
    torch.testing.assert_close(scores[4:], scores[:1].expand(4), rtol=1e-3, atol=1e-2)
    assert reward(images[:1], words[:1])[0].isnan().all()
    # The scores are those of the features, times the number of images that the moments stand for.
    rival = load_rival()
    with torch.no_grad():
        features = rival.features(images * 2 - 1).amax((2, 3)).double()
    fid = Fid(str(pictures), "emoji", decay=0.5)
    fid.update(features.float())
    expected = 8 * 1.5 * leave_one_out(features, fid.moments, 0.5, fid.reference)
    torch.testing.assert_close(fid.scores(features.float(), words, torch.zeros(8, dtype=torch.long)), expected)


def test_moments_in_a_file(pictures: Path, tmp_path: Path):
    fid = Fid(str(pictures), "emoji")
    np.savez(tmp_path / "real.npz", mu=fid.reference.mean, sigma=fid.reference.covariance)
    again = Fid(str(tmp_path / "real.npz"), "emoji")
    torch.testing.assert_close(again.reference.root, fid.reference.root)
    np.savez(tmp_path / "small.npz", mu=np.zeros(3), sigma=np.zeros((3, 3)))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    for file, pieces in (
        ("small.npz", ("(3,)", "192 features", "same network")),
        ("other.npz", ("mu and sigma", "pytorch-fid's .npz")),
        ("broken.npz", ("mu and sigma",)),
        ("none.npz", ("mu and sigma", "No such file")),
        ("nowhere", ("not a folder",)),
    ):
        with bad_input("reward", f"reference: {tmp_path / file}", *pieces):
            build_reward({f"fid?features=emoji&reference={tmp_path / file}": 1.0})
    with bad_input("reward", "decay: 1.0"):
        build_reward({f"fid?features=emoji&decay=1&reference={pictures}": 1.0})
    with bad_input("reward", "reference is missing", "fid?reference=VALUE"):
        build_reward({"fid": 1.0})


def test_a_resumed_run_has_the_same_moments(tiny_model: Path, pictures: Path, tmp_path: Path):
    reward = {f"fid?features=emoji&decay=0.9&reference={pictures}": 1.0}
    config = tiny_config(tiny_model, reward=reward, steps=3, save_every=1, sample_every=3, keep_checkpoints=9)
    quiet = Console(quiet=True)
    assert train(config, tmp_path / "whole", console=quiet)
    half = tiny_config(tiny_model, reward=reward, steps=1, save_every=1, sample_every=3)
    assert train(half, tmp_path / "half", console=quiet)
    assert train(config, tmp_path / "half", resume=True, console=quiet)
    assert_same_run(tmp_path / "half", tmp_path / "whole", 3)
    (name,) = reward
    weights = [checkpoint_of(tmp_path / "whole", step)[1]["rewards"][name]["weight"] for step in (1, 2, 3)]
    assert weights == pytest.approx([1.0, 1.9, 2.71])
