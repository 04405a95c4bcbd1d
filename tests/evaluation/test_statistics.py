"""Every statistic compared with an independent implementation, to a relative accuracy of 1e-4."""

import importlib

import numpy as np
import pytest
import scipy.linalg
import torch
from errors import bad_input
from torch import Tensor

from sfumato.evaluation import statistics
from sfumato.evaluation.statistics import Moments, class_distances, frechet_distance, inception_score, inside, radii

rng = torch.Generator().manual_seed(0)
REAL = torch.randn(300, 24, generator=rng) @ torch.randn(24, 24, generator=rng)
FAKE = torch.randn(260, 24, generator=rng) @ torch.randn(24, 24, generator=rng) * 0.8 + 0.3
LOG_PROBS = (3 * torch.randn(203, 17, generator=rng)).log_softmax(1)


@pytest.fixture(params=[7, 64, 2048])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of rows per block; the results do not depend on it."""
    monkeypatch.setattr(statistics, "ROWS", request.param)
    return request.param


def test_moments(rows: int):
    moments = Moments.of(REAL)
    whole = REAL.double().numpy()
    assert moments.count == len(REAL)
    np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(whole, rowvar=False), rtol=1e-9, atol=1e-9)


def scipy_frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Compute the distance as in the original code of FID."""
    c, d = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = scipy.linalg.sqrtm(c @ d)
    return float(np.square(one.mean(0) - other.mean(0)).sum() + np.trace(c + d - 2 * np.real(root)))


def test_frechet_distance(rows: int):
    expected = scipy_frechet(REAL.double().numpy(), FAKE.double().numpy())
    assert frechet_distance(Moments.of(REAL), Moments.of(FAKE)) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(Moments.of(REAL), Moments.of(REAL)) == pytest.approx(0, abs=1e-8)


def test_frechet_distance_of_fewer_images_than_features():
    few, many = REAL[:10], FAKE[:15]
    # By hand: the trace of the root is the sum of the singular values of the product of the two centered sets.
    centered = [(x - x.mean(0)).double() / (len(x) - 1) ** 0.5 for x in (few, many)]
    trace = torch.linalg.svdvals(centered[0] @ centered[1].T).sum()
    expected = (
        (few.mean(0) - many.mean(0)).double().square().sum() + sum(c.square().sum() for c in centered) - 2 * trace
    )
    assert frechet_distance(Moments.of(few), Moments.of(many)) == pytest.approx(expected.item(), rel=1e-6)
    with bad_input("images", "1", "2"):
        frechet_distance(Moments.of(few[:1]), Moments.of(many))


def test_inception_score(rows: int):
    probabilities = LOG_PROBS.double().exp().numpy()
    expected = []
    for part in np.array_split(probabilities, 10):
        kl = part * (np.log(part) - np.log(part.mean(0)))
        expected.append(np.exp(kl.sum(1).mean()))
    np.testing.assert_allclose(inception_score(LOG_PROBS), expected, rtol=1e-9)
    assert len(inception_score(LOG_PROBS[:4])) == 4
    # The score is the number of classes if the images are certain and different, and 1 if they are all alike.
    sure = torch.full((6, 6), -torch.inf).fill_diagonal_(0)
    assert inception_score(sure, splits=1).item() == pytest.approx(6)
    assert inception_score(LOG_PROBS[:1].expand(5, -1), splits=1).item() == pytest.approx(1)


def numpy_distances(one: Tensor, other: Tensor) -> np.ndarray:
    a, b = one.double().numpy(), other.double().numpy()
    return np.sqrt(np.square(a[:, None] - b[None]).sum(-1))


def test_precision_and_recall(rows: int):
    real, fake = REAL[:90], FAKE[:70]
    by_hand = np.sort(numpy_distances(real, real), axis=1)[:, 3]  # the first distance is that of a row to itself
    np.testing.assert_allclose(radii(real), by_hand, rtol=1e-9)
    expected = (numpy_distances(fake, real) <= by_hand).any(1)
    assert 0 < expected.mean() < 1
    assert inside(fake, real, radii(real)).tolist() == expected.tolist()
    assert inside(real, real, radii(real)).all()
    with bad_input("images", "3", "4"):
        radii(real[:3])


def test_precision_and_recall_against_prdc():
    prdc = pytest.importorskip("prdc")
    expected = prdc.compute_prdc(REAL.double().numpy(), FAKE.double().numpy(), nearest_k=3)
    assert inside(FAKE, REAL, radii(REAL)).double().mean().item() == pytest.approx(expected["precision"])
    assert inside(REAL, FAKE, radii(FAKE)).double().mean().item() == pytest.approx(expected["recall"])


def test_against_torch_fidelity():
    pytest.importorskip("torchvision")
    pytest.importorskip("torch_fidelity")
    fid, isc, prc = (importlib.import_module(f"torch_fidelity.metric_{name}") for name in ("fid", "isc", "prc"))
    of_real, of_fake = (fid.fid_features_to_statistics(features.double()) for features in (REAL, FAKE))
    expected = fid.fid_statistics_to_metric(of_fake, of_real, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(Moments.of(REAL), Moments.of(FAKE)) == pytest.approx(expected, rel=1e-8)
    expected = isc.isc_features_to_metric(LOG_PROBS[:200], splits=10, shuffle=False)["inception_score_mean"]
    # torch-fidelity normalizes again what was already normalized in float32.
    assert inception_score(LOG_PROBS[:200]).mean().item() == pytest.approx(expected, rel=1e-7)
    expected = prc.calculate_precision_recall_full(FAKE.double(), REAL.double(), neighborhood=3)
    ours = inside(FAKE, REAL, radii(REAL)), inside(REAL, FAKE, radii(FAKE))
    assert [share.double().mean().item() for share in ours] == pytest.approx(list(expected))


def test_equal_features_are_neighbours():
    """Two equal images have distance 0; only the distance of a row to itself is left out."""
    rows = torch.tensor([[0.0], [0.0], [1.0], [3.0]])
    assert radii(rows, k=1).tolist() == [0, 0, 1, 2]


def test_class_distances():
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0], [0.0, 0.0], [9.0, 9.0]])
    labels = torch.tensor([2, 2, 0, 2, 1])
    # Only class 2 has several images, with distances 5, 0 and 5.
    assert class_distances(features, labels).tolist() == pytest.approx([10 / 3])
    assert len(class_distances(features, torch.arange(5))) == 0
