"""The command line: exit statuses, one-line errors, and what each command writes."""

import contextlib
import errno
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import jaxtyping
import pytest
import torch
from command import run_module
from errors import bad_input
from PIL import Image
from safetensors import SafetensorError
from tiny import CLASS_NAMES, TOKENIZER, TRANSFORMER, tiny_llamagen, tiny_request, tiny_var

from sfumato.cli.main import COMMANDS, main, parse
from sfumato.cli.pretrain import Pretrain
from sfumato.cli.train import SYNONYMS, Train
from sfumato.errors import UserError
from sfumato.families import load, load_generator
from sfumato.families.library import save_model
from sfumato.families.var.generator import VAR
from sfumato.families.var.published import read_var
from sfumato.families.weight_files import read_state_dict
from sfumato.objectives import GDPO, GRPO
from sfumato.pretraining.generator_stage import GeneratorTraining
from sfumato.pretraining.pretrain_config import PretrainConfig
from sfumato.pretraining.tokenizer_stage import TokenizerTraining
from sfumato.recipes import PRETRAIN_RECIPES, TRAIN_RECIPES
from sfumato.settings import Settings

Capture = pytest.CaptureFixture[str]


def refused(capsys: Capture, *arguments: str) -> str:
    """Return the one-line error message for these arguments."""
    assert main(list(arguments)) == 2
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert len(lines) == 1, output.err
    assert lines[0].startswith("sfumato: ")
    return lines[0].removeprefix("sfumato: ")


def assert_about(complaint: str, field: str, pieces: tuple[str, ...]) -> None:
    """Check that the message names this field, if one is given, and contains all of these pieces."""
    assert complaint.startswith(f"{field}: " if field else ""), complaint
    for piece in pieces:
        assert piece in complaint


def printed(capsys: Capture, *arguments: str) -> str:
    """Return the output of a command that succeeds."""
    assert main(list(arguments)) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def test_help_lists_the_commands(capsys: Capture):
    for arguments in ([], ["--help"], ["-h"]):
        text = printed(capsys, *arguments)
        for command in COMMANDS:
            assert f"  {command} " in text


def test_version(capsys: Capture):
    assert printed(capsys, "--version") == version("sfumato") + "\n"


@pytest.mark.parametrize(("command", "recipes"), [("train", TRAIN_RECIPES), ("pretrain", PRETRAIN_RECIPES)])
def test_help_lists_the_recipes(capsys: Capture, command: str, recipes: dict):
    assert recipes
    for arguments in ([command], [command, "--help"]):
        words = printed(capsys, *arguments).split()
        assert {recipe.listed or name for name, recipe in recipes.items()} <= set(words)


