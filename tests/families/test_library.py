"""Load generators by name and from folders."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from command import environment
from errors import bad_input
from golden_data import tokenizer_weights, transformer_weights
from tiny import (
    CLASS_NAMES,
    LLAMAGEN,
    LLAMAGEN_TEXT,
    TOKENIZER,
    TRANSFORMER,
    VQ_TOKENIZER,
    tiny_captions,
    tiny_llamagen,
    tiny_request,
    tiny_var,
)

from sfumato.families import FAMILIES, bundled_models, find_family, load, load_generator, read_card, releases
from sfumato.families.exporting import export
from sfumato.families.infinity.generator import Infinity
from sfumato.families.library import (
    family_of_shape,
    find_model,
    load_model,
    save_model,
)
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.var.generator import VAR
from sfumato.policy import Generator
from sfumato.pretraining.pretrain import build_generator
from sfumato.pretraining.pretrain_config import PretrainConfig
from sfumato.request import Words
from sfumato.settings import Settings


def test_round_trip_of_a_model_folder(tmp_path: Path):
    generator = tiny_var()
    save_model(tmp_path / "model", generator)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json", "tokenizer.safetensors", "transformer.safetensors",
    ]  # fmt: skip
    read = load_model(tmp_path / "model")
    assert isinstance(read, VAR)
    assert (read.config, read.tokenizer.config) == (TRANSFORMER, TOKENIZER)
    assert read.card == generator.card
    assert read.card.class_names == CLASS_NAMES
    ours, theirs = generator.state_dict(), read.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("text", [False, True])
def test_round_trip_of_a_llamagen_folder(tmp_path: Path, text: bool):
    generator = tiny_llamagen(text=text, guidance_interval=3)
    save_model(tmp_path / "model", generator)
    read = load_model(tmp_path / "model")
    assert isinstance(read, LlamaGen)
    assert read.guidance_interval == 3
    assert (read.config, read.tokenizer.config) == (LLAMAGEN_TEXT if text else LLAMAGEN, VQ_TOKENIZER)
    assert read.card == read_card(str(tmp_path / "model")) == generator.card
    assert read.card.class_names == (() if text else CLASS_NAMES)
    ours, theirs = generator.state_dict(), read.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    policy = load(tmp_path / "model", guidance=2.5)
    assert policy.settings == Settings(guidance=2.5)
    request, tokens = tiny_captions([2, 3]) if text else tiny_request([2, 0]), torch.arange(18).view(2, 9) % 16
    expected = generator.logits(request, tokens, Settings(guidance=2.5))
    logits = policy.generator.logits(request, tokens, policy.settings)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)


def test_families():
    assert {"var", "llamagen", "switti"} <= FAMILIES.keys()
    assert all(name == family.name for name, family in FAMILIES.items())
    for name, kind, network, tokenizer in (
        ("var", VAR, TRANSFORMER, TOKENIZER),
        ("llamagen", LlamaGen, LLAMAGEN, VQ_TOKENIZER),
        ("llamagen", LlamaGen, LLAMAGEN_TEXT, VQ_TOKENIZER),
    ):
        family = find_family(name)
        assert family is family_of_shape(network)
        assert isinstance(network, family.network_shape)
        assert isinstance(tokenizer, family.tokenizer_shape)
        # A shape is the same after a round trip through JSON.
        shape = {"transformer": dataclasses.asdict(network), "tokenizer": dataclasses.asdict(tokenizer)}
        generator = family.build(json.loads(json.dumps(shape)))
        assert isinstance(generator, kind)
        assert (generator.config, generator.tokenizer.config) == (network, tokenizer)
        assert family.describe(generator).items() >= shape.items()
    with bad_input("transformer", "VQConfig"):
        family_of_shape(VQ_TOKENIZER)
    with bad_input("tokenizer", "VQVAEConfig", "llamagen"):
        build_generator(PretrainConfig(tokenizer=TOKENIZER, transformer=LLAMAGEN), CLASS_NAMES)
    with bad_input("tokenizer", "VQConfig", "var"):
        build_generator(PretrainConfig(tokenizer=VQ_TOKENIZER, transformer=TRANSFORMER), CLASS_NAMES)
    with bad_input("model", "'vra'", "var, llamagen"):
        find_family("vra")


def test_a_family_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "own.py"
    file.write_text(
        "from tiny import tiny_var\n\n\ndef build():\n    return tiny_var(seed=3)\n\n\ndef fail():\n    return 1 / 0\n"
    )
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    expected = tiny_var(seed=3).logits(tiny_request([2]), tokens, Settings())
    monkeypatch.chdir(tmp_path)
    generator = load_generator("own.py:build")
    assert torch.equal(generator.logits(tiny_request([2]).inputs, tokens, Settings()), expected)
    assert read_card("own.py:build").class_names == CLASS_NAMES
    # The folder refers to the same file from any working directory.
    with torch.no_grad():
        for parameter in generator.network.parameters():
            parameter.add_(0.01)
    changed = generator.logits(tiny_request([2]).inputs, tokens, Settings())
    assert (changed - expected).abs().max() > 1e-3
    save_model(tmp_path / "model", generator)
    monkeypatch.chdir("/")
    read = load(tmp_path / "model")
    assert read.generator.card.family == f"{file}:build"
    assert torch.equal(read.generator.logits(tiny_request([2]).inputs, tokens, Settings()), changed)
    with bad_input("model", "'none'", "build"):
        load(f"{file}:none")
    with bad_input("model", "nowhere.py"):
        load("nowhere.py:build")


def test_half_precision_is_widened(tmp_path: Path):
    generator = tiny_var()
    save_model(tmp_path, generator, torch.float16)
    size, read = (tmp_path / "transformer.safetensors").stat().st_size, load_model(tmp_path)
    assert isinstance(read, VAR)
    save_model(tmp_path, generator)
    assert size < 0.7 * (tmp_path / "transformer.safetensors").stat().st_size
    for name, tensor in generator.state_dict().items():
        assert read.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(read.state_dict()[name], tensor.half().to(tensor.dtype)), name


def test_load(tiny_model: Path):
    policy = load(tiny_model, guidance=1.5, temperature=0.7)
    assert policy.settings == Settings(guidance=1.5, temperature=0.7)
    assert isinstance(policy.generator, VAR)
    assert not policy.generator.training
    original = tiny_var()
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    expected = original.logits(tiny_request([2]), tokens, policy.settings)
    assert torch.equal(policy.generator.logits(tiny_request([2]), tokens, policy.settings), expected)
    assert load(str(tiny_model)).settings == Settings()
    assert read_card(str(tiny_model)).class_names == CLASS_NAMES


def test_the_card_of_a_folder(tiny_model: Path, tmp_path: Path):
    card = read_card(str(tiny_model))
    assert card == load_generator(tiny_model).card == tiny_var().card
    assert (card.family, card.judge) == ("var", None)
    # Version 0.1 did not store a judge; all its models used the emoji judge.
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["judge"]
    (folder / "config.json").write_text(json.dumps(config))
    assert read_card(str(folder)).judge == load_generator(folder).card.judge == "emoji"


@pytest.mark.parametrize("missing", ["family", "class_names"])
def test_a_config_that_describes_no_generator(tiny_model: Path, tmp_path: Path, missing: str):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    del config[missing]
    (folder / "config.json").write_text(json.dumps(config))
    with bad_input("model", str(folder)):
        load(folder)
    with bad_input("model", str(folder)):
        read_card(str(folder))
    (folder / "config.json").write_text("{")
    for read in (load, read_card):
        with bad_input("model", str(folder / "config.json")):
            read(str(folder))


def test_another_text_encoder(tmp_path: Path):
    save_model(tmp_path, tiny_llamagen(text=True))
    generator = load_generator(tmp_path, text_encoder="someone/else")
    assert isinstance(generator, LlamaGen)
    assert generator.reader.encoder == "someone/else"
    save_model(tmp_path / "classes", tiny_llamagen())
    with bad_input("text_encoder", str(tmp_path / "classes")):
        load(tmp_path / "classes", text_encoder="word-vectors")


def test_newest_checkpoint_of_a_run(tiny_model: Path, tmp_path: Path):
    for step in (2, 10):
        shutil.copytree(tiny_model, tmp_path / f"run/checkpoints/step-{step:06d}/model")
    assert find_model(tmp_path / "run") == tmp_path / "run/checkpoints/step-000010/model"
    assert find_model(tmp_path / "run/checkpoints/step-000002/model") == (
        tmp_path / "run/checkpoints/step-000002/model"
    )
    # A checkpoint that was being written when the run was killed is ignored.
    (tmp_path / "run/checkpoints/.step-000012.tmp/model").mkdir(parents=True)
    assert find_model(tmp_path / "run") == tmp_path / "run/checkpoints/step-000010/model"


def test_checkpoint_of_a_run(tiny_model: Path, tmp_path: Path):
    shutil.copytree(tiny_model, tmp_path / "step-000002/model")
    assert find_model(tmp_path / "step-000002") == tmp_path / "step-000002/model"


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("nothing", ("give one of ", "emoji-var, ", "var-d16, ")),
        ("var-d17", ("did you mean var-d16 or ",)),
        ("/no/such/folder", ("give one of ", "emoji-var, ", "var-d16, ")),
    ],
)
def test_unknown_models(name: str, pieces: tuple[str, ...]):
    with bad_input("model", repr(name), *pieces):
        load(name)
    with bad_input("model", repr(name), *pieces):
        read_card(name)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # HF_HUB_OFFLINE is set, so files that are not cached are unavailable.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with bad_input("weights", "var_d16.pth", "FoundationVision/var"):
        load("var-d16")
    with bad_input("model", "someone/something"):
        load("someone/something")


def test_releases():
    by_family = [[name for name in releases() if name.startswith(family)] for family in ("var-d", "llamagen-")]
    assert by_family[0] == ["var-d16", "var-d20", "var-d24", "var-d30", "var-d36"]
    assert len(by_family[1]) == 12
    for name in by_family[0]:
        family, release = releases()[name]
        assert family is FAMILIES["var"]
        assert sum(n * n for n in release.needed["patch_nums"]) == (2240 if name == "var-d36" else 680)
    for name in by_family[1]:
        family, release = releases()[name]
        assert family is FAMILIES["llamagen"]
        expected = 16 if name.endswith(("256", "t2i")) else 32 if "512" in name else 24
        assert release.needed["grid_size"] == expected, name
    assert read_card("llamagen-xl-t2i").class_names == ()
    assert read_card("llamagen-3b-384").class_names == read_card("var-d16").class_names
    assert [read_card(name).family for name in ("llamagen-xl-t2i", "var-d16")] == ["llamagen", "var"]
    assert {read_card(name).judge for name in releases()} == {None}
    names = read_card("var-d30").class_names
    assert len(names) == 1000
    assert (names[0], names[1], names[207], names[999]) == ("tench", "goldfish", "golden retriever", names[-1])


def test_another_models_weights(tmp_path: Path):
    torch.save(transformer_weights("a"), tmp_path / "var.pth")
    torch.save(tokenizer_weights(), tmp_path / "vae.pth")
    with bad_input("weights", "depth 2", "var-d16", "depth 16", "var_d16.pth"):
        load("var-d16", weights=tmp_path / "var.pth", tokenizer=tmp_path / "vae.pth")
    with bad_input("weights", "'pos_start'"):
        load("var-d16", weights=tmp_path / "vae.pth", tokenizer=tmp_path / "var.pth")


def test_names_of_classes_in_a_locale_without_utf8(tmp_path: Path):
    generator = tiny_var()
    generator.card = dataclasses.replace(generator.card, class_names=("çay", "日本", "c", "d", "e"))
    save_model(tmp_path / "model", generator)
    code = (
        f"from sfumato.families import read_card; print(ascii(read_card({str(tmp_path / 'model')!r}).class_names[:2]))"
    )
    plain = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**environment(), **plain}, capture_output=True, text=True, check=False
    )
    assert ran.stdout.strip() == ascii(("çay", "日本")), ran.stderr


def test_weights_go_with_a_release(tiny_model: Path, tmp_path: Path):
    with bad_input("weights", "var-d16", str(tiny_model)):
        load(tiny_model, weights=tmp_path / "x.pth")


@pytest.mark.parametrize("part", ["transformer", "tokenizer"])
def test_damaged_weights(tiny_model: Path, tmp_path: Path, part: str):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    file = folder / f"{part}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with bad_input("model", str(file)):
        load(folder)


def test_weights_of_another_shape(tiny_model: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["transformer"]["width"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    with bad_input("model", str(folder / "transformer.safetensors"), "config.json"):
        load(folder)


def test_bundled_models_load():
    assert list(bundled_models()) == ["emoji-infinity", "emoji-llamagen", "emoji-t2i", "emoji-var"]
    for name in bundled_models():
        policy = load(name)
        generator = policy.generator
        assert isinstance(generator, VAR | LlamaGen | Infinity)
        assert isinstance(generator, Generator)
        assert read_card(name) == generator.card
        assert policy.settings == generator.card.settings
        assert generator.card.judge == "emoji"
        words = tiny_request([0, 1]).words
        if not generator.card.class_names:
            words = Words(names=("red apple", "octopus in dim light"))
        request = policy.request(words)
        rollout = policy.sample(request, torch.arange(2))
        images = policy.decode(rollout.tokens)
        assert images.shape == (2, 3, 64, 64)
        log_probs = policy.log_probs(request, rollout.tokens)
        torch.testing.assert_close(rollout.log_probs, log_probs.detach(), rtol=0, atol=1e-4)


def test_a_bundled_model_draws_with_its_cards_settings():
    assert load("emoji-var").settings == read_card("emoji-var").settings == Settings(guidance=1.5, temperature=0.7)
    assert load("emoji-var", temperature=1.0, guidance=None).settings == Settings()


@pytest.mark.parametrize("file_format", ["pth", "safetensors"])
def test_an_export_that_breaks_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str):
    """As on a full disk: half a file would load as nonsense, and block the next try."""

    def broken(content: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", broken)
    monkeypatch.setattr(safetensors.torch, "save_file", broken)
    with pytest.raises(OSError, match="no space"):
        export("emoji-var", tmp_path / "out", file_format)
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.undo()
    assert len(export("emoji-var", tmp_path / "out", file_format)) == 2
