"""Every suite on tiny models, compared with direct computations."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from tiny import CLASS_NAMES, tiny_llamagen, tiny_request, tiny_var

from sfumato.cli.evaluate import choose_suite
from sfumato.cli.main import main
from sfumato.data.images import FolderImages
from sfumato.emoji.judges import (
    Classifier,
    ClassifierConfig,
    PatchClassifier,
    PatchClassifierConfig,
    load_classifier,
    load_own,
    save_classifier,
)
from sfumato.evaluation.features import emoji_features
from sfumato.evaluation.image_sets import StoredImages, write_image
from sfumato.evaluation.measurement import Measurement, read_measurement
from sfumato.evaluation.recognition import Recognition
from sfumato.evaluation.statistics import Moments, class_distances, frechet_distance, inception_score, inside, radii
from sfumato.evaluation.suites import SUITES, GuidanceSweep
from sfumato.evaluation.suites.entropy import Entropy
from sfumato.families.library import load, save_model
from sfumato.rewards import build_reward, pixels
from sfumato.settings import Settings


@pytest.fixture
def classifier(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Classifier:
    """Replace all classifiers by a random one of the tiny generator's classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Classifier(ClassifierConfig(num_classes=len(CLASS_NAMES), widths=(8, 8)), CLASS_NAMES)
    save_classifier(tmp_path / "classifier", made)
    made = load_classifier(tmp_path / "classifier")
    recognition = Recognition(CLASS_NAMES, made.log_probs)
    monkeypatch.setattr("sfumato.evaluation.suites.alignment.load_recognizer", lambda name, device: recognition)
    monkeypatch.setattr("sfumato.evaluation.features.load_classifier", lambda folder=None: made)
    return made


def measured(model: Path, suite: str, out: Path, *options: str) -> Measurement:
    """Run the command on one target and return the measurement."""
    assert main(["evaluate", str(model), "--suite", suite, "--out", str(out), "--device", "cpu", *options]) == 0
    return read_measurement(out / model.name / "measurement.json")


def spy(method: Callable, calls: list) -> Callable:
    """Return the method wrapped so that it records its positional arguments."""

    def noted(self, *arguments, **options):
        calls.append(arguments)
        return method(self, *arguments, **options)

    return noted


def drawn(model: Path, out: Path) -> torch.Tensor:
    """Return the images that the command stored."""
    images = StoredImages(out / model.name / "images")
    return images[0 : len(images)]


def test_alignment(classifier: Classifier, tmp_path: Path):
    generator, tiny_model = tiny_var(), tmp_path / "model"
    settings = Settings(guidance=1.5, temperature=0.8, top_k=900, top_p=0.96)
    generator.card = dataclasses.replace(generator.card, settings=settings)
    save_model(tiny_model, generator)
    found = measured(
        tiny_model, "alignment", tmp_path / "out", "--per-class", "3", "--seen", "0-1", "--batch-size", "4"
    )
    images = drawn(tiny_model, tmp_path / "out")
    assert len(images) == 15
    brightness = pixels.brightness(images, tiny_request([0] * 15).words)
    assert found["brightness"].parts == pytest.approx(brightness.tolist(), abs=1e-6)
    assert found["brightness, seen classes"].value == pytest.approx(brightness[:6].mean().item(), abs=1e-6)
    assert found["brightness, unseen classes"].value == pytest.approx(brightness[6:].mean().item(), abs=1e-6)
    right = classifier.log_probs(images).argmax(1) == torch.arange(5).repeat_interleave(3)
    assert found["top-1"].parts == tuple(right.float().tolist())
    assert found["top-5"].value == 1
    # Drawn with the model's own settings (top-k 900 keeps all of 16 codes).
    policy = load(tiny_model, guidance=1.5, temperature=0.8, top_k=0, top_p=0.96)
    expected = policy.draw(tiny_request([0, 0, 0, 1, 1, 1]), torch.arange(6))
    torch.testing.assert_close(images[:6], expected, rtol=0, atol=0.5 / 255 + 1e-5)


