"""What the documentation shows: every command is parsed, and run where it can be run in a moment; its Python runs."""

import ast
import contextlib
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from documents import PAGES, ROOT, commands, mentions, python_blocks, shell_lines
from made_runs import write_run
from PIL import Image
from tiny import LLAMAGEN, TOKENIZER, TRANSFORMER, VQ_TOKENIZER

from sfumato.cli import Evaluate, Pretrain, Train, parse
from sfumato.evaluation.suites import SUITES
from sfumato.experiments import EXPERIMENTS
from sfumato.families.library import bundled_models
from sfumato.families.var.network import VARConfig
from sfumato.model_commands import Sample
from sfumato.pretraining.pretrain import PretrainConfig

ELSEWHERE = {
    r".*--(weights|tokenizer) ": "models/test_library.py::test_releases",
    r"(sample|evaluate) var-d16 ": "models/test_var_golden.py::test_teacher_forced_logits",
    r"(score|train) .*http://": "rewards/test_server.py::test_training_waits_for_a_server_that_was_killed",
    r"serve ": "rewards/test_server.py::test_the_scores_are_those_of_the_reward",
    r"reproduce \S": "experiments/test_experiments.py::test_reproduce",
    r"train .*--held-out ": "training/test_held_out.py::test_held_out_rewards_are_logged_and_not_optimised",
    r"train .*--prompts ": "training/test_llamagen_runs.py::test_a_run_on_captions",
    r"pretrain emoji-t2i ": "training/test_pretrain_llamagen.py::test_captions_start_from_another_model",
    r"pretrain emoji-clip ": "training/test_pretrain_llamagen.py::test_image_text_model_learns_and_scores",
    r"pretrain emoji-rival ": "training/test_rival.py::test_training",
    r".* --resume": "training/test_processes.py::test_resumed_equals_uninterrupted",
    r"report .* out/": "report/test_report.py::test_evaluations_are_shown_too",
    r"pretrain emoji-classifier ": "training/test_pretrain.py::test_classifier",
}
"""Commands that need a download, a server or minutes, and the tests that run the same."""
WORDS = {"SUITE": "alignment", "RECIPE": "emoji-dark", "NAME": "var-kl", "N": "1", "...": "x"}
"""What stands for placeholders where the parser knows the choices."""
SMALL = {"images": 4, "per_class": 2, "classes": ("0-1",), "seen": ("0",), "first": 2, "neighbours": 2, "splits": 2}
"""Options of suites that make them quick."""
DONE: set[str] = set()
"""Kinds of commands that were run already: pages repeat one another."""
page_ids = [str(page.relative_to(ROOT)) for page in PAGES]
each_page = pytest.mark.parametrize("page", PAGES, ids=page_ids)


@pytest.fixture(autouse=True)
def without_type_checker() -> Iterator[None]:
    """Commands run as users run them: `pretrain` starts from a marker where a path is to be given."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def parsed(words: list[str]) -> Callable[[], int] | None:
    """The command, or None where it only prints a list or help."""
    if "--help" in words and words[:2] not in (["train", "--help"], ["pretrain", "--help"], ["reproduce", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            parse(words)
        return None
    return parse(words)


@contextlib.contextmanager
def suppress_missing() -> Iterator[None]:
    """The name of a command or of an option in a sentence lacks what follows it."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Missing"):
            raise


def filled(words: list[str]) -> list[str]:
    """A pattern such as `train RECIPE [--resume]` as a command."""
    plain = [word.strip("[]") for word in words]
    return [WORDS.get(word, word.removesuffix("...").split("|")[0]) for word in plain]


def test_there_are_commands():
    assert sum(len(list(commands(page))) for page in PAGES) > 60
    assert sum(len(list(python_blocks(page))) for page in PAGES) >= 6


@each_page
def test_commands_are_known(page: Path, capsys: pytest.CaptureFixture[str]):
    for words in commands(page):
        parsed(filled(words))
    for words in mentions(page):
        with suppress_missing():
            parsed(filled(words))


