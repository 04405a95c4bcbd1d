"""The models of the playground: which are shown, what they draw, and how it is scored. Nothing here needs Gradio."""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import bad_input
from made_runs import write_checkpoints, write_run
from tiny import CLASS_NAMES, tiny_llamagen, tiny_var

from sfumato.cli.main import main
from sfumato.data.pictures import to_pictures
from sfumato.families.library import load_generator, save_model
from sfumato.playground import drawing
from sfumato.playground.drawing import MOST, Picture, Playground, read_options, write_options
from sfumato.policy import Generator, Policy
from sfumato.request import Words
from sfumato.rewards.base import Part, WeightedSum
from sfumato.rewards.pixels import brightness, saturation
from sfumato.settings import Settings, SettingsOptions
from sfumato.testing import class_request

CPU, OWN = torch.device("cpu"), SettingsOptions()
WORDS = Words(names=())
"""For rewards that do not read words."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run on the tiny model with checkpoints at 2 and 4; tests only read it."""
    folder = tmp_path_factory.mktemp("runs") / "bright"
    run = write_run(folder, model=str(tiny_model), reward={"brightness": 1.0})
    write_checkpoints(run, {step: tiny_var(step) for step in (2, 4)})
    return run


def images_of(
    generator: Generator, label: int, seed: int, count: int, settings: Settings | None = None
) -> torch.Tensor:
    """Draw images without the playground."""
    request = class_request([label] * count, [CLASS_NAMES[label]] * count)
    return Policy(generator, settings).draw(request, torch.arange(seed, seed + count))


def assert_shows(pictures: list[Picture], images: torch.Tensor) -> None:
    """Check the pixels of pictures."""
    assert len(pictures) == len(images)
    for picture, expected in zip(pictures, to_pictures(images), strict=True):
        assert np.array_equal(np.asarray(picture.image), np.asarray(expected))


def test_every_checkpoint_draws_and_is_scored(run: Path, tiny_model: Path):
    playground = Playground([str(run)], CPU)
    base, aligned = playground.columns
    assert (base.name, base.steps) == (tiny_model.name, [0])
    assert (aligned.name, aligned.steps) == ("bright", [0, 2, 4])
    for column, step, generator in ((0, 0, tiny_var()), (1, 0, tiny_var()), (1, 2, tiny_var(2)), (1, 4, tiny_var(4))):
        images = images_of(generator, label=2, seed=5, count=3)
        pictures = playground.draw(column, step, "cat", 5, 3, OWN)
        assert_shows(pictures, images)
        assert [picture.scores for picture in pictures] == [
            {"reward": pytest.approx(score)} for score in brightness(images, WORDS).tolist()
        ]
    assert_shows(playground.draw(1, 3, 2, 5, 3, OWN), images_of(tiny_var(2), 2, 5, 3))  # the nearest checkpoint


def test_settings_replace_those_of_the_models(run: Path):
    changed = SettingsOptions(temperature=0.2, top_k=3)
    pictures = Playground([str(run)], CPU).draw(1, 4, 0, 0, 2, changed)
    assert_shows(pictures, images_of(tiny_var(4), 0, 0, 2, Settings(temperature=0.2, top_k=3)))


def test_each_reward_scores_every_picture(run: Path, tmp_path: Path):
    other = write_run(tmp_path / "vivid", model="emoji-var", reward={"brightness": 0.5, "saturation": 2.0})
    config = json.loads((run / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"reward": {"brightness": 0.5, "saturation": 2.0}}))
    write_checkpoints(other, {2: tiny_var(7)})
    playground = Playground([str(run), str(other)], CPU)
    assert [column.name for column in playground.columns][1:] == ["bright", "vivid"]  # one base for both
    images = images_of(tiny_var(7), 1, 0, 1)
    light, color = brightness(images, WORDS).item(), saturation(images, WORDS).item()
    (picture,) = playground.draw(2, 2, "bee", 0, 1, OWN)
    assert picture.scores == {"bright": pytest.approx(light), "vivid": pytest.approx(0.5 * light + 2 * color)}
    assert picture.parts == {"brightness": pytest.approx(light), "saturation": pytest.approx(color)}


def test_measured_thresholds_are_those_of_the_run(tiny_model: Path, tmp_path: Path):
    name = "brightness?levels=0,1"
    run = write_run(tmp_path / "run", model=str(tiny_model), reward={name: 1.0})
    write_checkpoints(run, {2: tiny_var(2)})
    with bad_input("reward", "levels"):
        Playground([str(run)], CPU)
    light = brightness(images_of(tiny_var(2), 0, 0, 2), WORDS)
    (run / "thresholds.json").write_text(json.dumps({name: [light.mean().item()]}))
    pictures = Playground([str(run)], CPU).draw(1, 2, 0, 0, 2, OWN)
    assert [picture.scores["reward"] for picture in pictures] == (light > light.mean()).float().tolist()