def test_help_of_a_recipe_lists_the_settings(capsys: Capture):
    with pytest.raises(SystemExit) as stop:
        main(["train", "emoji-dark", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--run-dir", "--resume", "--group-size", "--groups-per-step", "--objective.clip", "--objective.kl-weight",
        "--reward", "--classes", "--temperature", "--guidance", "--learning-rate", "--micro-batch-size",
    ):  # fmt: skip
        assert option in text
    assert "--policy." not in text
    assert "--engine." not in text


@pytest.mark.parametrize(
    ("arguments", "field", "pieces"),
    [
        (["trian"], "command", ("'trian'", "did you mean train or pretrain?")),
        (["xyzzy"], "command", ("'xyzzy'", "give one of train, ")),
        (["train", "emoji-drak"], "recipe", ("'emoji-drak'", "did you mean emoji-dark")),
        (["pretrain", "nothing"], "recipe", ("'nothing'", "emoji-var")),
        (["train", "emoji-dark", "--group-sise", "4"], "", ("--group-sise, 4", "did you mean --group-size?")),
        (["train", "emoji-dark", "--objective"], "", ("--objective", "--objective.clip or ", "objective.kl?")),
        (["train", "emoji-dark", "--steps", "many"], "", ("--steps", "'many'")),
        (["train", "emoji-dark", "--precision", "fp16"], "", ("'--precision'", "('fp32', 'bf16')")),
        (["train", "emoji-dark", "--reward", "brightness"], "", ("--reward: brightness",)),
        (["train", "emoji-dark", "--objective.clip", "2"], "objective.clip", ("2.0", "0.2")),
        (["train", "emoji-dark", "--objective", "grop"], "objective", ("'grop'", "did you mean grpo?", "file.py:")),
        (["train", "emoji-dark", "--objective", "xyzzy"], "objective", ("'xyzzy'", "give one of grpo, ", "gdpo, ")),
        (["train", "emoji-dark", "--objective", "nowhere.py:Mine"], "objective", ("nowhere.py",)),
        (["train", "emoji-dark", "--objective", "gdpo", "--objective.report-kl"], "", ("--objective.report-kl",)),
        (["evaluate", "tiny", "--suite", "acuracy"], "suite", ("'acuracy'", "did you mean accuracy?")),
        (["launch", "--nproc-pr-node", "2", "train", "emoji-dark"], "launch", ("--nproc-pr-node", "launch --help")),
        (["launch", "--nproc-per-node", "2", "sample", "tiny"], "launch", ("'sample'", "train")),
        (
            ["launch", "--nproc-per-node", "2", "train", "emoji-drak"],
            "recipe",
            ("emoji-drak", "did you mean emoji-dark"),
        ),
        (["launch", "--nproc-per-node", "2", "train", "emoji-dark", "--steps", "many"], "", ("--steps", "'many'")),
        (["sample"], "", ("sfumato sample: STR",)),
        (["sample", "tiny", "--seed"], "", ("'--seed'",)),
        (["export", "tiny"], "", ("sfumato export: --out PATH",)),
    ],
)
def test_wrong_arguments(capsys: Capture, arguments: list[str], field: str, pieces: tuple[str, ...]):
    assert_about(refused(capsys, *arguments), field, pieces)


def test_a_wrong_setting_is_named_first(capsys: Capture):
    for command in ("sample", "evaluate"):
        assert_about(refused(capsys, command, "tiny", "--temperature", "-1"), "temperature", ("-1.0",))


@pytest.mark.parametrize(
    ("options", "field", "pieces"),
    [
        (["--group-size", "1"], "group_size", ("1", "2")),
        (["--minibatch-size", "24"], "minibatch_size", ("24", "128", "8", "16")),
        (["--steps", "0"], "steps", ("0",)),
        (["--temperature", "0"], "temperature", ("0.0",)),
        (["--learning-rate", "nan"], "learning_rate", ("nan",)),
        (["--reward"], "reward", ()),
        (["--device", "cuda:99"], "device", ("'cuda:99'",)),
        (["--device", "toaster"], "device", ("'toaster'",)),
        (["--model", "no-such-model"], "model", ("'no-such-model'", "emoji-var")),
        (["--model", "emoji-varr"], "model", ("'emoji-varr'", "did you mean emoji-var")),
        (["--model", "MODEL", "--classes", "bea"], "classes", ("'bea'", "did you mean 'bee'?")),
        (["--model", "MODEL", "--classes", "0-9"], "classes", ("9", "0 to 4")),
        (["--model", "MODEL", "--reward", "brihgtness", "1"], "reward", ("'brihgtness'", "did you mean bright")),
        (["--model", "MODEL", "--weights", "x.pth"], "weights", ("MODEL",)),
        (["--model", "var-d16", "--weights", "x.pth"], "weights", ("x.pth",)),
        (["--model", "MODEL", "--temperature", "1", "2", "3"], "temperature", ("3", "2")),
        (["--model", "MODEL", "--prompts", "emoji-captions"], "prompts", ("MODEL",)),
        (["--model", "MODEL", "--resume"], "run_dir", ("--resume",)),
    ],
)
def test_training_that_cannot_start(
    capsys: Capture, tiny_model: Path, tmp_path: Path, options: list[str], field: str, pieces: tuple[str, ...]
):
    model, run = str(tiny_model), tmp_path / "run"
    options = [model if option == "MODEL" else option for option in options]
    complaint = refused(capsys, "train", "emoji-dark", "--run-dir", str(run), *options)
    assert_about(complaint, field, tuple(piece.replace("MODEL", model) for piece in pieces))
    assert not run.exists()


def test_a_run_folder_that_cannot_be_made(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data/red").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "data/red/0.png")
    (tmp_path / "file").write_text("")
    config = PretrainConfig(tokenizer=TOKENIZER, transformer=TRANSFORMER)

    def messages(run: Path) -> list[str]:
        with pytest.raises(UserError) as error:
            Pretrain(data=tmp_path / "data", config=config, run_dir=run)()
        return [refused(capsys, "train", "emoji-dark", "--run-dir", str(run)), str(error.value)]

    for message in messages(tmp_path / "file/run"):
        assert_about(message, "run_dir", (f"{tmp_path}/file ", "--run-dir"))

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    for message in messages(tmp_path / "run"):
        assert_about(message, "run_dir", (str(tmp_path), "No space left on device", "--run-dir"))
    assert not (tmp_path / "run").exists()


def test_training(capsys: Capture, tiny_model: Path, tmp_path: Path):
    run = tmp_path / "run"
    options = ["--steps", "1", "--groups-per-step", "2", "--group-size", "2", "--minibatch-size", "4"]
    options += ["--eval-images", "0", "--device", "cpu"]
    text = printed(capsys, "train", "emoji-dark", "--run-dir", str(run), "--model", str(tiny_model), *options)
    assert "step 1/1  reward " in text
    assert "Training draws with temperature 0.7; the model itself draws with temperature 1\n" in text
    assert "before_after.png" in text
    assert (run / "checkpoints/step-000001/model/transformer.safetensors").is_file()
    complaint = refused(capsys, "train", "emoji-dark", "--run-dir", str(run), "--model", str(tiny_model), *options)
    assert_about(complaint, "run_dir", (str(run), "--resume"))
    # The run folder can be used as a model.
    assert "cat" in printed(capsys, "classes", str(run))


@pytest.fixture
def without_type_checker() -> Iterator[None]:
    """Run commands as users do: `pretrain` starts from a marker instead of a path, which the type checker rejects."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def config_of(*options: str) -> Train:
    """Return the command that would be run."""
    command = parse(["train", "emoji-dark", *options])
    assert isinstance(command, Train)
    return command


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (["--labels-per-step", "4"], ["--groups-per-step", "4"], "--labels-per-step --groups-per-step"),
        (["--labels_per_step=4"], ["--groups-per-step=4"], "--labels-per-step --groups-per-step"),
        (["--loss.kl-weight", "0.3"], ["--objective.kl-weight", "0.3"], "--loss.kl-weight --objective.kl-weight"),
        (["--loss.kl_weight=0.3"], ["--objective.kl-weight=0.3"], "--loss.kl-weight --objective.kl-weight"),
        (["--loss.clip", "0.1"], ["--objective.clip", "0.1"], "--loss.clip --objective.clip"),
        (["--combine", "gdpo"], ["--objective", "gdpo"], "--combine --objective"),
        (["--combine=gdpo"], ["--objective=gdpo"], "--combine --objective"),
        (["--combine", "sum"], [], "--combine --objective"),
    ],
)
def test_options_of_version_0_1_still_work(capsys: Capture, old: list[str], new: list[str], told: str):
    expected = config_of(*new)
    assert capsys.readouterr().err == ""
    assert config_of(*old) == expected
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("sfumato: ")
    assert [word for word in lines[0].split() if word.startswith("--")] == told.split()


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--lr", "--learning-rate"),
        ("--num_generations", "--group-size"),
        ("--beta", "--objective.kl-weight"),
        ("--bf16", "--precision bf16"),
        ("--group-siz", "--group-size"),
    ],
)
def test_options_of_other_programs_get_a_hint(capsys: Capture, option: str, hint: str):
    assert f"did you mean {hint}" in refused(capsys, "train", "emoji-dark", option, "1")


def test_every_hint_names_an_option():
    options = printed_options("train", "emoji-dark")
    assert {f"--{option.split()[0]}" for option in SYNONYMS.values()} <= options
    assert not {f"--{option}" for option in SYNONYMS} & options


def printed_options(*command: str) -> set[str]:
    """Return the options that the help of a command lists."""
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:
        parse([*command, "--help"])
    return set(re.findall(r"--[\w.-]+", text.getvalue()))


def test_a_run_with_options_of_version_0_1(capsys: Capture, tiny_model: Path, tmp_path: Path):
    options = ["--model", str(tiny_model), "--labels-per-step", "2", "--group-size", "2", "--minibatch-size", "4"]
    options += ["--loss.kl-weight", "0", "--combine", "gdpo", "--steps", "1", "--eval-images", "0", "--device", "cpu"]
    assert main(["train", "emoji-dark", "--run-dir", str(tmp_path / "run"), *options]) == 0
    lines = capsys.readouterr().err.splitlines()
    pairs = [("--labels-per-step", "--groups-per-step"), ("--loss.kl-weight", "--objective.kl-weight")]
    for line, names in zip(lines, [*pairs, ("--combine", "--objective")], strict=True):
        assert line.startswith("sfumato: ")
        assert all(name in line.split() for name in names)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["groups_per_step"] == 2
    assert config["objective"] == {"name": "gdpo", "clip": 0.2, "kl_weight": 0.0, "skip_equal_groups": True}


def test_settings_of_the_policy_and_the_engine(capsys: Capture):
    command = config_of(
        "--guidance", "1.5", "--temperature", "0.9", "--learning-rate", "3e-4", "--micro-batch-size", "8"
    )
    assert (command.config.policy.guidance, command.config.policy.temperature) == (1.5, 0.9)
    assert (command.config.engine.learning_rate, command.config.engine.micro_batch_size) == (3e-4, 8)
    assert config_of("--guidance", "0").config.policy.guidance is None
    assert config_of("--guidance", "1", "2").config.policy.guidance == (1.0, 2.0)
    assert config_of().config == TRAIN_RECIPES["emoji-dark"].build()


def test_objectives_by_name():
    own = config_of().config.objective
    assert isinstance(own, GRPO)
    gdpo = config_of("--objective", "gdpo", "--objective.clip", "0.3").config.objective
    assert gdpo == GDPO(clip=0.3, kl_weight=own.kl_weight)  # options of both objectives keep the recipe's values
    assert config_of("--objective", "grpo").config.objective == own


OBJECTIVE = """
from dataclasses import dataclass, field
from sfumato.objectives import Credit

@dataclass(frozen=True, kw_only=True)
class Likelihood:
    \"\"\"Raises the likelihood of images that score above the mean.\"\"\"

    strength: float = 1.0
    \"\"\"strength of the push\"\"\"
    needs_reference = False

    def credit(self, batch):
        return Credit(weights=(batch.rewards - batch.rewards.mean())[:, None], metrics={"mine": self.strength})

    def loss(self, log_probs, part, credit):
        return -self.strength * (credit.weights * log_probs).mean(), {"likelihood": log_probs.detach().mean()}
"""


def test_an_objective_of_ones_own(capsys: Capture, tiny_model: Path, tmp_path: Path):
    """It needs no KL and logs no ratio; the view and the curves work without them."""
    (tmp_path / "mine.py").write_text(OBJECTIVE)
    run, name = tmp_path / "run", f"{tmp_path}/mine.py:Likelihood"
    options = ["--objective", name, "--objective.strength", "2", "--reward", "brightness", "1", "--steps", "2"]
    options += ["--groups-per-step", "2", "--group-size", "2", "--minibatch-size", "4", "--eval-images", "0"]
    command = ["train", "emoji-dark", "--run-dir", str(run), "--model", str(tiny_model), "--device", "cpu", *options]
    assert "step 2/2  reward " in printed(capsys, *command)
    config = json.loads((run / "config.json").read_text())
    assert config["objective"] == {"name": name, "strength": 2.0}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["mine"] == 2.0
        assert line["likelihood"] < 0
        assert line["grad_norm"] > 0
        assert not {"kl", "clip_fraction", "ratio_mean"} & line.keys()
    with Image.open(run / "curves.png") as picture:
        picture.verify()
    assert printed(capsys, *command, "--resume")
    with bad_input("objective", "Missing"):
        parse(["train", "emoji-dark", "--objective", f"{tmp_path}/mine.py:Missing"])
    (tmp_path / "half.py").write_text("class Half:\n    needs_reference = False\n")
    with bad_input("objective", "credit, loss"):
        parse(["train", "emoji-dark", "--objective", f"{tmp_path}/half.py:Half"])


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(capsys: Capture, shell: str):
    script = printed(capsys, "--print-completion", shell)
    for word in (*COMMANDS, *TRAIN_RECIPES, *PRETRAIN_RECIPES, "--group-size", "--objective.clip", "--suite"):
        assert word in script.replace('"', " ").replace(";", " ").split(), word
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")
    for wrong in (("fish",), (), ("bash", "more")):
        assert refused(capsys, "--print-completion", *wrong).startswith("print-completion: ")


def complete(script: str, *words: str) -> list[str]:
    """Return the completions that bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    ask = f'{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _sfumato; printf "%s\\n" "${{COMPREPLY[@]}}"'
    return subprocess.run(["bash", "-c", ask], text=True, capture_output=True, check=True).stdout.split()


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on PATH")
def test_what_completion_offers(capsys: Capture):
    script = printed(capsys, "--print-completion", "bash")
    assert complete(script, "sfumato", "tr") == ["train"]
    assert "emoji-dark-no-kl" in complete(script, "sfumato", "train", "emoji-da")
    assert complete(script, "sfumato", "train", "emoji-dark", "--objective.c") == ["--objective.clip"]
    assert complete(script, "sfumato", "sample", "x", "--temp") == ["--temperature"]


def test_interrupted(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tiny_model: Path):
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sfumato.families.read_card", interrupt)
    assert main(["classes", str(tiny_model)]) == 130


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("safetensors.torch.save_file", SafetensorError("I/O error: No space left on device (os error 28)")),
        ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")),
        ("os.fsync", OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_a_full_disk_is_one_line(
    capsys: Capture,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    error: Exception,
):
    """These are the errors of a full file system."""

    def full(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(function, full)
    options = ["--groups-per-step", "2", "--group-size", "2", "--minibatch-size", "4", "--eval-images", "0"]
    command = ["train", "emoji-dark", "--model", str(tiny_model), "--run-dir", str(tmp_path / "run"), "--steps", "1"]
    assert_about(refused(capsys, *command, *options), "disk", ("full", "--resume"))


def test_classes(capsys: Capture, tiny_model: Path):
    lines = printed(capsys, "classes", str(tiny_model)).splitlines()
    assert [line.split() for line in lines] == [[str(i), name] for i, name in enumerate(CLASS_NAMES)]
    assert "1  goldfish" in printed(capsys, "classes", "var-d16")
    assert_about(refused(capsys, "classes", "none"), "model", ("'none'",))
    assert_about(refused(capsys, "classes", "emoji-t2i"), "model", ("emoji-t2i", "--prompts"))


def sample(capsys: Capture, model: Path, out: Path, *options: str) -> bytes:
    assert out.name in printed(capsys, "sample", str(model), "--device", "cpu", "--out", str(out), *options)
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        return picture.convert("RGB").tobytes()


def test_sample(capsys: Capture, tiny_model: Path, tmp_path: Path):
    out = tmp_path / "new/grid.png"
    by_name = sample(capsys, tiny_model, out, "--classes", "bee", "dog", "--count", "3", "--seed", "7")
    assert sample(capsys, tiny_model, out, "--classes", "1", "3", "--count", "3", "--seed", "8") != by_name
    assert sample(capsys, tiny_model, out, "--classes", "1", "3", "--count", "3", "--seed", "7") == by_name
    policy = load(tiny_model)
    images = policy.decode(policy.sample(tiny_request([1, 1, 1, 3, 3, 3]), torch.arange(7, 13)).tokens)
    with Image.open(out) as picture:
        # Images of 8 pixels, enlarged 16 times, with gaps of 2.
        columns = (picture.width - 2) // 130
        for n, image in enumerate(images):
            corner = (2 + n % columns * 130 + 5, 2 + n // columns * 130 + 5)
            assert picture.getpixel(corner) == tuple((image[:, 0, 0] * 255).round().int().tolist()), n


def test_samples_in_other_files(capsys: Capture, tiny_model: Path, tmp_path: Path):
    options = ("sample", str(tiny_model), "--device", "cpu", "--classes", "bee", "dog", "--count", "2", "--seed", "7")
    for name, kind in (("grid.jpg", "JPEG"), ("grid.WebP", "WEBP")):
        assert name in printed(capsys, *options, "--out", str(tmp_path / name))
        with Image.open(tmp_path / name) as picture:
            assert picture.format == kind
    printed(capsys, *options, "--out", str(tmp_path / "folder"))
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        "bee-7.png", "bee-8.png", "dog-10.png", "dog-9.png",
    ]  # fmt: skip
    expected = load(tiny_model).draw(["bee", "dog"], n=2, seed=7)
    with Image.open(tmp_path / "folder/dog-9.png") as picture:
        assert picture.size == (8, 8)
        assert picture.getpixel((3, 5)) == tuple((expected[2, :, 5, 3] * 255).round().int().tolist())


def test_a_model_of_few_classes_is_drawn_once_per_class(capsys: Capture, tiny_model: Path, tmp_path: Path):
    text = printed(capsys, "sample", str(tiny_model), "--device", "cpu", "--out", str(tmp_path / "a.png"))
    assert f"{4 * len(CLASS_NAMES)} images" in text


def test_precision_of_samples(capsys: Capture, tiny_model: Path, tmp_path: Path):
    options = ("--classes", "1", "3", "--count", "3")
    exact, rounded = (
        sample(capsys, tiny_model, tmp_path / "grid.png", *options, "--precision", precision)
        for precision in ("fp32", "bf16")
    )
    assert sample(capsys, tiny_model, tmp_path / "grid.png", *options) == exact  # the default on the CPU
    assert rounded != exact


def test_samples_are_drawn_with_the_models_own_settings(capsys: Capture, tiny_model: Path, tmp_path: Path):
    generator, out = tiny_var(), tmp_path / "grid.png"
    generator.card = replace(generator.card, settings=Settings(guidance=2.0, temperature=0.5))
    save_model(tmp_path / "model", generator)
    own = sample(capsys, tmp_path / "model", out)
    assert own == sample(capsys, tiny_model, out, "--guidance", "2", "--temperature", "0.5")
    plain = sample(capsys, tmp_path / "model", out, "--guidance", "0", "--temperature", "1")
    assert plain == sample(capsys, tiny_model, out) != own
    text = printed(capsys, "sample", str(tmp_path / "model"), "--device", "cpu", "--out", str(out), "--top-k", "3")
    assert "20 images, guidance 2, temperature 0.5, top-k 3: " in text


@pytest.mark.parametrize(
    "options", [["--smooth"], ["--top-k", "3"], ["--top-p", "0.5"], ["--guidance", "2"], ["--temperature", "0.1"]]
)
def test_options_of_sampling_matter(capsys: Capture, tiny_model: Path, tmp_path: Path, options: list[str]):
    out = tmp_path / "grid.png"
    assert sample(capsys, tiny_model, out) != sample(capsys, tiny_model, out, *options)
    assert sample(capsys, tiny_model, out, *options) == sample(capsys, tiny_model, out, *options)


@pytest.mark.parametrize(
    ("options", "field", "pieces"),
    [
        (["--count", "0"], "count", ("0", "1")),
        (["--out", "grid.tiff"], "out", ("grid.tiff", ".png", ".jpg")),
        (["--top-p", "1.5"], "top_p", ("1.5",)),
        (["--temperature", "0"], "temperature", ("0.0",)),
        (["--top-k", "1", "2", "3"], "top_k", ("3", "2")),
        (["--guidance", "-2"], "guidance", ("-2.0",)),
        (["--classes", "unicorn"], "classes", ("'unicorn'",)),
        (["--classes", "5"], "classes", ("5", "0 to 4")),
        (["--prompts", "a bee"], "prompts", ("--classes",)),
        (["--text-encoder", "word-vectors"], "text_encoder", ()),
        (["--seed", "-1"], "seed", ("-1",)),
    ],
)
def test_wrong_sampling(capsys: Capture, tiny_model: Path, options: list[str], field: str, pieces: tuple[str, ...]):
    assert_about(refused(capsys, "sample", str(tiny_model), "--device", "cpu", *options), field, pieces)


def test_a_misspelled_file_of_prompts_is_no_caption(capsys: Capture, tmp_path: Path):
    save_model(tmp_path / "text", tiny_llamagen(text=True))
    for name in ("caps.tx", str(tmp_path / "caps"), "caps.jsonl"):
        assert_about(refused(capsys, "sample", str(tmp_path / "text"), "--prompts", name), "prompts", (name,))


def test_names_with_brackets_are_printed_as_they_are(capsys: Capture, tiny_model: Path, tmp_path: Path):
    out = tmp_path / "img[copy][/x].png"
    assert str(out) in printed(capsys, "sample", str(tiny_model), "--device", "cpu", "--out", str(out), "--count", "1")


@pytest.mark.parametrize("file_format", ["pth", "safetensors"])
def test_export(capsys: Capture, tiny_model: Path, tmp_path: Path, file_format: str):
    arguments = ["export", str(tiny_model), "--out", str(tmp_path / "out"), "--format", file_format]
    files = [Path(line) for line in printed(capsys, *arguments).splitlines()]
    assert [file.name for file in files] == [f"var.{file_format}", f"vae.{file_format}"]
    network, tokenizer = (read_state_dict(file) for file in files)
    read = read_var(network, tokenizer, patch_nums=TOKENIZER.scales, num_heads=2, norm_groups=TOKENIZER.norm_groups)
    original = load_generator(tiny_model)
    assert isinstance(original, VAR)
    assert read.config == original.config
    ours, expected = read.state_dict(), original.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert_about(refused(capsys, *arguments), "out", (str(files[0]),))


def test_pretraining(capsys: Capture, tmp_path: Path):
    for name in ("light", "dark"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), "white" if name == "light" else "black").save(tmp_path / "data" / name / "0.png")
    config = PretrainConfig(
        tokenizer=TOKENIZER,
        transformer=TRANSFORMER,
        tokenizer_training=TokenizerTraining(steps=1, batch_size=2),
        generator_training=GeneratorTraining(steps=1, batch_size=2),
    )
    assert Pretrain(data=tmp_path / "data", config=config, run_dir=tmp_path / "run")() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tokenizer 1/1  loss ")
    assert lines[1].startswith("generator 1/1  loss ")
    assert printed(capsys, "classes", str(tmp_path / "run")).split() == ["0", "dark", "1", "light"]


def test_wrong_export(capsys: Capture, tiny_model: Path, tmp_path: Path):
    out = str(tmp_path / "out")
    complaint = refused(capsys, "export", str(tiny_model), "--out", out, "--format", "onnx")
    assert_about(complaint, "format", ("'onnx'", "pth", "safetensors"))
    assert_about(refused(capsys, "export", "nothing", "--out", out), "model", ("'nothing'",))
    assert_about(refused(capsys, "export", "var-d16", "--out", out), "model", ("var-d16",))


def test_evaluation_wants_the_classifiers_classes(capsys: Capture, tiny_model: Path):
    assert_about(refused(capsys, "evaluate", str(tiny_model)), "target", (str(tiny_model),))


@pytest.mark.parametrize("name", TRAIN_RECIPES)
def test_recipes_are_valid(name: str):
    config = TRAIN_RECIPES[name].build()
    config.validate()
    assert TRAIN_RECIPES[name].help.endswith(".")
    command = parse(["train", name])
    assert isinstance(command, Train)
    assert config == command.config
    assert command.run_dir == Path("runs") / name


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("name", PRETRAIN_RECIPES)
def test_recipes_of_pretraining_are_valid(name: str):
    assert PRETRAIN_RECIPES[name].help.endswith(".")
    command = parse(["pretrain", name, "--data", "x"])
    assert isinstance(command, Pretrain)
    assert command.config == PRETRAIN_RECIPES[name].build()


@pytest.mark.usefixtures("without_type_checker")
def test_settings_of_pretraining_by_their_old_name(capsys: Capture):
    expected = parse(["pretrain", "emoji-var", "--data", "x", "--settings.guidance", "3"])
    assert capsys.readouterr().err == ""
    assert parse(["pretrain", "emoji-var", "--data", "x", "--inference.guidance", "3"]) == expected
    assert isinstance(expected, Pretrain)
    assert isinstance(expected.config, PretrainConfig)
    assert expected.config.settings.guidance == 3
    error = capsys.readouterr().err
    assert all(name in error.split() for name in ("--inference.guidance", "--settings.guidance"))


def test_recipes_without_kl_have_nothing_that_holds_them():
    for target, reward in (("dark", "darkness"), ("bright", "brightness"), ("colorful", "colorfulness")):
        plain, free = (TRAIN_RECIPES[f"emoji-{target}{end}"].build() for end in ("", "-no-kl"))
        assert plain.objective.kl_weight > 0
        assert not free.objective.needs_reference
        expected = replace(
            plain,
            reward={reward: 1.0},
            steps=60,
            engine=replace(plain.engine, final_learning_rate=plain.engine.learning_rate),
            objective=replace(plain.objective, kl_weight=0.0),
        )
        assert free == expected


def test_module():
    result = run_module("sfumato", "pretrain", "emoji-var", "--run-dir", "x")
    assert result.returncode == 2
    assert result.stderr.startswith("sfumato: ")
    assert "sfumato pretrain emoji-var: --data PATH" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
