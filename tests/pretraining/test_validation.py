"""Held-out images of pre-training: which they are, that they are never drawn, and what their loss says."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from errors import bad_input
from PIL import Image
from tiny import TOKENIZER, TRANSFORMER, tiny_var

from sfumato.data.images import FolderImages
from sfumato.emoji.image_text import ImageTextConfig, ImageTextModel
from sfumato.emoji.judges import Classifier, ClassifierConfig
from sfumato.interrupt import Interrupt
from sfumato.pretraining.classifier_stage import ClassifierTrainer, ClassifierTraining
from sfumato.pretraining.generator_stage import GeneratorTrainer, GeneratorTraining
from sfumato.pretraining.image_text_stage import ImageTextTrainer, ImageTextTraining
from sfumato.pretraining.pretrain import pretrain
from sfumato.pretraining.pretrain_config import PretrainConfig
from sfumato.pretraining.tokenizer_stage import CodebookAverages, TokenizerTrainer, TokenizerTraining
from sfumato.pretraining.validation import held_out, hold_out, memorizing, validation_stats

CONFIG = PretrainConfig(
    tokenizer=TOKENIZER,
    transformer=TRANSFORMER,
    tokenizer_training=TokenizerTraining(steps=4, batch_size=4, warmup_steps=1),
    generator_training=GeneratorTraining(steps=4, batch_size=4, warmup_steps=1),
    save_every=2,
)


def draw(path: Path, seed: int) -> None:
    pixels = torch.randint(256, (8, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.numpy()).save(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of one class, ten of another, and nine of a third."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(59):
        name = "many" if seed < 40 else "some" if seed < 50 else "few"
        draw(folder / name / f"{seed:02d}.png", seed)
    return folder


def run(data: Path, folder: Path, stop_at: tuple[str, int] | None = None, resume: bool = False) -> bool:
    interrupt = Interrupt()

    def report(stage: str, step: int, steps: int, stats: dict[str, float]) -> None:
        if (stage, step) == stop_at:
            interrupt.request(2, None)

    return pretrain(CONFIG, data, folder, resume=resume, report=report, interrupt=interrupt)


def rows(run_dir: Path, stage: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / stage / "metrics.jsonl").read_text().splitlines()]


def pixels(source: FolderImages, items: list[int]) -> set[bytes]:
    return {image.numpy().tobytes() for image in source[torch.tensor(items)][0]}


def test_a_twentieth_of_each_class_that_is_large_enough(pictures: Path):
    source = FolderImages(pictures, 8)
    chosen = hold_out(source)
    assert source.class_names == ("few", "many", "some")
    assert torch.bincount(source[torch.tensor(chosen)][1], minlength=3).tolist() == [0, 2, 1]
    assert (source.weights == 0).nonzero()[:, 0].tolist() == chosen == held_out(source.weights).tolist()
    assert source.weights.sum() == 59 - 3


def test_the_choice_depends_on_the_images_alone(pictures: Path, tmp_path: Path):
    source = FolderImages(pictures, 8)
    chosen = pixels(source, hold_out(source))
    for path in pictures.rglob("*.png"):  # in the reverse order
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.parent.name / f"{99 - int(path.stem)}.png")
    other = FolderImages(tmp_path, 8)
    assert pixels(other, hold_out(other)) == chosen


def test_copies_are_held_out_together(tmp_path: Path):
    for seed in range(12):
        for copy in range(3):
            draw(tmp_path / "class" / f"{seed}-{copy}.png", seed)
    source = FolderImages(tmp_path, 8)
    chosen = hold_out(source)
    assert len(chosen) == 3
    assert len(pixels(source, chosen)) == 1
    for copy in range(30):  # one image, however often, is not held out
        draw(tmp_path / "one" / f"{copy}.png", 0)
    source = FolderImages(tmp_path / "one", 8)
    assert hold_out(source) == []
    assert source.weights.min() == 1


def test_only_some_of_many_are_measured():
    weights = torch.ones(10_000)
    weights[::10] = 0
    items = held_out(weights).tolist()
    assert len(items) == len(set(items)) == 256
    assert (items[0], items[-1]) == (0, 9990)


def test_means_over_unequal_parts():
    stats = validation_stats(torch.tensor([1, 2, 6]), 2, lambda part: {"loss": part.float().mean().item()})
    assert stats == {"val_loss": pytest.approx(3.0)}
    assert validation_stats(torch.empty(0, dtype=torch.long), 2, lambda part: {"loss": 1 / len(part)}) == {}


def test_stages_measure_what_they_do_not_draw(pictures: Path):
    torch.manual_seed(0)
    source, rng = FolderImages(pictures, 8), torch.Generator().manual_seed(0)
    chosen, model = hold_out(source), tiny_var()
    tokenizer = TokenizerTrainer(model.tokenizer.requires_grad_(True), source, TokenizerTraining(batch_size=2), rng)
    generator = GeneratorTrainer(model, source, GeneratorTraining(batch_size=2), rng)
    judge = Classifier(ClassifierConfig(num_classes=3, widths=(4, 8)), source.class_names)
    classifier = ClassifierTrainer(judge, source, ClassifierTraining(), rng)
    image_text = ImageTextTrainer(ImageTextModel(ImageTextConfig(widths=(4, 8))), source, ImageTextTraining(), rng)
    expected = {
        tokenizer: {"val_loss", "val_psnr"},
        generator: {"val_loss", "val_accuracy"},
        classifier: {"val_loss", "val_accuracy"},
        image_text: {"val_loss", "val_accuracy"},
    }
    state, read = rng.get_state(), FolderImages.__getitem__
    for trainer, names in expected.items():
        seen: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FolderImages, "__getitem__", lambda s, i: (seen.extend(i.tolist()), read(s, i))[1])  # noqa: B023
            one, two = trainer.validate(), trainer.validate()
        assert one.keys() == names
        assert one == two  # it does not depend on when it is measured
        assert set(seen) <= set(chosen)
    assert torch.equal(rng.get_state(), state)  # training goes on as without it
    for trainer in (tokenizer, classifier, image_text):
        drawn: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FolderImages, "__getitem__", lambda s, i: (drawn.extend(i.tolist()), read(s, i))[1])  # noqa: B023
            for step in range(2):
                trainer.step(step)
        assert drawn
        assert not set(drawn) & set(chosen)
    assert generator.weights[chosen].sum() == 0
    tokens, labels = generator.tokens[chosen], generator.labels[chosen]
    codes = model.tokenizer.quantizer.codes_before(tokens.split(model.units, dim=1))
    with torch.no_grad():
        log_probs = generator.averaged().network(labels, codes).log_softmax(-1)
    by_hand = -log_probs.gather(-1, tokens[..., None]).mean().item()
    assert generator.validate()["val_loss"] == pytest.approx(by_hand, abs=1e-5)


def test_a_run_and_its_resumption(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert not run(pictures, tmp_path / "run", stop_at=("tokenizer", 3))
    before = json.loads((tmp_path / "run/data.json").read_text())
    assert len(before["held_out"]) == 3
    assert "data: 59 images of 3 classes, 3 of them held out for validation" in capsys.readouterr().err
    # A step that a killed run did after its last checkpoint is repeated.
    lost = json.dumps({"step": 4, "loss": 99.0, "seconds": 1.0})
    with (tmp_path / "run/tokenizer/metrics.jsonl").open("a") as file:
        file.write(f"{lost}\n")
    shutil.rmtree(tmp_path / "run/tokenizer/samples")  # only for looking at
    assert run(pictures, tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run/data.json").read_text()) == before
    for stage in ("tokenizer", "generator"):
        lines = rows(tmp_path / "run", stage)
        assert [line["step"] for line in lines] == [1, 2, 3, 4]
        assert [line["step"] for line in lines if "val_loss" in line] == [2, 4]
        seconds = [line["seconds"] for line in lines]
        assert seconds == sorted(seconds)
        assert lines[3]["loss"] != 99.0


def test_other_held_out_images_are_other_data(pictures: Path, tmp_path: Path):
    assert not run(pictures, tmp_path / "run", stop_at=("tokenizer", 1))
    shutil.copytree(pictures, tmp_path / "other")
    source = FolderImages(pictures, 8)
    held = sorted(p for p in pictures.rglob("*.png"))
    by_class = sorted(held, key=lambda p: (p.parent.name, p.name))
    gone = by_class[hold_out(source)[0]]
    draw(tmp_path / "other" / gone.relative_to(pictures), 1000)
    with bad_input("data", "data.json"):
        run(tmp_path / "other", tmp_path / "run", resume=True)


@pytest.mark.parametrize("has_data", [True, False])
def test_a_run_of_version_0_1_holds_nothing_out(pictures: Path, tmp_path: Path, has_data: bool):
    assert not run(pictures, tmp_path / "run", stop_at=("tokenizer", 2))
    seen = tmp_path / "run/data.json"
    old = json.loads(seen.read_text())
    del old["held_out"]
    if has_data:
        seen.write_text(json.dumps(old))
    else:
        seen.unlink()
    assert run(pictures, tmp_path / "run", resume=True)
    assert json.loads(seen.read_text()) == old
    assert not any("val_loss" in line for line in rows(tmp_path / "run", "generator"))


@pytest.mark.parametrize("where", ["drawing", "writing"])
def test_a_failing_picture_does_not_stop_a_run(
    pictures: Path,
    tmp_path: Path,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def fail(trainer: object) -> None:
        raise RuntimeError("no paint\nleft")

    if where == "drawing":
        monkeypatch.setattr(GeneratorTrainer, "sample", fail)
    else:
        (tmp_path / "run/generator").mkdir(parents=True)
        (tmp_path / "run/generator/samples").write_text("a file where the folder should be")
        monkeypatch.setattr("sfumato.pretraining.pretrain.claim_folder", lambda *_, **__: None)
    assert run(pictures, tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if "could not be written" in line]
    assert len(lines) == 2
    assert "generator/samples/step-000002.png" in lines[0]
    assert ("RuntimeError: no paint)" if where == "drawing" else "Error") in lines[0]
    assert (tmp_path / "run/model/transformer.safetensors").is_file()


def curve(train: list[float], validation: list[float]) -> list[dict[str, float]]:
    """Return the lines of a stage that is measured every 50 steps, with a constant loss in between."""
    steps = [{"step": 50 * n + k, "loss": loss} for n, loss in enumerate(train) for k in range(1, 51)]
    for n, loss in enumerate(validation):
        steps[50 * n + 49]["val_loss"] = loss
    return steps


def test_memorizing():
    finding = memorizing(curve([5.0, 4.0, 3.0, 2.0], [5.1, 4.5, 4.2, 4.4]))
    assert finding is not None
    for piece in ("from 4.2 (step 150) to 4.4 (step 200)", "from 3 to 2", "memorizes"):
        assert piece in finding
    assert memorizing(curve([5.0, 4.0, 3.0, 2.0], [5.1, 4.5, 4.2, 4.25])) is None  # within the tolerance
    assert memorizing(curve([5.0, 4.0, 3.0, 3.5], [5.1, 4.5, 4.2, 4.4])) is None  # both rise: it diverges
    assert memorizing(curve([5.0, 4.0], [5.1, 4.5])) is None
    assert memorizing([{"step": 1, "loss": 1.0}]) is None
    assert memorizing([{"step": 1, "loss": None, "val_loss": None}, {"step": 2, "loss": None, "val_loss": 1.0}]) is None


def test_a_run_says_that_it_memorizes(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sfumato.pretraining.pretrain.memorizing", lambda rows: "it memorizes" if len(rows) > 2 else None)
        assert run(pictures, tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if "memorizes" in line]
    assert len(lines) == 4
    assert lines[2] == "sfumato: generator: it memorizes"
    assert lines[3].startswith("sfumato: generator: it memorizes; train fewer steps")
    assert "--start-from" in lines[3]


def test_share_of_codes_used_by_hand():
    averages = CodebookAverages(tiny_var().tokenizer.quantizer, decay=0.9)
    averages.window, vectors, rng = 3, torch.rand(4, 4), torch.Generator().manual_seed(0)
    averages.idle.fill_(3)
    shares = []
    for tokens in ([0, 1, 2, 3], [0, 0, 0, 0], [0, 0, 0, 4], [0, 0, 0, 0]):
        averages.update(vectors, torch.tensor(tokens), rng)
        shares.append(averages.share_used() * 16)
    # Dead codes restart at every update, which is not a use of them; after three updates, 1, 2 and 3 are idle.
    assert shares == pytest.approx([4, 4, 5, 2])