def test_plain_models_have_no_rewards(tiny_model: Path):
    playground = Playground([str(tiny_model)], CPU)
    assert [column.steps for column in playground.columns] == [[0]]
    (picture,) = playground.draw(0, 0, 0, 0, 1, OWN)
    assert picture.scores == picture.parts == {}


def test_a_base_that_is_given_is_not_repeated(run: Path, tiny_model: Path):
    assert [column.name for column in Playground([str(run), str(tiny_model)], CPU).columns] == [
        "bright",
        tiny_model.name,
    ]


def test_models_are_loaded_once(run: Path, monkeypatch: pytest.MonkeyPatch):
    loaded: list[str] = []

    def load(model: str, **options: object) -> Generator:
        loaded.append(model)
        return load_generator(model)

    monkeypatch.setattr(drawing, "load_generator", load)
    playground = Playground([str(run)], CPU)
    for step in (2, 4, 2, 4, 0, 2):
        playground.draw(1, step, 0, 0, 1, OWN)
        playground.draw(0, 0, 0, 0, 1, OWN)
    assert len(loaded) == len(set(loaded)) == 3  # the base is step 0 too


def test_visitors_at_the_same_time_get_their_own(run: Path):
    inside, most = 0, 0

    def slow(images: torch.Tensor, words: Words) -> torch.Tensor:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        inside -= 1
        return words.labels.float()

    playground = Playground([str(run)], CPU)
    playground.rewards = {"reward": WeightedSum({"slow": Part(reward=slow)})}
    begin = threading.Barrier(4)

    def visit(label: int) -> list[Picture]:
        begin.wait()
        return playground.draw(1, 2 + label % 2 * 2, label, 10 * label, 2, OWN)

    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(visit, range(4)))
    assert most == 1
    for label, pictures in enumerate(drawn):
        assert_shows(pictures, images_of(tiny_var(2 + label % 2 * 2), label, 10 * label, 2))
        assert [picture.scores["reward"] for picture in pictures] == [label, label]


def test_captions_of_a_run_have_their_metadata(tmp_path: Path):
    (tmp_path / "captions.jsonl").write_text('{"text": "red apple", "class": "apple"}\n')
    run = write_run(tmp_path / "run", model="emoji-t2i", prompts=str(tmp_path / "captions.jsonl"))
    write_checkpoints(run, {2: load_generator("emoji-t2i")})
    playground = Playground([str(run)], CPU)
    assert list(playground.prompts) == ["red apple"]
    assert playground.words(" red  apple").metadata == ({"class": "apple"},)
    assert playground.words("green apple") == Words(names=("green apple",), labels=playground.words("x").labels)
    with bad_input("caption", "empty"):
        playground.words(" ")
    (tmp_path / "captions.jsonl").unlink()
    assert Playground([str(run)], CPU).prompts == {}


def test_settings_as_people_type_them():
    options = read_options(guidance="0, 0.5 1", temperature="0.7", top_k="", top_p=" ")
    assert options == SettingsOptions(guidance=(0.0, 0.5, 1.0), temperature=0.7)
    assert write_options(options) == {"guidance": "0 0.5 1", "temperature": "0.7", "top_k": "", "top_p": ""}
    assert read_options(**write_options(options)) == options
    for name, text in (("temperature", "warm"), ("temperature", "0"), ("top_k", "2.5"), ("top_p", "2")):
        with bad_input(name, text):
            read_options(**{name: text})


def test_bad_input(run: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with bad_input("models", "no model"):
        Playground([], CPU)
    with bad_input("target", str(run), "twice"):
        Playground([str(run), str(run)], CPU)
    with bad_input("model", "emoji-va"):
        Playground(["emoji-va"], CPU)
    with bad_input("models", "no complete checkpoint"):
        Playground([str(write_run(tmp_path / "begun"))], CPU)
    with bad_input("models", "emoji-var", "same classes"):
        Playground([str(tiny_model), "emoji-var"], CPU)
    save_model(tmp_path / "other", tiny_llamagen())
    playground = Playground([str(run), str(tmp_path / "other")], CPU)  # another family with the same classes
    with bad_input("classes", "unicorn"):
        playground.draw(0, 0, "unicorn", 0, 1, OWN)
    for count in (0, MOST + 1):
        with bad_input("count", str(count)):
            playground.draw(0, 0, "cat", 0, count, OWN)
    with bad_input("seeds", "-1"):
        playground.draw(0, 0, "cat", -1, 1, OWN)
    assert main(["playground", str(run), "--port", "70000"]) == 2
    assert capsys.readouterr().err.startswith("sfumato: port: 70000 ")


def test_without_gradio(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["playground", str(run)]) == 2
    assert capsys.readouterr().err == "sfumato: gradio is not installed; pip install 'sfumato[playground]'\n"
