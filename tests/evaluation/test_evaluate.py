"""`sfumato evaluate`: targets, its output folder, and resuming after an interruption."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from errors import bad_input
from PIL import Image
from tiny import CLASS_NAMES, tiny_request

from sfumato.cli.main import main
from sfumato.data.images import FolderImages
from sfumato.emoji.judges import Classifier, ClassifierConfig
from sfumato.evaluation.features import Features
from sfumato.evaluation.image_sets import ArrayImages, DrawnImages, StoredImages, batches, write_image
from sfumato.evaluation.named_files import named_files
from sfumato.evaluation.runner import label
from sfumato.evaluation.suites import SUITES
from sfumato.evaluation.suites.accuracy import AccuracySuite
from sfumato.evaluation.suites.alignment import Alignment
from sfumato.evaluation.suites.diversity import Diversity
from sfumato.evaluation.suites.drawbench import DrawBench
from sfumato.evaluation.suites.entropy import Entropy
from sfumato.evaluation.suites.geneval import GenEval
from sfumato.evaluation.suites.guidance_sweep import GuidanceSweep
from sfumato.evaluation.suites.imagenet import ImageNet, Reference
from sfumato.evaluation.targets import PLAIN, Drawing, Target
from sfumato.families.library import load
from sfumato.files import state

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def classifier(monkeypatch: pytest.MonkeyPatch) -> Classifier:
    """Replace the bundled classifier by a random one of the tiny generator's classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Classifier(ClassifierConfig(num_classes=len(CLASS_NAMES), widths=(4, 6, 8)), CLASS_NAMES).eval()
    monkeypatch.setattr("sfumato.evaluation.recognition.load_classifier", lambda: made)
    return made


def test_drawn_images_go_on(tiny_model: Path, tmp_path: Path):
    request, seeds = tiny_request([0, 1, 2, 3, 4, 0, 1]), torch.arange(7)
    whole = DrawnImages(load(tiny_model), request.words, seeds, tmp_path / "whole")
    expected = torch.cat([images for images, _ in batches(whole, 3)])
    drawn = load(tiny_model).draw(request, seeds)
    torch.testing.assert_close(expected, drawn, rtol=0, atol=0.5 / 255 + 1e-6)  # 8 bits
    interrupted = DrawnImages(load(tiny_model), request.words, seeds, tmp_path / "part")
    _ = interrupted[0:2], interrupted[5:6]
    shutil.copytree(tmp_path / "part", tmp_path / "copy")
    resumed = DrawnImages(load(tiny_model), request.words, seeds, tmp_path / "copy")
    for size in (1, 4):
        assert torch.equal(torch.cat([images for images, _ in batches(resumed, size)]), expected)
    names = [name for _, part in batches(resumed, 4) for name in part.names]
    assert tuple(names) == request.words.names


def test_precision_of_drawn_images(tiny_model: Path, tmp_path: Path):
    request, seeds = tiny_request([0, 1, 2, 3]), torch.arange(4)
    with torch.autocast("cpu", torch.bfloat16):
        expected = load(tiny_model).draw(request, seeds)
    drawn = DrawnImages(load(tiny_model), request.words, seeds, tmp_path / "bf16", precision="bf16")[0:4]
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0.5 / 255 + 1e-6)
    assert not torch.equal(drawn, DrawnImages(load(tiny_model), request.words, seeds, tmp_path / "auto")[0:4])
    target = Target(str(tiny_model), tmp_path / "target", torch.device("cpu"))
    assert torch.equal(target.images(Drawing(precision="bf16"), lambda generator: request.words)[0:4], drawn)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_array_images(tmp_path: Path, write):
    pixels = np.random.default_rng(0).integers(0, 256, size=(7, 4, 5, 3), dtype=np.uint8)
    write(tmp_path / "some.npz", pixels)
    images = ArrayImages(tmp_path / "some.npz")
    assert len(images) == 7
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    for first, last in ((0, 3), (5, 7), (2, 4), (6, 9)):  # also backwards
        assert torch.equal(images[first:last], expected[first:last])


