"""Every command in the documentation is parsed, and run if it takes only a moment; its Python code runs."""

import ast
import contextlib
import itertools
import json
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
from tiny import LLAMAGEN, TOKENIZER, TRANSFORMER, VQ_TOKENIZER, tiny_config, trainer_of

from sfumato.cli.config_file import ConfigFile
from sfumato.cli.evaluate import Evaluate
from sfumato.cli.main import parse
from sfumato.cli.pretrain import Pretrain
from sfumato.cli.sample import Sample
from sfumato.cli.train import Train
from sfumato.errors import UserError
from sfumato.evaluation.suites import SUITES
from sfumato.experiments import EXPERIMENTS
from sfumato.families.library import bundled_models
from sfumato.families.var.network import VARConfig
from sfumato.pretraining.pretrain_config import PretrainConfig
from sfumato.recipes import TRAIN_RECIPES

ELSEWHERE = {
    r".*--(weights|tokenizer) ": "families/test_library.py::test_releases",
    r"(sample|evaluate) var-d16 ": "families/test_var_golden.py::test_teacher_forced_logits",
    r"(sample|evaluate) runs/bigram ": "test_own_code.py::test_commands",
    r"(score|train) .*http://": "rewards/test_server.py::test_training_waits_for_a_server_that_was_killed",
    r"rewards http://": "test_reward_commands.py::test_servers_are_tried_one_by_one",
    r"train --config ": "test_config_file.py::test_a_file_changes_a_recipe_and_options_change_the_file",
    r"plan --config ": "test_config_file.py::test_a_file_changes_a_recipe_and_options_change_the_file",
    r"train .*fid\?": "rewards/test_fid.py::test_a_resumed_run_has_the_same_moments",
    r"(sample|export) (runs/)?infinity": "training/test_infinity_runs.py::test_a_run_from_training_to_export",
    r"(sample|export) runs/janus": "training/test_janus_runs.py::test_a_run_from_training_to_export",
    r"sample janus-pro-1b-reasoning ": "training/test_janus_runs.py::test_a_run_with_texts",
    r"(sample|export) runs/simplear": "training/test_janus_runs.py::test_a_run_of_the_other_language_model",
    r"evaluate .*--suite dpg ": "evaluation/test_dpg.py::test_a_bundled_model",
    r"evaluate .*--suite t2i-compbench ": "evaluation/test_t2i_compbench.py::test_a_bundled_model",
    r"pretrain .*--tokenizer-training.decoder-only": "pretraining/test_pretrain.py::test_only_the_decoder_is_trained",
    r"launch ": "training/test_processes.py::test_two_processes_equal_one",
    r"playground ": "playground/test_drawing.py::test_every_checkpoint_draws_and_is_scored",
    r"push |sample me/": "hub/test_push.py::test_what_is_pushed_can_be_loaded",
    r"serve ": "rewards/test_server.py::test_the_scores_are_those_of_the_reward",
    r"reproduce \S": "experiments/test_experiments.py::test_reproduce",
    r"train emoji-infinity-": "training/test_infinity_runs.py::test_runs_of_the_bundled_recipes",
    r"train emoji-dark-fast": "objectives/test_prefix.py::test_a_run_of_the_fast_recipe",
    r"train .*--objective.units ": "objectives/test_prefix.py::test_a_run_learns_from_the_first_scale",
    r"train .*--held-out ": "training/test_held_out.py::test_held_out_rewards_are_logged_and_not_optimized",
    r"train .*--prompts ": "training/test_llamagen_runs.py::test_a_run_on_captions",
    r"pretrain emoji-t2i ": "pretraining/test_pretrain_llamagen.py::test_captions_start_from_another_model",
    r"pretrain emoji-infinity ": "pretraining/test_bitwise_stages.py::test_both_stages_and_resuming",
    r"pretrain emoji-clip ": "pretraining/test_pretrain_llamagen.py::test_image_text_model_learns_and_scores",
    r"pretrain emoji-rival ": "pretraining/test_rival.py::test_training",
    r".* --resume": "training/test_processes.py::test_resumed_equals_uninterrupted",
    r"compare ": "report/test_compare.py::test_settings_that_differ",
    r"report .* out/": "report/test_report.py::test_evaluations_are_shown_too",
    r"evaluate .*--classifier ": "evaluation/test_suites.py::test_own_classifier",
    r"score .*--prompts ": "test_scoring.py::test_captions_from_a_file",
    r"pretrain emoji-classifier ": "pretraining/test_pretrain.py::test_classifier",
}
"""Commands that need a download, a server or minutes, and the tests that run the same."""
WORDS = {"SUITE": "alignment", "RECIPE": "emoji-dark", "NAME": "var-kl", "N": "1", "...": "x"}
"""Values of placeholders for which the parser knows the choices."""
SMALL = {"images": 4, "per_class": 2, "classes": ("0-1",), "seen": ("0",), "first": 2, "neighbors": 2, "splits": 2}
"""Options that make suites quick."""
DONE: set[str] = set()
"""Kinds of commands that were already run; pages repeat one another."""
page_ids = [str(page.relative_to(ROOT)) for page in PAGES]
each_page = pytest.mark.parametrize("page", PAGES, ids=page_ids)