def test_alignment_of_captions(classifier: Classifier, text_model: Path, tmp_path: Path):
    found = measured(text_model, "alignment", tmp_path / "out", "--per-class", "1", "--rewards", "darkness")
    assert len(found["darkness"].parts) == len(CLASS_NAMES)
    assert len(found["top-1"].parts) == len(CLASS_NAMES)


def test_imagenet(classifier: Classifier, tiny_model: Path, tmp_path: Path):
    options = ["--extractor", "emoji", "--images", "20", "--batch-size", "7", "--splits", "4"]
    first = tmp_path / "first"
    other = ["--reference", str(tmp_path / "other" / tiny_model.name / "images")]
    measured(tiny_model, "alignment", tmp_path / "other", "--per-class", "3", "--seed", "100", "--guidance", "0")
    found = measured(tiny_model, "imagenet", first, *options, *other)
    fake, real = drawn(tiny_model, first), drawn(tiny_model, tmp_path / "other")
    ours, theirs = emoji_features(classifier, fake), emoji_features(classifier, real)
    assert ours.spatial.shape == (20, 7 * 4 * 4)  # 7 channels of the feature map halfway through the network
    torch.testing.assert_close(ours.log_probs, classifier.log_probs(fake))
    expected = {
        "Inception Score": inception_score(ours.log_probs, 4).mean().item(),
        "FID": frechet_distance(Moments.of(theirs.pooled), Moments.of(ours.pooled)),
        "sFID": frechet_distance(Moments.of(theirs.spatial), Moments.of(ours.spatial)),
        "precision": inside(ours.pooled, theirs.pooled, radii(theirs.pooled)).double().mean().item(),
        "recall": inside(theirs.pooled, ours.pooled, radii(ours.pooled)).double().mean().item(),
    }
    assert {name: figure.value for name, figure in found.items()} == pytest.approx(expected, rel=1e-4)
    # A set compared with itself.
    folder = first / tiny_model.name / "images"
    same = measured(folder, "imagenet", tmp_path / "same", *options, "--reference", str(folder))
    assert same["FID"].value == pytest.approx(0, abs=1e-6)
    assert same["sFID"].value == pytest.approx(0, abs=1e-6)
    assert same["precision"].value == same["recall"].value == 1