def test_wrong_array(tmp_path: Path):
    np.savez(tmp_path / "float.npz", np.zeros((2, 4, 4, 3)))
    np.savez(tmp_path / "named.npz", other=np.zeros(2))
    np.savez(tmp_path / "empty.npz", np.zeros((0, 4, 4, 3), dtype=np.uint8))
    for name, reason in (("float", "float64"), ("named", "no item named"), ("empty", "no images")):
        with bad_input("target", f"{name}.npz", "arr_0", reason):
            ArrayImages(tmp_path / f"{name}.npz")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damaged_array(tmp_path: Path, write: Any):
    """Damage is found at once, not after the images before it have been measured."""
    write(tmp_path / "some.npz", np.random.default_rng(0).integers(0, 256, size=(7, 8, 8, 3), dtype=np.uint8))
    content = bytearray((tmp_path / "some.npz").read_bytes())
    (tmp_path / "cut.npz").write_bytes(content[:700])
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.npz").write_bytes(content)
    with bad_input("reference", "flipped.npz", "replace it"):
        ArrayImages(tmp_path / "flipped.npz", field="reference")
    with bad_input("target", "cut.npz", "not a zip file"):
        ArrayImages(tmp_path / "cut.npz")


def test_array_in_fortran_order(tmp_path: Path):
    pixels = np.asfortranarray(np.random.default_rng(0).integers(0, 256, size=(7, 4, 5, 3), dtype=np.uint8))
    np.savez(tmp_path / "some.npz", pixels)
    expected = torch.from_numpy(pixels.copy("C")).permute(0, 3, 1, 2).float() / 255
    images = ArrayImages(tmp_path / "some.npz")
    assert images.size == (5, 4)
    assert torch.equal(images[2:5], expected[2:5])


def with_broken(folder: Path) -> Path:
    """Add files to a folder that look like images but are none."""
    (folder / "zero.png").touch()
    (folder / "text.jpg").write_text("hello")
    (folder / "folder.png").mkdir()
    Image.effect_noise((64, 64), 50).convert("RGB").save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:1000])
    return folder


def test_broken_images(tmp_path: Path, capsys: Capture):
    for number in range(3):
        write_image(tmp_path / f"{number}.png", torch.full((3, 4, 4), number / 4))
    images = StoredImages(with_broken(tmp_path))
    assert [file.name for file in images.files] == ["0.png", "1.png", "2.png"]
    told = capsys.readouterr().err
    assert told.startswith(f"sfumato: target: 3 images in {tmp_path}; left out: 3 files that cannot be read as images")
    assert told.count("\n") == 1
    assert all(name in told for name in ("cut.png: ", "text.jpg: ", "zero.png: ", "folder.png"))
    for number in range(3):
        (tmp_path / f"{number}.png").unlink()
    with bad_input("reference", "none of 3 image files", "cut.png"):
        StoredImages(tmp_path, field="reference")


def test_names_that_are_not_utf8(tmp_path: Path):
    folder = os.fsencode(tmp_path) + b"/pictures/k\xe4se"
    os.makedirs(folder)
    write_image(Path(os.fsdecode(folder + b"/\xff.png")), torch.zeros(3, 4, 4))
    images = StoredImages(tmp_path / "pictures")
    assert images.words.names == ("k\\xe4se",)
    target = Path(os.fsdecode(folder))
    before = Target(str(target), tmp_path, torch.device("cpu")).identity()
    assert Target(str(target), tmp_path, torch.device("cpu")).identity() == before
    out = tmp_path / "out"
    arguments = ["evaluate", str(target), "--suite", "alignment", "--classifier", "None", "--rewards", "darkness"]
    assert main([*arguments, "--out", str(out), "--device", "cpu"]) == 0
    assert json.loads((out / "results.json").read_text())["k-se"]["darkness"]["value"] == 1