@each_page
def test_other_lines(page: Path):
    """Extras, scripts and files that shell lines name are there."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in shell_lines(page):
        for names in re.findall(r"(?:sfumato|\.)\[([\w,]+)\]", line):
            assert set(names.split(",")) <= extras.keys(), line
        for path in re.findall(r"\b(?:benchmarks|scripts)/\S+", line):
            assert (ROOT / path).is_file(), line


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    """A folder, the current one, with what the pages take for granted: runs, images, captions, rewards of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("colorful", "no-kl"):
        (write_run(tmp_path / f"runs/{name}") / "model").symlink_to(bundled_models()["emoji-var"])
    for name, model in {"mine": tiny_model, "d16": bundled_models()["emoji-var"]}.items():
        (tmp_path / f"runs/{name}").mkdir()
        (tmp_path / f"runs/{name}/model").symlink_to(model)
    for number in range(8):
        for folder in ("FOLDER", "package", "out/accuracy/emoji-var/images"):
            file = tmp_path / folder / f"class {number % 4}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (30 * number, 255 - 30 * number, 90)).save(file)
    shutil.copy(tmp_path / "FOLDER/class 0/0.png", tmp_path / "apple.png")
    (tmp_path / "captions.txt").write_text("red apple\noctopus\n")
    for page in PAGES:
        for code in python_blocks(page):
            if name := re.match(r"# (\w+\.py)\n", code):
                (tmp_path / name[1]).write_text(code)
    return tmp_path


def small(command: Any, tiny_model: Path) -> Callable[[], int]:
    """The same command on a tiny model, in a folder of its own, or with a tiny suite; rewards are not fetched."""
    match command:
        case Train(config=config):
            reward = config.reward if config.model.startswith(("emoji", "runs/")) else {"brightness": 1.0}
            changes: dict[str, Any] = {"model": str(tiny_model), "reward": reward, "steps": 1, "eval_images": 0}
            changes |= {"labels_per_step": 2, "group_size": 2, "minibatch_size": 4, "device": "cpu"}
            changes |= {"classes": ("0-3",) if config.classes else ()}
            return replace(command, config=replace(config, **changes), run_dir=Path("made") / command.run_dir)
        case Pretrain(config=PretrainConfig() as config):
            is_var = isinstance(config.transformer, VARConfig)
            shapes = (TOKENIZER, TRANSFORMER) if is_var else (VQ_TOKENIZER, LLAMAGEN)
            changes = dict(zip(("tokenizer", "transformer"), shapes, strict=True)) | {"start_from": None}
            for stage in ("tokenizer_training", "generator_training"):
                changes[stage] = replace(getattr(config, stage), steps=1, batch_size=2)
            return replace(command, config=replace(config, **changes), run_dir=Path("made") / command.run_dir)
        case Evaluate(suite=suite):
            return replace(command, suite=smaller(suite))
        case Sample():
            return replace(command, count=1)
    return command


def smaller(suite: Any) -> Any:
    """A suite with the options of SMALL that it has and that are not smaller already; likewise one that it sweeps."""
    changes = {name: value for name, value in SMALL.items() if getattr(suite, name, None)}
    if "of" in {field.name for field in fields(suite)}:
        changes |= {"of": smaller(suite.of), "values": suite.values[:2]}
    return replace(suite, **changes)


@each_page
def test_commands_run(page: Path, workshop: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    for words in commands(page):
        line = " ".join(words)
        suite = re.search(r"--suite \S+", line)
        kind = suite[0] if suite else re.sub(r"\S*[\d/]\S*", "", line)  # but for numbers and paths
        if not WORDS.keys().isdisjoint(words) or kind in DONE or any(re.match(known, line) for known in ELSEWHERE):
            continue
        DONE.add(kind)
        command = parsed(words)
        if command is None:
            continue
        command = small(command, tiny_model)
        if isinstance(command, Train | Pretrain):
            shutil.rmtree(command.run_dir, ignore_errors=True)
        if isinstance(command, Evaluate) and command.out:
            shutil.rmtree(command.out, ignore_errors=True)
        assert command() == 0, line


@pytest.mark.parametrize("test", ELSEWHERE.values())
def test_other_tests_are_there(test: str):
    file, name = test.split("::")
    assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text()


@each_page
def test_python_runs(page: Path, workshop: Path):
    shown: dict[str, Any] = {"__name__": "page"}
    for code in python_blocks(page):
        if re.search(r"t5|cuda", code):  # a download: what it imports is there
            code = "\n".join(ast.unparse(node) for node in ast.parse(code).body if isinstance(node, ast.ImportFrom))
        exec(compile(code, str(page), "exec"), shown)


def test_experiments_and_suites_are_listed():
    assert all(f"| `{name}` |" in (ROOT / "docs/how-to/reproduce.md").read_text() for name in EXPERIMENTS)
    assert all(f"`{name}`" in (ROOT / "docs/how-to/evaluate.md").read_text() for name in SUITES)
    assert {folder.name for folder in (ROOT / "docs/results").glob("*") if folder.is_dir()} <= EXPERIMENTS.keys()