def test_published_moments(
    classifier: Classifier,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """guided-diffusion's reference batches contain the moments of all of ImageNet, and some of its images."""
    monkeypatch.setattr(
        "sfumato.evaluation.suites.imagenet.load_extractor", lambda *_: functools.partial(emoji_features, classifier)
    )
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    whole = emoji_features(classifier, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    moments = {
        "mu": whole.pooled.numpy().mean(0),
        "sigma": np.cov(whole.pooled.double().numpy(), rowvar=False),
        "mu_s": whole.spatial.numpy().mean(0),
        "sigma_s": np.cov(whole.spatial.double().numpy(), rowvar=False),
    }
    np.savez(tmp_path / "batch.npz", pixels[:12], **moments)
    options = ["--images", "10", "--reference", str(tmp_path / "batch.npz")]
    found = measured(tiny_model, "imagenet", tmp_path / "out", *options)
    ours = emoji_features(classifier, drawn(tiny_model, tmp_path / "out"))
    for name, kind in (("FID", "pooled"), ("sFID", "spatial")):
        distance = frechet_distance(Moments.of(getattr(whole, kind)), Moments.of(getattr(ours, kind)))
        assert found[name].value == pytest.approx(distance, rel=1e-4)
    some = whole.pooled[:12]
    assert found["precision"].value == inside(ours.pooled, some, radii(some)).double().mean().item()
    assert len(found["recall"].parts) == 12
    assert found["FID"].basis == "10 images; the moments in the reference"
    assert found["precision"].basis == "10 images; 12 reference images"
    assert "FID and sFID from the moments in" in capsys.readouterr().err
    # Without spatial moments, sFID comes from the images.
    np.savez(tmp_path / "some.npz", pixels[:12], mu=moments["mu"], sigma=moments["sigma"])
    options[-1] = str(tmp_path / "some.npz")
    half = measured(tiny_model, "imagenet", tmp_path / "half", *options)
    assert half["FID"].value == found["FID"].value
    distance = frechet_distance(Moments.of(whole.spatial[:12]), Moments.of(ours.spatial))
    assert half["sFID"].value == pytest.approx(distance, rel=1e-4)
    assert half["sFID"].basis == "10 images; 12 reference images"
    saved = json.loads((tmp_path / "half/results.json").read_text())[tiny_model.name]
    assert saved["FID"]["basis"] == "10 images; the moments in the reference"
    assert f"FID from the moments in {options[-1]}; sFID, precision, recall from its 12" in capsys.readouterr().err
    # The moments of a target are not used.
    measured(tmp_path / "some.npz", "imagenet", tmp_path / "target", *options)
    assert f"mu and sigma in {options[-1]} are not used; its 12 images are measured" in capsys.readouterr().err
    # Moments of another network are refused, and ignored if another network is requested.
    np.savez(
        tmp_path / "other.npz",
        pixels[:12],
        **{name: values[(slice(5),) * values.ndim] for name, values in moments.items()},
    )
    options[-1] = str(tmp_path / "other.npz")
    assert main(["evaluate", str(tiny_model), "--suite", "imagenet", *options, "--device", "cpu"]) == 2
    found = measured(tiny_model, "imagenet", tmp_path / "plain", *options, "--extractor", "emoji")
    expected = frechet_distance(Moments.of(some), Moments.of(ours.pooled))
    assert found["FID"].value == pytest.approx(expected, rel=1e-4)


def test_references_of_another_size(
    classifier: Classifier, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A folder is resized as images for pre-training are; an .npz file is refused before it is measured."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 12, 16, 3), dtype=np.uint8)
    (tmp_path / "real").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"real/{number}.png")
    (tmp_path / "real/6.png").touch()
    options = ["--extractor", "emoji", "--images", "8", "--reference"]
    found = measured(tiny_model, "imagenet", tmp_path / "out", *options, str(tmp_path / "real"))
    told = capsys.readouterr().err
    assert f"reference: 6 images in {tmp_path}/real; left out: 1 files that cannot be read" in told
    resized = FolderImages(tmp_path / "real", 8)[torch.arange(6)][0]
    theirs = emoji_features(classifier, resized)
    ours = emoji_features(classifier, drawn(tiny_model, tmp_path / "out"))
    distance = frechet_distance(Moments.of(theirs.pooled), Moments.of(ours.pooled))
    assert found["FID"].value == pytest.approx(distance, rel=1e-4)
    assert found["FID"].basis == "8 images; 6 reference images"
    np.savez(tmp_path / "real.npz", pixels)
    folder = tmp_path / "out" / tiny_model.name / "images"
    command = ["evaluate", str(folder), "--suite", "imagenet", *options, str(tmp_path / "real.npz")]
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "npz"), "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith(
        f"sfumato: reference: images in {tmp_path}/real.npz have 16×12 pixels, those to measure 8×8; give "
    )
    assert not list(tmp_path.glob("npz/**/*.npy"))