def test_moved_or_copied(capsys: Capture, tiny_model: Path, tmp_path: Path):
    """Files are known by their content: other times and places do not matter, other contents do."""
    for name, grey in (("real", 0.5), ("drawn", 0.2)):
        for number in range(4):
            write_image(tmp_path / f"{name}/{number}.png", torch.full((3, 12, 12), grey + number / 10))
    options = ["--suite", "imagenet", "--extractor", "emoji", "--neighbors", "1", "--device", "cpu"]

    def run(work: Path) -> int:
        command = ["evaluate", str(work / "drawn"), *options, "--reference", str(work / "real")]
        return main([*command, "--out", str(work / "out")])

    first, second = tmp_path / "first", tmp_path / "second"
    for name in ("real", "drawn"):
        shutil.copytree(tmp_path / name, first / name)
    assert run(first) == 0
    results = (first / "out/results.json").read_text()
    shutil.move(first, second)
    for file in [*second.glob("real/*"), *second.glob("drawn/*")]:
        os.utime(file, (1, 1))
    features = second / "out/drawn/features/pooled.npy"
    time = features.stat().st_mtime_ns
    assert run(second) == 0
    assert (second / "out/results.json").read_text() == results
    assert features.stat().st_mtime_ns == time
    for name, told in (("real", "suite.reference"), ("drawn", "targets.drawn.state")):
        write_image(second / name / "0.png", torch.ones(3, 12, 12))
        capsys.readouterr()
        assert run(second) == 2
        assert f"with {'another content of ' if name == 'real' else ''}{told}" in capsys.readouterr().err
        shutil.copy(tmp_path / name / "0.png", second / name / "0.png")
    assert run(second) == 0


