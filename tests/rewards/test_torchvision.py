"""Rewards that need torchvision, and preprocessing compared with open_clip; skipped if a package is missing."""

from pathlib import Path

import pytest
import torch
from errors import bad_input
from photographs import as_tensor
from PIL import Image
from tiny import tiny_request

from sfumato.data.preprocessing import CLIP_MEAN, CLIP_STD
from sfumato.request import Words
from sfumato.rewards import build_reward
from sfumato.rewards.iqa import load_metric

torchvision = pytest.importorskip("torchvision")


def published_processor(picture: Image.Image) -> torch.Tensor:
    """Preprocess a picture like the package hpsv2: the longer side becomes 224 pixels, padded with black bars."""
    functional = torchvision.transforms.functional
    pixels = functional.to_tensor(picture)
    height, width = (round(side * 224 / max(pixels.shape[1:])) for side in pixels.shape[1:])
    bicubic = torchvision.transforms.InterpolationMode.BICUBIC
    pixels = functional.resize(pixels, [height, width], bicubic, antialias=True)
    top, left = (224 - height) // 2, (224 - width) // 2
    pixels = functional.pad(pixels, [left, top, 224 - width - left, 224 - height - top])
    return functional.normalize(pixels, CLIP_MEAN, CLIP_STD)[None]


def test_hps_of_photographs_as_published(clip_folder: Path, photographs: list[Image.Image], tmp_path: Path):
    """With the same checkpoint, the cosines differ from open_clip's with hpsv2's processor by less than 1e-3."""
    open_clip = pytest.importorskip("open_clip")
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(
            48,
            {"image_size": 224, "layers": 2, "width": 64, "head_width": 16, "patch_size": 32, "mlp_ratio": 2.0},
            {"context_length": 16, "vocab_size": 190, "width": 64, "heads": 4, "layers": 2, "mlp_ratio": 2.0},
        ).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name != "logit_scale":
                    parameter.add_(0.05 * torch.randn_like(parameter))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "hps.pt")
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip_folder)
    reward, found = build_reward({f"hps?weights={tmp_path}/hps.pt&base={clip_folder}": 1.0}), []
    for picture in photographs:
        words = Words(labels=torch.zeros(1, dtype=torch.long), names=("cat",), captions=("a photo of a cat",))
        tokens = tokenizer(["a photo of a cat"], padding="max_length", max_length=16, return_tensors="pt").input_ids
        with torch.no_grad():
            image = model.encode_image(published_processor(picture), normalize=True)
            expected = (image @ model.encode_text(tokens, normalize=True).T).item()
        found.append(reward(as_tensor(picture), words)[0].item())
        assert found[-1] == pytest.approx(expected, abs=1e-3)
    assert max(found) - min(found) > 0.01


def test_cosine_of_photographs_as_the_torchvision_processor(clip_folder: Path, photographs: list[Image.Image]):
    transformers = pytest.importorskip("transformers")
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(clip_folder, backend="torchvision")
    tokens = transformers.AutoTokenizer.from_pretrained(clip_folder)(["a cat"], return_tensors="pt")
    reward = build_reward({f"clip?model={clip_folder}&prompt=a cat": 1.0})
    for picture in photographs:
        with torch.no_grad():
            outputs = model(**tokens, **processor(images=picture, return_tensors="pt"))
        expected = (outputs.image_embeds @ outputs.text_embeds.T).item()
        assert reward(as_tensor(picture), tiny_request([0]).words)[0].item() == pytest.approx(expected, abs=1e-3)


def test_resnet50_of_photographs(photographs: list[Image.Image], tmp_path: Path):
    """Random weights, with torchvision's preprocessing for IMAGENET1K_V2."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.resnet50().eval()
        with torch.no_grad():
            network.fc.weight.mul_(0.05)  # untrained batch norms produce large features
    torch.save(network.state_dict(), tmp_path / "resnet50.pth")
    process = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    reward, found = build_reward({f"classifier?weights={tmp_path}/resnet50.pth": 1.0}), []
    for picture in photographs:
        with torch.no_grad():
            expected = network(process(picture)[None]).log_softmax(1)[0, 3].item()
        found.append(reward(as_tensor(picture), tiny_request([3]).words)[0].item())
        assert found[-1] == pytest.approx(expected, abs=1e-3)
    assert max(found) - min(found) > 0.01


@pytest.mark.filterwarnings("ignore")
def test_metrics_of_pyiqa(photographs: list[Image.Image]):
    """PIQE needs no weights and is negated, because lower is better. A batch gets the same scores as single images."""
    pyiqa = pytest.importorskip("pyiqa")
    images = torch.cat([as_tensor(picture.resize((128, 128))) for picture in photographs])
    words = tiny_request([0, 1, 2]).words
    reward = build_reward({"maniqa?metric=piqe": 1.0})
    scores = reward(images, words)[0]
    torch.testing.assert_close(scores, -pyiqa.create_metric("piqe", device="cpu")(images).flatten(), rtol=0, atol=1e-3)
    alone = torch.cat([reward(images[n : n + 1], words[n : n + 1])[0] for n in range(3)])
    torch.testing.assert_close(scores, alone, rtol=0, atol=1e-3)
    assert scores.std() > 0.1
    with bad_input("reward", "metric: ", "'psnr'", "maniqa"):
        build_reward({"maniqa?metric=psnr": 1.0})


@pytest.mark.filterwarnings("ignore")
def test_maniqa_is_deterministic(monkeypatch: pytest.MonkeyPatch):
    """The real network with random weights and few crops; its ViT backbone is not downloaded."""
    pytest.importorskip("pyiqa")
    timm, maniqa_arch = pytest.importorskip("timm"), pytest.importorskip("pyiqa.archs.maniqa_arch")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False))
    monkeypatch.setattr(maniqa_arch, "load_pretrained_network", lambda *args, **options: None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        metric = load_metric("maniqa", None)
    assert metric.net.test_sample == 1
    monkeypatch.setattr("sfumato.rewards.iqa.CROPS", 1)
    images = torch.rand(2, 3, 240, 240, generator=torch.Generator().manual_seed(0))
    reward, words = build_reward({"maniqa": 1.0}), tiny_request([0, 1]).words
    together = reward(images, words)[0]
    torch.testing.assert_close(reward(images[1:], words[1:])[0], together[1:], rtol=0, atol=1e-4)
    assert together.isfinite().all()
    load_metric.cache_clear()