@pytest.fixture(autouse=True)
def without_type_checker() -> Iterator[None]:
    """Run commands as users do: `pretrain` starts from a marker in place of the path that the user gives."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def parsed(words: list[str]) -> Callable[[], int] | None:
    """The command, or None if it only prints a list or help."""
    if "--help" in words and words[:2] not in (["train", "--help"], ["pretrain", "--help"], ["reproduce", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            parse(words)
        return None
    return parse(words)


@contextlib.contextmanager
def suppress_missing() -> Iterator[None]:
    """A sentence may name a command or an option without the arguments that it needs."""
    try:
        yield
    except UserError as error:
        if error.field != "Missing":
            raise


def filled(words: list[str]) -> list[str]:
    """A pattern such as `train RECIPE [--resume]` as a command."""
    plain = [word.strip("[]") for word in words]
    return [WORDS.get(word, word.removesuffix("...").split("|")[0]) for word in plain]


def test_there_are_commands():
    assert sum(len(list(commands(page))) for page in PAGES) > 60
    assert sum(len(list(python_blocks(page))) for page in PAGES) >= 6


@each_page
def test_commands_are_known(page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    # The runs that the pages resume do not exist here.
    settings = TRAIN_RECIPES["emoji-dark"].build()
    monkeypatch.setattr("sfumato.training.run_folder.read_run_config", lambda path: settings)
    monkeypatch.setattr("sfumato.cli.config_file.read_config_file", lambda path: ConfigFile(path, {}, settings))
    for words in commands(page):
        parsed(filled(words))
    for words in mentions(page):
        with suppress_missing():
            parsed(filled(words))


@each_page
def test_other_lines(page: Path):
    """The extras, scripts and files in shell lines exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in shell_lines(page):
        for names in re.findall(r"(?:sfumato|\.)\[([\w,]+)\]", line):
            assert set(names.split(",")) <= extras.keys(), line
        for path in re.findall(r"\b(?:benchmarks|scripts)/\S+", line):
            assert (ROOT / path).is_file(), line


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two saved runs; made once, because they take 60 MB and there are many pages."""
    folder = tmp_path_factory.mktemp("trained")
    for name, changes in {"d30-lora": {"lora_rank": 2}, "d30": {"ema_decay": 0.9}}.items():
        trainer_of(tiny_config("emoji-var", **changes)).engine.save(folder / name)()
    return folder


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, trained: Path) -> Path:
    """The current folder, with everything that the pages assume: runs, images, captions, code of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in ("colorful", "no-kl"):
        (write_run(tmp_path / f"runs/{name}") / "model").symlink_to(bundled_models()["emoji-var"])
    for name, model in {"mine": tiny_model, "d16": bundled_models()["emoji-var"]}.items():
        (tmp_path / f"runs/{name}").mkdir()
        (tmp_path / f"runs/{name}/model").symlink_to(model)
    for run in trained.iterdir():
        (tmp_path / "runs" / run.name).symlink_to(run)
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
    """The same command on a tiny model in its own folder, or with a tiny suite; rewards are not fetched."""
    match command:
        case Train(config=config):
            is_own = config.model.startswith("examples/")
            reward = config.reward if is_own or config.model.startswith(("emoji", "runs/")) else {"brightness": 1.0}
            model = config.model if is_own else str(tiny_model)
            changes: dict[str, Any] = {"model": model, "reward": reward, "steps": 1, "eval_images": 0}
            changes |= {"groups_per_step": 2, "group_size": 2, "minibatch_size": 4, "device": "cpu"}
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
    """A suite with those options of SMALL that it has; if it sweeps another suite, that one too."""
    changes = {name: value for name, value in SMALL.items() if getattr(suite, name, None)}
    if "of" in {field.name for field in fields(suite)}:
        changes |= {"of": smaller(suite.of), "values": suite.values[:2]}
    return replace(suite, **changes)


