"""The command line: exit statuses, one-line errors, and what each command writes."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from command import run_module
from PIL import Image
from tiny import CLASS_NAMES, TOKENIZER, TRANSFORMER, tiny_conditions, tiny_var

from sfumato.cli import Pretrain, main, parse
from sfumato.families.library import load, save_model
from sfumato.families.published import load_var, read_state_dict
from sfumato.pretraining.generator_stage import GeneratorTraining
from sfumato.pretraining.pretrain import PretrainConfig
from sfumato.pretraining.tokenizer_stage import TokenizerTraining
from sfumato.recipes import PRETRAIN_RECIPES, TRAIN_RECIPES
from sfumato.settings import Inference

Capture = pytest.CaptureFixture[str]


def refused(capsys: Capture, *arguments: str) -> str:
    """The one line of complaint about these arguments."""
    assert main(list(arguments)) == 2
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert len(lines) == 1, output.err
    assert lines[0].startswith("sfumato: ")
    return lines[0].removeprefix("sfumato: ")


def printed(capsys: Capture, *arguments: str) -> str:
    """What is printed by a command that succeeds."""
    assert main(list(arguments)) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def test_help_lists_the_commands(capsys: Capture):
    for arguments in ([], ["--help"], ["-h"]):
        text = printed(capsys, *arguments)
        for command in ("train", "pretrain", "sample", "classes", "evaluate", "export"):
            assert f"  {command} " in text


def test_version(capsys: Capture):
    assert printed(capsys, "--version") == version("sfumato") + "\n"


@pytest.mark.parametrize(("command", "recipes"), [("train", TRAIN_RECIPES), ("pretrain", PRETRAIN_RECIPES)])
def test_help_lists_the_recipes(capsys: Capture, command: str, recipes: dict):
    assert recipes
    for arguments in ([command], [command, "--help"]):
        words = printed(capsys, *arguments).split()
        assert recipes.keys() <= set(words)


def test_help_of_a_recipe_lists_the_settings(capsys: Capture):
    with pytest.raises(SystemExit) as stop:
        main(["train", "emoji-dark", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("--run-dir", "--resume", "--group-size", "--loss.clip", "--loss.kl-weight", "--reward", "--classes"):
        assert option in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "command: there is no 'trian'; did you mean train or pretrain?"),
        (["xyzzy"], "command: there is no 'xyzzy'; give one of train, pretrain"),
        (["train", "emoji-drak"], "recipe: there is no 'emoji-drak'; did you mean emoji-dark"),
        (["pretrain", "nothing"], "recipe: there is no 'nothing'; "),
        (
            ["train", "emoji-dark", "--group-sise", "4"],
            "Unrecognized options: --group-sise, 4; did you mean --group-size?",
        ),
        (["train", "emoji-dark", "--steps", "many"], "Error parsing --steps: "),
        (["train", "emoji-dark", "--precision", "fp16"], "'--precision'. Expected one of ('fp32', 'bf16')"),
        (["train", "emoji-dark", "--reward", "brightness"], "Error parsing --reward: brightness are not pairs"),
        (["train", "emoji-dark", "--loss.clip", "2"], "loss.clip: 2.0 is not between 0 and 1; the papers use 0.2"),
        (["sample"], "Missing from sfumato sample: STR bundled model"),
        (["sample", "tiny", "--seed"], "Missing value for argument '--seed'"),
        (["export", "tiny"], "Missing from sfumato export: --out PATH"),
    ],
)
def test_wrong_arguments(capsys: Capture, arguments: list[str], message: str):
    assert message in refused(capsys, *arguments)


def test_a_wrong_setting_is_named_first(capsys: Capture):
    for command in ("sample", "evaluate"):
        assert refused(capsys, command, "tiny", "--temperature", "-1").startswith("temperature: -1.0 must be above 0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--group-size", "1"], "group_size: 1 is too small; give at least 2"),
        (["--minibatch-size", "24"], "minibatch_size: 24 does not divide the 128 images a step (8 labels × 16)"),
        (["--steps", "0"], "steps: 0 is too small"),
        (["--temperature", "0"], "temperature: 0.0 must be above 0"),
        (["--learning-rate", "nan"], "learning_rate: nan must be above 0"),
        (["--reward"], "reward: none is given"),
        (["--device", "cuda:99"], "device: 'cuda:99' is not to be had"),
        (["--device", "toaster"], "device: 'toaster' is not to be had"),
        (["--model", "no-such-model"], "model: 'no-such-model' is neither a known model ("),
        (["--model", "MODEL", "--classes", "bea"], "classes: there is no class 'bea'; did you mean 'bee'?"),
        (["--model", "MODEL", "--classes", "0-9"], "classes: there is no class number 9; give 0 to 4"),
        (["--model", "MODEL", "--reward", "brihgtness", "1"], "reward: there is no 'brihgtness'; did you mean"),
        (["--model", "MODEL", "--weights", "x.pth"], "weights: files go with a released model"),
        (["--model", "var-d16", "--weights", "x.pth"], "weights: x.pth is not a file"),
        (["--model", "MODEL", "--resume"], "holds no run to resume"),
    ],
)
def test_training_that_cannot_start(
    capsys: Capture, tiny_model: Path, tmp_path: Path, options: list[str], message: str
):
    options = [str(tiny_model) if option == "MODEL" else option for option in options]
    run = tmp_path / "run"
    assert message in refused(capsys, "train", "emoji-dark", "--run-dir", str(run), *options)
    assert not run.exists()


def test_a_run_folder_that_cannot_be_made(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data/red").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "data/red/0.png")
    (tmp_path / "file").write_text("")
    config = PretrainConfig(tokenizer=TOKENIZER, transformer=TRANSFORMER)

    def messages(run: Path) -> list[str]:
        with pytest.raises(ValueError, match="run_dir") as error:
            Pretrain(data=tmp_path / "data", config=config, run_dir=run)()
        return [refused(capsys, "train", "emoji-dark", "--run-dir", str(run)), str(error.value)]

    for message in messages(tmp_path / "file/run"):
        assert f"run_dir: {tmp_path}/file is a file, not a folder; choose another --run-dir" in message

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    for message in messages(tmp_path / "run"):
        assert f"run_dir: nothing can be written in {tmp_path} (No space left on device); choose another" in message
    assert not (tmp_path / "run").exists()


def test_training(capsys: Capture, tiny_model: Path, tmp_path: Path):
    run = tmp_path / "run"
    options = ["--steps", "1", "--labels-per-step", "2", "--group-size", "2", "--minibatch-size", "4"]
    options += ["--eval-images", "0", "--device", "cpu"]
    text = printed(capsys, "train", "emoji-dark", "--run-dir", str(run), "--model", str(tiny_model), *options)
    assert "step 1/1  reward " in text
    assert "before_after.png" in text
    assert (run / "checkpoints/step-000001/model/transformer.safetensors").is_file()
    assert "is not empty" in refused(
        capsys, "train", "emoji-dark", "--run-dir", str(run), "--model", str(tiny_model), *options
    )
    # The folder of the run is a model.
    assert "cat" in printed(capsys, "classes", str(run))


def test_interrupted(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tiny_model: Path):
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sfumato.families.library.class_names", interrupt)
    assert main(["classes", str(tiny_model)]) == 130


def test_classes(capsys: Capture, tiny_model: Path):
    lines = printed(capsys, "classes", str(tiny_model)).splitlines()
    assert [line.split() for line in lines] == [[str(i), name] for i, name in enumerate(CLASS_NAMES)]
    assert "1  goldfish" in printed(capsys, "classes", "var-d16")
    assert "model: 'none' is neither" in refused(capsys, "classes", "none")


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
    images = policy.decode(policy.sample(tiny_conditions([1, 1, 1, 3, 3, 3]), torch.arange(7, 13)).tokens)
    with Image.open(out) as picture:
        # Images of 8 pixels, enlarged 16 times, with gaps of 2.
        columns = (picture.width - 2) // 130
        for n, image in enumerate(images):
            corner = (2 + n % columns * 130 + 5, 2 + n // columns * 130 + 5)
            assert picture.getpixel(corner) == tuple((image[:, 0, 0] * 255).round().int().tolist()), n


def test_samples_are_drawn_with_the_models_own_settings(capsys: Capture, tiny_model: Path, tmp_path: Path):
    generator, out = tiny_var(), tmp_path / "grid.png"
    generator.inference = Inference(guidance=2.0, temperature=0.5)
    save_model(tmp_path / "model", generator)
    own = sample(capsys, tmp_path / "model", out)
    assert own == sample(capsys, tiny_model, out, "--guidance", "2", "--temperature", "0.5")
    plain = sample(capsys, tmp_path / "model", out, "--guidance", "0", "--temperature", "1")
    assert plain == sample(capsys, tiny_model, out) != own
    text = printed(capsys, "sample", str(tmp_path / "model"), "--device", "cpu", "--out", str(out), "--top-k", "3")
    assert "64 images, guidance 2, temperature 0.5, top-k 3: " in text


@pytest.mark.parametrize(
    "options", [["--smooth"], ["--top-k", "3"], ["--top-p", "0.5"], ["--guidance", "2"], ["--temperature", "0.1"]]
)
def test_options_of_sampling_matter(capsys: Capture, tiny_model: Path, tmp_path: Path, options: list[str]):
    out = tmp_path / "grid.png"
    assert sample(capsys, tiny_model, out) != sample(capsys, tiny_model, out, *options)
    assert sample(capsys, tiny_model, out, *options) == sample(capsys, tiny_model, out, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "0"], "count: 0 images; give at least 1"),
        (["--out", "grid.jpg"], "out: grid.jpg is not a .png file"),
        (["--top-p", "1.5"], "top_p: 1.5 is not between 0 and 1"),
        (["--temperature", "0"], "temperature: 0.0 must be above 0"),
        (["--classes", "unicorn"], "classes: there is no class 'unicorn'"),
        (["--classes", "5"], "classes: there is no class number 5; give 0 to 4"),
        (["--seed", "-1"], "seeds: -1 is negative"),
    ],
)
def test_wrong_sampling(capsys: Capture, tiny_model: Path, options: list[str], message: str):
    assert message in refused(capsys, "sample", str(tiny_model), "--device", "cpu", *options)


@pytest.mark.parametrize("file_format", ["pth", "safetensors"])
def test_export(capsys: Capture, tiny_model: Path, tmp_path: Path, file_format: str):
    arguments = ["export", str(tiny_model), "--out", str(tmp_path / "out"), "--format", file_format]
    files = [Path(line) for line in printed(capsys, *arguments).splitlines()]
    assert [file.name for file in files] == [f"var.{file_format}", f"vae.{file_format}"]
    network, tokenizer = (read_state_dict(file) for file in files)
    read = load_var(network, tokenizer, patch_nums=TOKENIZER.scales, num_heads=2, norm_groups=TOKENIZER.norm_groups)
    original = load(tiny_model).generator
    assert read.config == original.config  # pyright: ignore[reportAttributeAccessIssue]
    ours = read.state_dict()
    expected = original.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert f"out: {files[0]} exists" in refused(capsys, *arguments)


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
    assert "format: 'onnx' is not known" in refused(capsys, "export", str(tiny_model), "--out", out, "--format", "onnx")
    assert "model: 'nothing' is neither" in refused(capsys, "export", "nothing", "--out", out)


def test_evaluation_wants_the_classifiers_classes(capsys: Capture, tiny_model: Path):
    assert "has other classes than the bundled classifier" in refused(capsys, "evaluate", str(tiny_model))


@pytest.mark.parametrize("name", TRAIN_RECIPES)
def test_recipes_are_valid(name: str):
    line, recipe = TRAIN_RECIPES[name]
    config = recipe()
    config.validate()
    assert line.endswith(".")
    assert config == parse(["train", name]).config  # pyright: ignore


def test_recipes_without_kl_have_nothing_that_holds_them():
    for target, reward in (("dark", "darkness"), ("bright", "brightness"), ("colorful", "colorfulness")):
        plain, free = (TRAIN_RECIPES[f"emoji-{target}{end}"][1]() for end in ("", "-no-kl"))
        assert plain.loss.kl_weight > 0
        expected = replace(
            plain,
            reward={reward: 1.0},
            steps=60,
            final_learning_rate=plain.learning_rate,
            loss=replace(plain.loss, kl_weight=0.0),
        )
        assert free == expected


def test_module():
    result = run_module("sfumato", "pretrain", "emoji-var", "--run-dir", "x")
    assert result.returncode == 2
    assert result.stderr.startswith("sfumato: Missing from sfumato pretrain emoji-var: --data PATH folder of images")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