@pytest.mark.parametrize("make", [Classifier, PatchClassifier])
def test_own_classifier(make: type[Classifier | PatchClassifier], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What `sfumato pretrain emoji-classifier --data FOLDER` writes judges images of its classes, and rewards them."""
    names = ("disc", "box")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if make is Classifier:
            made = Classifier(ClassifierConfig(num_classes=2, widths=(8, 8)), names).eval()
        else:
            shape = PatchClassifierConfig(num_classes=2, widths=(8, 8), depths=(1, 1))
            made = PatchClassifier(shape, names).eval()
    run = tmp_path / "run"
    save_classifier(run / "model", made)
    made = load_own(run)
    for name in names:
        for number in range(3):
            noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(number)) * 0.3
            write_image(tmp_path / f"shapes/{name}/{number}.png", noise + (0.6 if name == "disc" else 0))
    images = StoredImages(tmp_path / "shapes")[0:6]  # sorted: boxes first
    labels = torch.tensor([1, 1, 1, 0, 0, 0])
    right = (made.log_probs(images).argmax(1) == labels).float().tolist()
    for folder in (run, run / "model"):
        out = tmp_path / f"{folder.name}-out"
        found = measured(tmp_path / "shapes", "accuracy", out, "--classifier", str(folder))
        assert found["top-1"].parts == tuple(right)
    found = measured(tmp_path / "shapes", "alignment", tmp_path / "a", "--classifier", str(run), "--rewards", "dark")
    assert found["top-1"].parts == tuple(right)
    reward = build_reward({f"classifier?weights={run}": 1.0})
    words = StoredImages(tmp_path / "shapes").words
    expected = made.log_probs(images).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(reward(images, words)[0], expected, rtol=0, atol=1e-5)
    for arguments, pieces in (
        (["evaluate", str(tmp_path / "shapes"), "--classifier", str(tmp_path / "shapes")], ("classifier: ", "shapes")),
        (["evaluate", str(tmp_path / "shapes"), "--classifier", "nothing"], ("classifier: ", "'nothing'", "emoji")),
        (["score", f"classifier?weights={tmp_path}/shapes", str(tmp_path)], ("weights: ", "does not contain")),
    ):
        capsys.readouterr()
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert all(piece in told for piece in pieces)


def test_diversity(classifier: Classifier, tiny_model: Path, tmp_path: Path):
    options = ["--per-class", "4", "--classes", "0", "2-4"]
    found = measured(tiny_model, "diversity", tmp_path / "out", *options)
    features = emoji_features(classifier, drawn(tiny_model, tmp_path / "out")).pooled
    expected = class_distances(features, torch.arange(4).repeat_interleave(4))
    assert found["within-class distance"].parts == pytest.approx(expected.tolist(), rel=1e-4)
    reference = str(tmp_path / "out" / tiny_model.name / "images")
    found = measured(tiny_model, "diversity", tmp_path / "again", *options, "--reference", reference)
    assert found["recall"].value == 1


@pytest.mark.parametrize("batch_size", ["2", "64"])
def test_entropy(tiny_model: Path, tmp_path: Path, batch_size: str):
    found = measured(tiny_model, "entropy", tmp_path / "out", "--images", "5", "--batch-size", batch_size)
    rollout = load(tiny_model).sample(tiny_request([0, 1, 2, 3, 4]), torch.arange(5))
    assert found["entropy"].parts == pytest.approx(rollout.entropy.mean(1).tolist(), rel=1e-4)
    assert found["unit 1 (1 token)"].parts == pytest.approx(rollout.entropy[:, 0].tolist(), rel=1e-4)
    assert found["unit 2 (4 tokens)"].value == pytest.approx(rollout.entropy[:, 1:].mean().item(), rel=1e-4)
    saved = json.loads((tmp_path / "out" / tiny_model.name / "entropy.json").read_text())
    assert saved["by_token"] == pytest.approx(rollout.entropy.mean(0).tolist(), rel=1e-4)
    assert saved["units"] == [1, 4]


def test_precision_of_entropy(tiny_model: Path, tmp_path: Path):
    options = ("--images", "5")
    exact, rounded, default = (
        measured(tiny_model, "entropy", tmp_path / name, *options, *precision)["entropy"].value
        for name, precision in {"a": ("--precision", "fp32"), "b": ("--precision", "bf16"), "c": ()}.items()
    )
    assert default == exact
    assert 0 < abs(rounded - exact) < 0.05
    assert Entropy().drawing.precision == "fp32"  # on a GPU too


def test_entropy_of_many_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_model(tmp_path / "model", tiny_llamagen())
    monkeypatch.setattr("sfumato.evaluation.suites.entropy.ROWS", 4)
    found = measured(tmp_path / "model", "entropy", tmp_path / "out", "--images", "5")
    names = ["entropy", "units 1 to 3 (3 tokens)", "units 4 to 5 (2 tokens)", "units 6 to 7 (2 tokens)"]
    assert list(found) == [*names, "units 8 to 9 (2 tokens)"]


def test_drawbench(text_model: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("a red apple\nan octopus\na dark night\n")
    (tmp_path / "reward.py").write_text(
        "import torch\n"
        "def count(images, words):\n"
        "    return torch.tensor([float(len(c.split())) for c in words.captions])\n"
    )
    options = ["--prompts", str(tmp_path / "prompts.txt"), "--per-prompt", "2", "--batch-size", "4"]
    options += ["--rewards", "brightness", f"{tmp_path}/reward.py:count"]
    found = measured(text_model, "drawbench", tmp_path / "out", *options)
    images = drawn(text_model, tmp_path / "out")
    assert found["brightness"].parts == pytest.approx(
        pixels.brightness(images, tiny_request([0] * 6).words).tolist(), abs=1e-6
    )
    assert found[f"{tmp_path}/reward.py:count"].parts == (3, 3, 2, 2, 3, 3)
    # The stored images are a target.
    folder = tmp_path / "out" / text_model.name / "images"
    assert measured(folder, "drawbench", tmp_path / "again", *options) == found


def test_guidance_sweep(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plotted = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", spy(Axes.plot, plotted))
    swept = measured(
        tiny_model, "guidance-sweep", tmp_path / "out", "--of", "entropy", "--images", "3", "--values", "0", "2"
    )
    for value in ("0", "2"):
        alone = measured(tiny_model, "entropy", tmp_path / value, "--images", "3", "--guidance", value)
        assert {name: swept[f"guidance {value}: {name}"] for name in alone} == alone
    assert swept["guidance 0: entropy"] != swept["guidance 2: entropy"]
    # The plot has one panel per figure, each with a line for this target.
    with Image.open(tmp_path / "out/results.png") as picture:
        assert picture.width > 400
    names = ["entropy", "unit 1 (1 token)", "unit 2 (4 tokens)"]
    expected = [([0.0, 2.0], [swept[f"guidance {value}: {name}"].value for value in (0, 2)]) for name in names]
    assert plotted == expected


@pytest.mark.parametrize(
    ("suite", "options", "field", "pieces"),
    [
        ("alignment", ["--per-class", "0"], "per_class", ["0"]),
        ("alignment", ["--rewards", "brihgtness"], "reward", ["'brihgtness'", " brightness"]),
        ("alignment", ["--seen", "unicorns"], "classes", ["'unicorns'"]),
        ("alignment", ["--seen", "0", "--classifier", "None"], "seen", []),
        ("alignment", [], "classifier", ["emoji"]),
        ("imagenet", [], "reference", []),
        ("imagenet", ["--reference", "x.npz", "--extractor", "emoji"], "reference", ["x.npz"]),
        ("imagenet", ["--reference", "x", "--extractor-weights", "x.pth"], "extractor_weights", ["x.pth"]),
        ("imagenet", ["--reference", "x", "--images", "3"], "images", ["3"]),
        ("diversity", ["--per-class", "1"], "per_class", ["1"]),
        ("entropy", ["--images", "0"], "images", ["0"]),
        ("entropy", ["--prompts", "emoji-captions"], "prompts", []),
        ("drawbench", [], "prompts", []),
        ("drawbench", ["--prompts", "x.txt"], "prompts", ["x.txt"]),
        ("guidance-sweep", ["--of", "speed"], "of", ["'speed'", "accuracy, alignment"]),
        ("guidance-sweep", ["--values", "1", "1"], "values", ["(1.0, 1.0)"]),
    ],
)
def test_wrong_options(
    capsys: pytest.CaptureFixture[str],
    tiny_model: Path,
    tmp_path: Path,
    suite: str,
    options: list[str],
    field: str,
    pieces: list[str],
):
    out = tmp_path / "out"
    assert main(["evaluate", str(tiny_model), "--suite", suite, "--out", str(out), "--device", "cpu", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"sfumato: {field}: ")
    assert all(piece in lines[0] for piece in pieces), lines[0]
    assert not list(out.rglob("*.png"))


def test_options_are_those_of_the_suite():
    for name, kind in SUITES.items():
        suite, rest = choose_suite(["a", "--suite", name, "--out", "b"])
        assert type(suite) is kind
        assert rest == ["a", "--out", "b"]
        assert kind.__doc__
    suite, _ = choose_suite(["a", "--suite=guidance-sweep", "--of=imagenet"])
    assert isinstance(suite, GuidanceSweep)
    assert type(suite.of) is SUITES["imagenet"]
