"""`sfumato push`: the card of a run, what it leaves out, and uploads to a stand-in for the hub."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from errors import bad_input
from hub_stand_in import TOKEN, Hub, Repository, serving_hub
from made_runs import write_checkpoints, write_rows, write_run
from tiny import tiny_config, tiny_var, trainer_of

import sfumato
from sfumato.cli.main import main
from sfumato.evaluation.runner import evaluate
from sfumato.evaluation.suites.entropy import Entropy
from sfumato.families import load_generator
from sfumato.hub.card import write_card
from sfumato.hub.privacy import cleaned, cleaned_command
from sfumato.hub.push import find, gather
from sfumato.policy import Policy
from sfumato.testing import class_request
from sfumato.training.train_config import TrainConfig

# The hub's client and its HTTP library disagree on the name of an argument.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 4 steps with checkpoints at 2 and 4, with files of alice; tests only read it."""
    rewards = {"/home/alice/my rewards/red.py:redness?head=/data/w.pt": 1.0, "http://box.lan:8100/x?scale=2": 0.5}
    run = write_run(tmp_path_factory.mktemp("runs") / "mine", model="emoji-var", reward=rewards, prompts=None)
    write_checkpoints(run, {step: tiny_var(step) for step in (2, 4)})
    start = {
        "version": "0.2.0.dev0",
        "command": "/home/alice/venv/bin/python -u /home/alice/venv/bin/sfumato train emoji-dark"
        " --run-dir '/srv/a b/mine' --reward /home/alice/red.py:redness 1",
        "host": "secretbox",
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 1.0,
    }
    (run / "run.json").write_text(json.dumps([start, start]))
    first = {"step": 0, "optimized": 0.0, "optimized_std": 0.1, "reward/bright": 0.5, "reward_std/bright": 0.1}
    write_rows(run / "held_out.jsonl", [first, {**first, "step": 4, "optimized": 0.9, "reward/bright": 0.25}])
    for name in ("before_after.png", "curves.png"):
        shutil.copy(next((run / "samples").iterdir()), run / name)
    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that this process is logged in to."""
    with serving_hub() as hub:
        constants = {"ENDPOINT": hub.address, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        constants["HUGGINGFACE_CO_URL_TEMPLATE"] = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        constants |= {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_TOKEN_PATH": str(tmp_path / "token")}
        for name, value in constants.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def refusal(capsys: Capture, *arguments: str) -> str:
    """Return the one-line message of a command that is refused."""
    assert main(["push", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert TOKEN not in lines[0]
    return lines[0].removeprefix("sfumato: ")


def pictures(model: object) -> torch.Tensor:
    """Draw two images with a generator, or with a model by name."""
    generator = load_generator(model) if isinstance(model, str | Path) else model
    return Policy(generator).draw(class_request([1, 3], ["bee", "dog"]), torch.arange(2))  # pyright: ignore


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("dark", "dark"),
        ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("clip?model=openai/clip-vit-base-patch32&scale=5", "clip?model=openai/clip-vit-base-patch32&scale=5"),
        ("clip?prompt=a painting, or a photo", "clip?prompt=a painting, or a photo"),
        ("/home/alice/my rewards/red.py:redness?head=/data/w.pt&scale=2", "red.py:redness?head=w.pt&scale=2"),
        ("own/red.py:redness", "red.py:redness"),
        ("red.py:redness?head=%2Fhome%2Falice%2Fw.pt", "red.py:redness?head=w.pt"),
        ("--reward=~/red.py:redness", "--reward=red.py:redness"),
        ("~alice/x/red.py:redness", "red.py:redness"),
        ("../../alice/captions.txt", "captions.txt"),
        ("alice/captions.txt", "captions.txt"),
        ("users/alice/models", "models"),
        (r"C:\Users\alice\w.pt", "w.pt"),
        ("/home/alice/w.pt::ema", "w.pt::ema"),
        ("/w.pt", "w.pt"),
        ("http://alice:pw@box.lan:8100/x,https://other:1?scale=2", "http://HOST,https://HOST?scale=2"),
    ],
)
def test_paths_and_addresses_are_left_out(value: str, expected: str):
    assert cleaned(value) == expected


def test_commands_are_as_people_type_them():
    start = f"{sys.executable} -X dev -m sfumato train --config '/home/alice/a b/run.yaml' --steps 3"
    assert cleaned_command(start) == "sfumato train --config run.yaml --steps 3"
    assert cleaned_command("/usr/bin/python3 own_script.py /home/alice") == ""


def test_the_card_describes_the_run(run: Path):
    card = write_card(find(run, "me/dark-emoji"))
    _, head, body = card.split("---\n", 2)
    tags = ["sfumato", "image-generation", "reinforcement-learning", "grpo", "var"]
    expected = {"library_name": "sfumato", "pipeline_tag": "unconditional-image-generation", "tags": tags}
    assert yaml.safe_load(head) == expected  # no license and no base on the hub is made up
    assert body.startswith("\n# dark-emoji\n")
    assert "with Sfumato 0.2.0.dev0: 4 steps of 8 images" in body
    for line in (
        "sfumato sample me/dark-emoji --classes ant",
        'policy = sfumato.load("me/dark-emoji")',
        "| `red.py:redness?head=w.pt` | 1 |",
        "| `http://HOST?scale=2` | 0.5 |",
        "| reward_mean | 0.250 | 0.750 |",
        "| optimized | 0.000 | 0.900 |",
        "sfumato train emoji-dark --run-dir mine --reward red.py:redness 1",
        "| `objective.kl_weight` | `0.1` |",
        "- KL to the base model at the last step: 0.004 nats per token.",
        "- Signs of reward hacking: the reward rose, but bright fell from 0.500 to 0.250.",
    ):
        assert line in body.splitlines(), line
    assert body.count("sfumato train emoji-dark") == 1  # two starts with one command
    assert re.findall(r"!\[.*?\]\((.*?)\)", body) == ["before_after.png", "curves.png"]
    assert not re.search(r"/home|/srv|alice|secretbox|box\.lan|/data", card)


def test_an_earlier_checkpoint_has_no_figures_of_the_last(run: Path, tmp_path: Path):
    what = find(run, "me/x", checkpoint=2)
    gather(what, tmp_path / "out", shutil.copyfile)
    card = (tmp_path / "out/README.md").read_text()
    assert "2 of 4 steps of 8 images" in card
    assert "KL to the base model at the last step: 0.002 nats" in card
    for absent in ("before_after.png", "curves.png", "reward_mean", "Held-out"):
        assert absent not in card
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "transformer.safetensors", "tokenizer.safetensors"}
    assert torch.equal(pictures(tmp_path / "out"), pictures(tiny_var(2)))


def test_evaluations_are_shown(run: Path, tmp_path: Path):
    model = str(run / "checkpoints/step-000002/model")
    targets = [str(run / "checkpoints/step-000004"), model]
    evaluate(Entropy(classes=("0-1",), images=4), targets, tmp_path / "d", torch.device("cpu"), print)
    card = write_card(find(run, "me/x", evaluations=[tmp_path / "d"]))
    assert "## Evaluation: Entropy\n\n|  | this model | model | difference |" in card
    with bad_input("evaluation", str(run)):
        write_card(find(run, "me/x", evaluations=[run]))


def test_released_bases_are_named(run: Path):
    what = find(run, "me/x")
    assert "base_model: FoundationVision/var\n" in write_card(replace(what, config={**what.config, "model": "var-d16"}))
    assert "base_model" not in write_card(replace(what, config={**what.config, "model": "runs/gone"}))


def saved_run(folder: Path, config: TrainConfig) -> Path:
    """Write a run whose checkpoint the engine has written, with all that is trained changed."""
    run = write_run(folder, steps=2, model=config.model)
    trainer = trainer_of(config)
    with torch.no_grad():
        for parameter in trainer.policy.generator.network.parameters():
            parameter.add_(0.05 if parameter.requires_grad else 0)
    checkpoint = run / "checkpoints/step-000002"
    trainer.engine.save(checkpoint)()
    torch.save({}, checkpoint / "state.pt")
    return run


@pytest.mark.parametrize("is_public", [True, False])
def test_adapters_stay_adapters_if_everybody_has_their_base(is_public: bool, tiny_model: Path, tmp_path: Path):
    pytest.importorskip("peft")
    run = saved_run(tmp_path / "run", tiny_config("emoji-var" if is_public else tiny_model, lora_rank=2))
    gather(find(run, "me/x"), tmp_path / "out", shutil.copyfile)
    assert (tmp_path / "out/adapter.safetensors").exists() is is_public
    assert (tmp_path / "out/transformer.safetensors").exists() is not is_public
    written = "".join(path.read_text() for path in (tmp_path / "out").glob("*.[jm]*"))
    assert str(tiny_model) not in written
    drawn = pictures(tmp_path / "out")
    assert torch.equal(drawn, pictures(run / "checkpoints/step-000002"))
    assert not torch.equal(drawn, pictures("emoji-var" if is_public else tiny_model))


def test_a_dry_run_writes_a_folder(run: Path, tmp_path: Path, capsys: Capture):
    out = tmp_path / "out"
    assert main(["push", str(run), "me/dark-emoji", "--dry-run", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"step 4: {out}\n"
    assert (out / "README.md").read_text() == write_card(find(run, "me/dark-emoji"))
    assert torch.equal(pictures(out), pictures(tiny_var(4)))
    assert refusal(capsys, str(run), "me/x", "--dry-run", "--out", str(out)).startswith(f"out: {out} is not empty")
    assert refusal(capsys, str(run), "me/x", "--dry-run").startswith("out: ")


def test_what_is_pushed_can_be_loaded(run: Path, hub: Hub, capsys: Capture):
    assert main(["push", str(run), "me/dark-emoji", "--private"]) == 0
    output = capsys.readouterr()
    assert output.out == f"step 4: {hub.address}/me/dark-emoji\n"
    assert TOKEN not in output.err
    repository = hub.repositories["me/dark-emoji"]
    assert repository.private
    assert repository.messages == ["Upload step 4 with sfumato push"]
    model = {"config.json", "transformer.safetensors", "tokenizer.safetensors"}
    assert repository.files.keys() == model | {".gitattributes", "README.md", "before_after.png", "curves.png"}
    assert repository.files["README.md"].decode() == write_card(find(run, "me/dark-emoji"))
    assert torch.equal(pictures(sfumato.load("me/dark-emoji").generator), pictures(tiny_var(4)))
    further = find(run, "me/further")
    further = replace(further, config={**further.config, "model": "me/dark-emoji"})
    assert "base_model: me/dark-emoji\n" in write_card(further)  # it is in the cache of the hub's client
    out = run.parent / "drawn.png"
    assert main(["sample", "me/dark-emoji", "--classes", "bee", "--count", "1", "--out", str(out)]) == 0
    assert out.stat().st_size > 0


def test_existing_repositories_are_updated_only_on_request(run: Path, hub: Hub, capsys: Capture):
    old = {"README.md": b"old", "adapter.safetensors": b"old", "notes.txt": b"mine"}
    hub.repositories["me/dark-emoji"] = repository = Repository(files=dict(old))
    message = refusal(capsys, str(run), "me/dark-emoji")
    assert message.startswith("repository: me/dark-emoji exists and has 3 files (README.md, ")
    assert "--update" in message
    assert repository.files == old
    assert refusal(capsys, str(run), "me/dark-emoji", "--update", "--private").startswith("private: ")
    assert repository.files == old
    assert main(["push", str(run), "me/dark-emoji", "--update", "--checkpoint", "2"]) == 0
    assert repository.files["README.md"].decode() == write_card(find(run, "me/dark-emoji", checkpoint=2))
    assert repository.files["notes.txt"] == b"mine"  # only what a push writes is replaced
    assert "adapter.safetensors" not in repository.files


def test_an_empty_repository_is_filled(run: Path, hub: Hub):
    hub.repositories["me/new"] = Repository(files={".gitattributes": b""})
    assert main(["push", str(run), "me/new"]) == 0
    assert "README.md" in hub.repositories["me/new"].files


def test_what_the_hub_refuses(run: Path, hub: Hub, capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    assert refusal(capsys, str(run), "others/x").startswith("repository: your token may not write to others/x (403); ")
    hub.broken = 500
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client tries again
    assert "the hub answers 500 for me/x" in refusal(capsys, str(run), "me/x")
    hub.broken = 0
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    message = refusal(capsys, str(run), "me/x")
    assert message.startswith("token: the hub does not accept it (401); ")
    assert "hf_wrong" not in message
    monkeypatch.delenv("HF_TOKEN")
    assert refusal(capsys, str(run), "me/x").startswith("token: you are not logged in to the hub; ")
    assert hub.repositories == {}


def test_no_way_to_the_hub(run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert refusal(capsys, str(run), "me/x").startswith("HF_HUB_OFFLINE: ")  # the tests set it
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refusal(capsys, str(run), "me/x")


def test_what_cannot_be_published(run: Path, tiny_model: Path, tmp_path: Path):
    for name in ("dark", "a/b/c", "me/a b", "me/--x", "/home/me"):
        with bad_input("repository", repr(name), "OWNER/NAME"):
            find(run, name)
    for folder in (tmp_path / "missing", tiny_model, run / "checkpoints/step-000004/model"):
        with bad_input("run", str(folder)):
            find(folder, "me/x")
    with bad_input("checkpoint", "step 3", "2, 4"):
        find(run, "me/x", checkpoint=3)
    with bad_input("run", "no complete checkpoint"):
        find(write_run(tmp_path / "begun"), "me/x")
    own = write_run(tmp_path / "own")
    shutil.copytree(run / "checkpoints", own / "checkpoints")
    config = own / "checkpoints/step-000004/model/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"family": "/home/alice/own.py:build"}))
    with bad_input("run", "own.py:build", "sfumato.families"):
        find(own, "me/x")
