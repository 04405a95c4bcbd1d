"""Settings of a run from a file: what it may say, what wins, and where an error is."""

import json
from pathlib import Path

import pytest
import yaml
from errors import bad_input

from sfumato.cli.main import main
from sfumato.cli.plan import parse as parse_plan
from sfumato.cli.train import Train, parse
from sfumato.objectives import GDPO, PrefixGRPO
from sfumato.recipes import TRAIN_RECIPES
from sfumato.training.train_config import to_json


def written(folder: Path, text: str) -> str:
    """Write a file of settings and return its path."""
    (folder / "run.yaml").write_text(text, "utf-8")
    return str(folder / "run.yaml")


def parsed(*arguments: str) -> Train:
    """Parse the arguments of `sfumato train`."""
    command = parse(list(arguments))
    assert isinstance(command, Train)
    return command


def test_a_file_changes_a_recipe_and_options_change_the_file(tmp_path: Path):
    file = written(
        tmp_path,
        """\
# Everything that is not stated here is the recipe's.
recipe: emoji-dark
run_dir: runs/mine
steps: 7
learning_rate: 1e-4   # YAML reads this as text
precision: bf16
engine: {compile: yes, lora_rank: 4, lora_targets: [qkv, proj], max_grad_norm: 2}
policy:
  guidance: [1, 2.5]
objective: {name: gdpo, kl_weight: 0.3}
reward:
  dark: 1
  "clip?prompt=a: b": 0.5
prompts: null
caption_template: "on: {name}"
""",
    )
    command = parsed("--config", file, "--steps", "9", "--no-compile")
    config, recipe = command.config, TRAIN_RECIPES["emoji-dark"].build()
    assert (command.run_dir, config.model, config.steps) == (Path("runs/mine"), "emoji-var", 9)
    assert (config.engine.learning_rate, config.engine.precision, config.engine.compile) == (1e-4, "bf16", False)
    assert (config.engine.lora_targets, config.engine.max_grad_norm) == (("qkv", "proj"), 2.0)
    assert (config.policy.guidance, config.policy.temperature) == ((1.0, 2.5), recipe.policy.temperature)
    assert isinstance(config.objective, GDPO)
    assert (config.objective.kl_weight, config.objective.clip) == (0.3, recipe.objective.clip)
    assert config.reward == {"dark": 1.0, "clip?prompt=a: b": 0.5}
    assert (config.prompts, config.caption_template) == (None, "on: {name}")
    assert parsed("--config", file).config.engine.compile
    assert parse_plan(["--config", file]).config == parsed("--config", file).config  # pyright: ignore[reportFunctionMemberAccess]


def test_the_recipe_of_the_command_line_wins(tmp_path: Path):
    file = written(tmp_path, "recipe: emoji-dark\nsteps: 7\n")
    command = parsed("emoji-t2i-clip", "--config", file)
    assert (command.config.model, command.config.steps, command.run_dir) == ("emoji-t2i", 7, Path("runs/run"))


@pytest.mark.parametrize("recipe", ["emoji-dark-no-kl", "emoji-t2i-clip", "var-d36-dark", "llamagen-xl-384"])
def test_a_printed_config_gives_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str):
    assert main(["train", recipe, "--print-config", "--seed", "3"]) == 0
    text = capsys.readouterr().out
    again = parsed("--config", written(tmp_path, text))
    assert again == parsed(recipe, "--seed", "3")
    assert yaml.safe_load(text)["seed"] == 3


def test_the_config_of_a_run_starts_another(tmp_path: Path):
    config = parsed("emoji-dark", "--held-out", "clip?prompt=ü", "--classes", "1-3").config
    (tmp_path / "config.json").write_text(json.dumps(to_json(config), indent=1))
    for path in (tmp_path, tmp_path / "config.json"):
        assert parsed("--config", str(path)).config == config