def test_leftovers_of_a_kill(tiny_model: Path, tmp_path: Path):
    """A kill while `evaluation.json` is written leaves a temporary file, which does not count."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.evaluation.json.tmp").write_text("{")
    arguments = ["evaluate", str(tiny_model), "--suite", "entropy", "--images", "1", "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0


def test_help_lists_the_suites(capsys: Capture):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert list(SUITES) == [name for name in lines if name in SUITES]
    assert "Inception Score, FID" in lines["imagenet"]
    with pytest.raises(SystemExit):
        main(["evaluate", "--suite", "entropy", "--help"])
    assert "guidance-sweep" not in capsys.readouterr().out


def test_stored_images(tmp_path: Path):
    for name, grey in (("cat/1", 0.2), ("ant/2", 0.4), ("cat/0", 0.6)):
        write_image(tmp_path / f"{name}.png", torch.full((3, 4, 4), grey))
    images = StoredImages(tmp_path)
    assert images.words.names == ("ant", "cat", "cat")
    assert images.words.labels.tolist() == [0, 1, 1]
    assert images.words.captions[0] == "a photo of a ant"
    torch.testing.assert_close(images[0:3][:, 0, 0, 0], torch.tensor([0.4, 0.6, 0.2]), rtol=0, atol=1e-6)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "cat/2.png")
    images = StoredImages(tmp_path)
    assert (images[3:4] == 1).all()  # transparent pixels become white
    Image.new("RGB", (6, 4)).save(tmp_path / "cat/3.png")
    with bad_input("target", "cat/3.png", "6×4", "2.png", "4×4"):
        StoredImages(tmp_path)
    resized = StoredImages(tmp_path, resized=True)
    assert resized.sized((8, 8))[0:5].shape == (5, 3, 8, 8)
    alike = FolderImages(tmp_path, 8)[torch.arange(5)][0]  # as for pre-training
    assert torch.equal(resized.sized((8, 8))[0:5], alike)


def test_identity_of_targets(tiny_model: Path, tmp_path: Path):
    write_image(tmp_path / "pictures/a.png", torch.zeros(3, 4, 4))
    model, pictures = (Target(str(p), tmp_path, torch.device("cpu")) for p in (tiny_model, tmp_path / "pictures"))
    assert not model.has_images
    assert pictures.has_images
    before = pictures.identity()
    assert pictures.identity() == before
    write_image(tmp_path / "pictures/a.png", torch.ones(3, 4, 4))
    assert pictures.identity() != before
    assert "transformer.safetensors" in model.identity()
    with bad_input("target", str(tmp_path / "pictures")):
        pictures.policy(PLAIN)
    for field, name in (("model", "nothing"), ("target", str(tmp_path / "nothing.npz"))):
        with bad_input(field, name):
            Target(name, tmp_path, torch.device("cpu")).identity()


def test_a_models_settings_are_part_of_its_identity(tiny_model: Path, tmp_path: Path):
    shutil.copytree(tiny_model, tmp_path / "model")
    model = Target(str(tmp_path / "model"), tmp_path, torch.device("cpu"))
    before, config = model.identity(), tmp_path / "model/config.json"
    assert model.identity() == before
    config.write_text(config.read_text().replace('"temperature": 1.0', '"temperature": 0.5'))
    assert model.identity() != before


def test_files_that_options_name(tmp_path: Path):
    (tmp_path / "r.py").write_text("x = 1")
    (tmp_path / "p.txt").write_text("a cat")
    rewards, drawing = (f"{tmp_path}/r.py:f?scale=2", "clip"), Drawing(weights=tmp_path)
    suite = DrawBench(prompts=f"{tmp_path}/p.txt", rewards=rewards, drawing=drawing)
    found = named_files(suite, tmp_path.parent)
    assert set(found) == {f"{tmp_path}/r.py", f"{tmp_path}/p.txt", str(tmp_path)}
    (tmp_path / "p.txt").write_text("a dog and a cat")
    assert {name for name, state in named_files(suite, tmp_path.parent).items() if state != found[name]} == {
        f"{tmp_path}/p.txt", str(tmp_path),
    }  # fmt: skip
    assert set(named_files(suite, tmp_path / "out")) == {f"{tmp_path}/r.py", f"{tmp_path}/p.txt"}


def test_state_of_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of large files, blocks at even distances are read, among them the first and the last."""
    monkeypatch.setattr("sfumato.files.WHOLE", 5 * 4096)
    content = bytearray(100_000)
    states = set()
    for place in (None, 0, 99_999, 50_000):
        changed = bytearray(content)
        if place is not None:
            changed[place] = 1
        (tmp_path / "x").write_bytes(changed)
        states.add(state(tmp_path / "x"))
    assert len(states) == 4
    (tmp_path / "x").write_bytes(content + b"0")
    assert state(tmp_path / "x") not in states
    (tmp_path / "y").write_bytes(b"small")
    before = state(tmp_path)
    (tmp_path / "y").write_bytes(b"smalL")  # a small file counts in full, beside a large one too
    assert state(tmp_path) != before
    (tmp_path / "y").rename(tmp_path / "z")
    assert state(tmp_path) != before


SUITES_WITH_FILES = {
    "prompts": (AccuracySuite(prompts="x"), Entropy(prompts="x"), DrawBench(prompts="x"), GenEval(prompts="x")),
    "weights": (ImageNet(extractor_weights="x"), Diversity(extractor_weights="x")),
    "classifiers": (AccuracySuite(classifier="x"), Alignment(classifier="x")),
    "references": (ImageNet(reference=Path("x")), Diversity(reference=Path("x"))),
    "detectors": (GenEval(detector="x"), GenEval(clip="x")),
    "rewards": tuple(
        Alignment(rewards=("brightness", name))
        for name in (
            "classifier?network=resnet50&weights=x", "clip?prompt=a&model=x&scale=2", "aesthetic?head=x", "hps?base=x",
            "pickscore?tokenizer=x", "ar-grpo?clip.model=x", "y.py:F?anything=x",
        )
    ),
    "models": (
        AccuracySuite(drawing=Drawing(weights=Path("x"))),
        AccuracySuite(drawing=Drawing(tokenizer=Path("x"))),
        AccuracySuite(drawing=Drawing(text_encoder="x")),
    ),
    "swept": (GuidanceSweep(of=Alignment(rewards=("emoji-clip?weights=x",))),),
}  # fmt: skip