@each_page
def test_commands_run(page: Path, workshop: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    for words in commands(page):
        line = " ".join(words)
        suite = re.search(r"--suite \S+", line)
        kind = suite[0] if suite else re.sub(r"\S*[\d/]\S*", "", line)  # without numbers and paths
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
def test_other_tests_exist(test: str):
    file, name = test.split("::")
    assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text()


@each_page
def test_python_runs(page: Path, workshop: Path):
    shown: dict[str, Any] = {"__name__": "page"}
    for code in python_blocks(page):
        if re.search(r"t5|cuda|\.pth", code):  # a download: only its imports run
            code = "\n".join(ast.unparse(node) for node in ast.parse(code).body if isinstance(node, ast.ImportFrom))
        exec(compile(code, str(page), "exec"), shown)


def test_experiments_and_suites_are_listed():
    assert all(f"| `{name}` |" in (ROOT / "docs/how-to/reproduce.md").read_text() for name in EXPERIMENTS)
    assert all(f"`{name}`" in (ROOT / "docs/how-to/evaluate.md").read_text() for name in SUITES)
    assert {folder.name for folder in (ROOT / "docs/results").glob("*") if folder.is_dir()} <= EXPERIMENTS.keys()


@each_page
def test_examples_are_quoted_literally(page: Path):
    for code in python_blocks(page):
        if name := re.match(r"# (examples/\w+\.py)", code):
            lines = (ROOT / name[1]).read_text().splitlines()
            unknown = [line for line in code.splitlines()[1:] if line not in lines]
            assert not unknown, name[1]


def test_plans_of_all_released_models_are_listed():
    page = (ROOT / "docs/how-to/memory-and-time.md").read_text()
    names = {name.removesuffix("-bright") for name in TRAIN_RECIPES if re.match(r"llamagen|var-d\d+-bright", name)}
    names = {name for name in names if "ablation" not in name}
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == names


def documented_classes() -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield the public classes of the modules that the pages of the API show, each with the name of its module."""
    for page in sorted((ROOT / "docs/api").glob("*.md")):
        for module, options in re.findall(r"^::: ([\w.]+)\n((?: +.*\n?)*)", page.read_text(), re.MULTILINE):
            path = ROOT / "src" / module.replace(".", "/")
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            members = re.search(r"members: \[(.*)\]", options)
            for node in ast.parse(file.read_text()).body if file.is_file() else ():  # else a function, not a module
                shown = members is None or getattr(node, "name", "") in members[1].split(", ")
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and shown:
                    yield module, node


def test_fields_are_described():
    """A field of a class in the API has a string below that says what it is; without one, the site leaves it out."""
    count, bare = 0, []
    for module, owner in documented_classes():
        for node, below in itertools.pairwise([*owner.body, ast.Pass()]):
            if isinstance(node, ast.AnnAssign) and not (name := ast.unparse(node.target)).startswith("_"):
                count += 1
                text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else 0
                if not isinstance(text, str):
                    bare.append(f"{module}.{owner.name}.{name}")
    assert count > 100
    assert not bare


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_were_run_and_import_what_exists(path: Path):
    text = path.read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output["output_type"] != "error" for cell in cells for output in cell["outputs"])
    assert not re.search(r"/(home|tmp|root|work)/", text)
    for cell in cells:
        nodes = ast.parse("".join(cell["source"])).body
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sfumato"):
                exec(ast.unparse(node), {})