def test_the_config_of_a_run_of_version_0_1(tmp_path: Path):
    old = {
        "model": "emoji-var",
        "guidance": 1.5,
        "labels_per_step": 4,
        "loss": {"clip": 0.1},
        "micro_batch_size": 8,
        "reward": {"dark": 1.0},
    }
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = parsed("--config", str(tmp_path), "--steps", "5").config
    assert (config.policy.guidance, config.groups_per_step, config.steps) == (1.5, 4, 5)
    assert config.engine.micro_batch_size == 8


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("recipe: emoji-dark\nstpes: 3", ("{file}:2: setting: unknown setting 'stpes'", "steps")),
        ("recipe: nope", ("{file}:1: recipe: unknown recipe 'nope'",)),
        ("recipe: [a]", ("{file}:1: ", "give text")),
        ("recipe: emoji-dark\nsteps: many", ("{file}:2: ", "--steps", "'many'")),
        ("recipe: emoji-dark\nsteps: 0", ("{file}:2: steps: 0 is too small",)),
        ("recipe: emoji-dark\nsteps: 3\nsteps: 4", ("{file}:3: steps: also given in line 2",)),
        ("recipe: emoji-dark\n\nengine:\n  compile: maybe", ("{file}:4: engine.compile: 'maybe' is neither",)),
        ("recipe: emoji-dark\nengine: 3", ("{file}:2: engine: this is a section",)),
        ("recipe: emoji-dark\nclasses: [[1]]", ("{file}:2: ", "give text")),
        ("recipe: emoji-dark\nreward: {dark: x}", ("{file}:2: ", "--reward", "'x'")),
        ("recipe: emoji-dark\nreward: dark", ("{file}:2: ", "not pairs")),
        ("recipe: emoji-dark\nprecision: fp16", ("{file}:2: ", "--precision", "fp32", "bf16")),
        ("recipe: emoji-dark\npolicy: {temperature: -1}", ("{file}:2: temperature: -1.0",)),
        ("recipe: emoji-dark\npolicy: {steps: 1}", ("{file}:2: setting: unknown setting 'policy.steps'",)),
        ("recipe: emoji-dark\nobjective: {name: nope}", ("{file}:2: objective: unknown objective 'nope'",)),
        ("recipe: emoji-dark\nobjective: {name: grpo, clop: 1}", ("{file}:2: ", "--objective.clop", "clip")),
        ("steps: 3", ("model: {file} names none", "recipe")),
        ("- steps", ("config: {file} has no settings",)),
        ("", ("config: {file} has no settings",)),
        ("steps: [1", ("config: {file}:1: not YAML",)),
        ("a: *b", ("config: {file}:1: not YAML", "alias")),
        ("steps: !!python/object/apply:os.system [ls]", ("{file}:1: ", "steps: ")),
        ("[" * 5000, ("config: {file}", "not YAML")),
    ],
)
def test_errors_name_file_line_and_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, pieces: tuple[str, ...]
):
    file = written(tmp_path, text)
    assert main(["train", "--config", file, "--run-dir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sfumato: {pieces[0].format(file=file)}"), line
    assert all(piece in line for piece in pieces[1:]), line
    assert not (tmp_path / "run").exists()


def test_a_setting_that_an_option_replaces_does_not_count(tmp_path: Path):
    file = written(tmp_path, "recipe: emoji-dark\nsteps: many\nlearning_rate: 1e-3")
    assert parsed("--config", file, "--steps=3").config.steps == 3
    with bad_input("steps", "0"):
        parsed("--config", file, "--steps", "0")


def test_another_objective_takes_over_the_options_that_it_has(tmp_path: Path):
    file = written(tmp_path, "recipe: emoji-dark\nobjective: {name: prefix-grpo, units: 3, kl_weight: 0.3}")
    assert parsed("--config", file).config.objective == PrefixGRPO(clip=0.2, kl_weight=0.3, units=3)
    assert parsed("--config", file, "--objective", "gdpo").config.objective == GDPO(clip=0.2, kl_weight=0.3)
    changed = parsed("--config", file, "--objective.units", "2").config.objective
    assert changed == PrefixGRPO(clip=0.2, kl_weight=0.3, units=2)


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with bad_input("config", "missing.yaml", "--print-config"):
        parsed("--config", str(tmp_path / "missing.yaml"))
    (tmp_path / "latin.yaml").write_bytes("model: é".encode("latin-1"))
    with bad_input("config", "latin.yaml", "UTF-8"):
        parsed("--config", str(tmp_path / "latin.yaml"))