@pytest.mark.parametrize("kind", SUITES_WITH_FILES)
def test_options_that_may_be_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    monkeypatch.chdir(tmp_path)
    for suite in SUITES_WITH_FILES[kind]:
        assert not named_files(suite, tmp_path / "out")
    (tmp_path / "x").write_text("1")
    for suite in SUITES_WITH_FILES[kind]:
        before = named_files(suite, tmp_path / "out")
        assert list(before) == ["x"], suite
        (tmp_path / "x").write_text((tmp_path / "x").read_text() + "1")
        assert named_files(suite, tmp_path / "out") != before


def test_options_that_are_never_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Values that are not files do not count as files, even if the working directory has folders of the same names."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "emoji", "inception", "emoji-captions", "geneval", "brightness", "clip", "ar-grpo", "cat", "0-1",
        "word-vectors", "a painting", "2", "emoji-rival", "resnet50",
    ):  # fmt: skip
        (tmp_path / name).mkdir()
    rewards = ("brightness?scale=2", "clip?prompt=a painting", "classifier?network=emoji-rival", "ar-grpo", "clip")
    drawing = Drawing(guidance=2.0, text_encoder="word-vectors")
    for suite in (
        AccuracySuite(prompts="emoji-captions"),
        Alignment(classifier="emoji", rewards=rewards, classes=("cat", "0-1"), seen=("cat",)),
        AccuracySuite(classifier="resnet50"),
        Diversity(extractor="emoji", classes=("cat",)),
        ImageNet(extractor="inception"),
        Entropy(prompts="emoji-captions", classes=("cat",)),
        DrawBench(prompts="emoji-captions", rewards=rewards, drawing=drawing),
        GenEval(prompts="geneval"),
    ):
        assert named_files(suite, tmp_path / "out") == {}, suite


