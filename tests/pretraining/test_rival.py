"""The classifier for rewards: its shape, training images and training, and that evaluation rejects it."""

import json
import math
from pathlib import Path

import pytest
import torch
from errors import bad_input
from PIL import Image
from run_folders import assert_equal
from safetensors.torch import load_file

from sfumato.data.images import FolderImages
from sfumato.emoji.augmentations import augmented_scenes
from sfumato.emoji.judges import PatchBlock, PatchClassifier, PatchClassifierConfig, load_classifier, load_rival
from sfumato.emoji.rival_scenes import coarsen, cover, deform, mottled, other_light, rival_scenes
from sfumato.interrupt import Interrupt
from sfumato.pretraining.classifier_stage import ClassifierTraining
from sfumato.pretraining.pretrain import pretrain_classifier
from sfumato.pretraining.pretrain_config import RivalPretrainConfig

CONFIG = RivalPretrainConfig(
    widths=(4, 8),
    depths=(1, 2),
    image_size=8,
    training=ClassifierTraining(steps=3, batch_size=4, warmup_steps=1),
    save_every=2,
)
IMAGES = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of two pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = torch.Generator().manual_seed(0)
    for name in ("red", "green"):
        (folder / name).mkdir()
        for number in range(2):
            pixels = torch.randint(256, (8, 8, 3), generator=rng, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{name}/{number}.png")
    return folder


def run(data: Path, folder: Path, stop_at: int | None = None, resume: bool = False) -> bool:
    interrupt = Interrupt()

    def report(stage: str, step: int, steps: int, stats: dict[str, float]) -> None:
        if step == stop_at:
            interrupt.request(2, None)

    return pretrain_classifier(CONFIG, data, folder, resume=resume, report=report, interrupt=interrupt)


def test_training(pictures: Path, tmp_path: Path):
    assert run(pictures, tmp_path / "whole")
    assert not run(pictures, tmp_path / "stopped", stop_at=1)
    assert run(pictures, tmp_path / "stopped", resume=True)
    stopped, whole = (load_file(tmp_path / name / "model/classifier.safetensors") for name in ("stopped", "whole"))
    assert_equal(stopped, whole)
    rival = load_rival(tmp_path / "whole/model")
    assert (rival.class_names, rival.config.widths, rival.config.depths) == (("green", "red"), (4, 8), (1, 2))
    assert rival.log_probs(torch.rand(2, 3, 8, 8)).exp().sum(1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert json.loads((tmp_path / "whole/accuracy.json").read_text())["top5"] == 1.0  # of two classes


def test_one_is_not_taken_for_the_other(pictures: Path, tmp_path: Path):
    assert run(pictures, tmp_path / "run")
    with bad_input("weights", "run/model ", " classifier"):
        load_classifier(tmp_path / "run/model")
    with bad_input("weights", "nothing ", "patch-classifier"):
        load_rival(tmp_path / "nothing")


def test_a_block_looks_at_its_neighbourhood():
    block = PatchBlock(4, 5).eval()
    x = torch.rand(1, 4, 9, 9, generator=torch.Generator().manual_seed(0))
    moved = x.clone()
    moved[0, 2, 4, 4] += 1
    changed = (block(moved) - block(x)).abs().amax(1)[0] > 0
    assert changed.nonzero().min(0).values.tolist() == [2, 2]
    assert changed.nonzero().max(0).values.tolist() == [6, 6]


def test_stages_halve_the_side():
    model = PatchClassifier(PatchClassifierConfig(num_classes=3), ("a", "b", "c"))
    assert model.features(torch.rand(1, 3, 64, 64)).shape == (1, 192, 4, 4)
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.65e6


def test_pictures_stay_in_range_and_differ_from_those_of_the_evaluation(pictures: Path):
    source = FolderImages(pictures, 16)
    one, other = (rival_scenes(source, 16, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert 0 <= one[0].min() < one[0].max() <= 1
    theirs, labels = augmented_scenes(source, 16, torch.Generator().manual_seed(3))
    assert torch.equal(labels, one[1])
    assert (theirs - one[0]).abs().mean() > 0.05


def test_covered_pictures_show_one_plain_rectangle():
    covered = cover(IMAGES, torch.Generator().manual_seed(0))
    hidden = (covered != IMAGES).all(1)  # (B, H, W)
    assert 20 < hidden.flatten(1).any(1).sum() < 44  # about half of the images
    for picture, where in zip(covered, hidden, strict=True):
        rows, columns = where.any(1), where.any(0)
        assert torch.equal(where, rows[:, None] & columns)
        assert max(rows.sum(), columns.sum()) <= 0.4 * 16 + 1
        if where.any():
            assert (picture[:, where].max(1).values == picture[:, where].min(1).values).all()


def test_augmentations_of_plain_pictures():
    grey, rng = torch.full((8, 3, 16, 16), 0.25), torch.Generator().manual_seed(0)
    for same in (coarsen(grey, rng), deform(grey, rng)):
        torch.testing.assert_close(same, grey, rtol=0, atol=1e-6)
    lit = other_light(grey, rng)  # light × 0.25 ** gamma
    assert (lit.amax((1, 2, 3)) - lit.amin((1, 2, 3))).max() < 1e-6
    assert 0.3 * 0.25 ** math.exp(0.5) <= lit.min() < lit.max() <= 0.25 ** math.exp(-0.5)
    backgrounds = mottled(64, 16, rng)
    assert backgrounds.std((2, 3)).max() > 0.05
    assert backgrounds.mean((2, 3)).std() > 0.15