def test_a_folder_of_the_name_of_an_option(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An evaluation can be resumed after a folder named emoji appears in the working directory."""
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", str(tiny_model), "--suite", "diversity", "--per-class", "2", "--extractor", "emoji"]
    command += ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 0
    (tmp_path / "emoji").mkdir()
    assert main(command) == 0


def test_stopped_while_the_reference_is_read(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_image(tmp_path / "real/a.png", torch.zeros(3, 12, 12))
    options = [
        "--suite",
        "diversity",
        "--per-class",
        "2",
        "--extractor",
        "emoji",
        "--reference",
        str(tmp_path / "real"),
    ]
    command = ["evaluate", str(tiny_model), *options, "--out", str(tmp_path / "out"), "--device", "cpu"]
    whole = Reference.features

    def stop(*arguments: Any) -> Features:
        whole(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Reference, "features", stop)
        assert main(command) == 130
    assert any((tmp_path / "out/reference").iterdir())
    assert main(command) == 0


def test_labels():
    assert label(["emoji-var", "runs/a", "/x/runs/b"]) == ["emoji-var", "a", "b"]
    assert label(["one/model", "two/model"]) == ["one-model", "two-model"]
    with bad_input("target", "a"):
        label(["a", "b", "a"])


def test_evaluation(capsys: Capture, classifier: Classifier, tiny_model: Path, tmp_path: Path):
    out = tmp_path / "out"
    arguments = ["evaluate", str(tiny_model), "--images", "12", "--out", str(out), "--device", "cpu"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert first.startswith("top-1 0.")
    name = tiny_model.name
    results = json.loads((out / "results.json").read_text())
    assert results[name]["top-1"]["parts"] == 12
    assert (out / f"{name}/images/000011.png").is_file()
    # Run again: nothing is drawn, and the output is the same.
    (out / f"{name}/images/000003.png").unlink()
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert not (out / f"{name}/images/000003.png").exists()
    # Without the measurement, only missing images are drawn.
    (out / f"{name}/measurement.json").unlink()
    time = (out / f"{name}/images/000004.png").stat().st_mtime_ns
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert (out / f"{name}/images/000004.png").stat().st_mtime_ns == time
    # Another evaluation is not written there.
    assert main([*arguments, "--seed", "1"]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("sfumato: out: ")
    assert "suite.drawing.seed 0, not 1" in complaint
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert main([*arguments[:-3], str(tmp_path / "full")]) == 2
    assert capsys.readouterr().err.startswith(f"sfumato: out: {tmp_path}/full ")


def test_interrupted(
    capsys: Capture, classifier: Classifier, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    arguments = ["evaluate", str(tiny_model), "--images", "12", "--batch-size", "4", "--device", "cpu"]

    def write_some(path: Path, image: torch.Tensor) -> None:
        if path.name == "000006.png":
            raise KeyboardInterrupt
        write_image(path, image)

    with monkeypatch.context() as patch:
        patch.setattr("sfumato.evaluation.image_sets.write_image", write_some)
        assert main([*arguments, "--out", str(out)]) == 130
        assert str(out) in capsys.readouterr().err
        assert main(arguments) == 130
        assert "--out" in capsys.readouterr().err
    images = out / tiny_model.name / "images"
    times = {path.name: path.stat().st_mtime_ns for path in images.iterdir()}
    assert sorted(times) == [f"{number:06d}.png" for number in range(6)]
    assert main([*arguments, "--out", str(out)]) == 0
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    assert {name: (images / name).stat().st_mtime_ns for name in times} == times
    for file in ("results.json", f"{tiny_model.name}/measurement.json", f"{tiny_model.name}/images/000011.png"):
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_several_targets(capsys: Capture, classifier: Classifier, tiny_model: Path, tmp_path: Path):
    assert main(["evaluate", str(tiny_model), "--images", "12", "--out", str(tmp_path / "a"), "--device", "cpu"]) == 0
    line = capsys.readouterr().out
    folder = tmp_path / "by-class"
    for number, file in enumerate(sorted((tmp_path / f"a/{tiny_model.name}/images").iterdir())):
        place = folder / CLASS_NAMES[number % 5] / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    out = tmp_path / "b"
    assert main(["evaluate", str(tiny_model), str(folder), "--images", "12", "--out", str(out), "--device", "cpu"]) == 0
    results = json.loads((out / "results.json").read_text())
    ours, stored = results[tiny_model.name], results["by-class"]
    assert f"top-1 {ours['top-1']['value']:.3f}" in line
    # The same images in another order.
    assert stored["top-1"]["value"] == pytest.approx(ours["top-1"]["value"])
    assert stored["top-1"]["difference"] == pytest.approx(0)
    low, high = stored["top-1"]["difference_interval"]
    assert low <= 0 <= high
    assert "\\begin{tabular}{lrrr}" in (out / "results.tex").read_text()
    assert (out / "results.md").read_text().splitlines()[0] == f"|  | {tiny_model.name} | by-class | difference |"


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        ([], "target", ""),
        (["MODEL", "--suite", "acuracy"], "suite", "'acuracy'"),
        (["MODEL", "--images", "0"], "images", "0"),
        (["MODEL", "--top-p", "2"], "top_p", "2.0"),
        (["MODEL", "--temperature", "0"], "temperature", "0.0"),
        (["MODEL", "--seed", "-1"], "seed", "-1"),
        (["MODEL", "nothing"], "model", "'nothing'"),
        (["MODEL", "--prompts", "emoji-captions"], "prompts", ""),
    ],
)
def test_wrong_evaluations(capsys: Capture, tiny_model: Path, arguments: list[str], field: str, value: str):
    assert main(["evaluate", *[str(tiny_model) if a == "MODEL" else a for a in arguments]]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"sfumato: {field}: ")
    assert value in lines[0]
