"""Generators by name and by folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from golden_data import tokenizer_weights, transformer_weights
from tiny import (
    CLASS_NAMES,
    LLAMAGEN,
    LLAMAGEN_TEXT,
    TOKENIZER,
    TRANSFORMER,
    VQ_TOKENIZER,
    tiny_captions,
    tiny_conditions,
    tiny_llamagen,
    tiny_var,
)

from sfumato.data.classes import caption_conditions
from sfumato.families.library import (
    RELEASES,
    build_generator,
    bundled_models,
    class_names,
    family_of,
    find_model,
    load,
    load_model,
    save_model,
)
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.var.generator import VAR
from sfumato.text.encoders import load_text_encoder


def test_round_trip_of_a_model_folder(tmp_path: Path):
    generator = tiny_var()
    save_model(tmp_path / "model", generator)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json", "tokenizer.safetensors", "transformer.safetensors",
    ]  # fmt: skip
    read = load_model(tmp_path / "model")
    assert (read.config, read.tokenizer.config) == (TRANSFORMER, TOKENIZER)
    assert read.class_names == CLASS_NAMES
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
    assert read.class_names == class_names(str(tmp_path / "model")) == (() if text else CLASS_NAMES)
    ours, theirs = generator.state_dict(), read.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    policy = load(tmp_path / "model", guidance=2.5)
    assert policy.generator.guidance == 2.5
    conditions, tokens = tiny_captions([2, 3]) if text else tiny_conditions([2, 0]), torch.arange(18).view(2, 9) % 16
    expected = tiny_llamagen(text=text, guidance=2.5, guidance_interval=3).logits(conditions, tokens)
    torch.testing.assert_close(policy.generator.logits(conditions, tokens), expected, rtol=0, atol=1e-6)


def test_families():
    assert (family_of(tiny_var()), family_of(tiny_llamagen())) == ("var", "llamagen")
    assert isinstance(build_generator(TRANSFORMER, TOKENIZER, CLASS_NAMES), VAR)
    assert isinstance(build_generator(LLAMAGEN, VQ_TOKENIZER, CLASS_NAMES), LlamaGen)
    with pytest.raises(ValueError, match="tokenizer: VQVAEConfig is not of the family llamagen"):
        build_generator(LLAMAGEN, TOKENIZER, CLASS_NAMES)
    with pytest.raises(ValueError, match="tokenizer: VQConfig is not of the family var"):
        build_generator(TRANSFORMER, VQ_TOKENIZER, CLASS_NAMES)


def test_half_precision_is_widened(tmp_path: Path):
    generator = tiny_var()
    save_model(tmp_path, generator, torch.float16)
    size, read = (tmp_path / "transformer.safetensors").stat().st_size, load_model(tmp_path)
    save_model(tmp_path, generator)
    assert size < 0.7 * (tmp_path / "transformer.safetensors").stat().st_size
    for name, tensor in generator.state_dict().items():
        assert read.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(read.state_dict()[name], tensor.half().to(tensor.dtype)), name


def test_load(tiny_model: Path):
    policy = load(tiny_model, guidance=1.5, temperature=0.7)
    assert policy.generator.guidance == 1.5
    assert policy.temperature == 0.7
    assert isinstance(policy.generator, VAR)
    assert not policy.generator.training
    original = tiny_var(guidance=1.5)
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    expected = original.logits(tiny_conditions([2]), tokens)
    assert torch.equal(policy.generator.logits(tiny_conditions([2]), tokens), expected)
    assert load(str(tiny_model)).generator.guidance == 0
    assert class_names(str(tiny_model)) == CLASS_NAMES


def test_newest_checkpoint_of_a_run(tiny_model: Path, tmp_path: Path):
    for step in (2, 10):
        shutil.copytree(tiny_model, tmp_path / f"run/checkpoints/step-{step:06d}/model")
    assert find_model(tmp_path / "run") == tmp_path / "run/checkpoints/step-000010/model"
    assert find_model(tmp_path / "run/checkpoints/step-000002/model") == (
        tmp_path / "run/checkpoints/step-000002/model"
    )
    # A checkpoint that was being written when the run was killed does not count.
    (tmp_path / "run/checkpoints/.step-000012.tmp/model").mkdir(parents=True)
    assert find_model(tmp_path / "run") == tmp_path / "run/checkpoints/step-000010/model"


def test_checkpoint_of_a_run(tiny_model: Path, tmp_path: Path):
    shutil.copytree(tiny_model, tmp_path / "step-000002/model")
    assert find_model(tmp_path / "step-000002") == tmp_path / "step-000002/model"


@pytest.mark.parametrize("name", ["nothing", "var-d17", "/no/such/folder"])
def test_unknown_models(name: str):
    with pytest.raises(ValueError, match=rf"model: '{name}' is neither a known model \(.*var-d16.*\) nor a run folder"):
        load(name)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # HF_HUB_OFFLINE is set: what is not cached cannot be had.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"weights: var_d16\.pth .*could not be fetched") as error:
        load("var-d16")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"model: someone/something .*could not be fetched") as error:
        load("someone/something")
    assert "\n" not in str(error.value)


def test_releases():
    by_family = [[name for name in RELEASES if name.startswith(family)] for family in ("var-d", "llamagen-")]
    assert by_family[0] == ["var-d16", "var-d20", "var-d24", "var-d30", "var-d36"]
    assert len(by_family[1]) == 12
    for name in by_family[0]:
        assert sum(n * n for n in RELEASES[name].scales) == (2240 if name == "var-d36" else 680)
    for name in by_family[1]:
        assert RELEASES[name].scales == (16 if name.endswith(("256", "t2i")) else 32 if "512" in name else 24,), name
    assert class_names("llamagen-xl-t2i") == ()
    assert class_names("llamagen-3b-384") == class_names("var-d16")
    names = class_names("var-d30")
    assert len(names) == 1000
    assert (names[0], names[1], names[207], names[999]) == ("tench", "goldfish", "golden retriever", names[-1])


def test_another_models_weights(tmp_path: Path):
    torch.save(transformer_weights("a"), tmp_path / "var.pth")
    torch.save(tokenizer_weights(), tmp_path / "vae.pth")
    with pytest.raises(ValueError, match=r"depth 2 and width 128, var-d16 has 16 and 1024"):
        load("var-d16", weights=tmp_path / "var.pth", tokenizer=tmp_path / "vae.pth")
    with pytest.raises(ValueError, match=r"weights: .* has no 'pos_start'"):
        load("var-d16", weights=tmp_path / "vae.pth", tokenizer=tmp_path / "var.pth")


def test_weights_go_with_a_release(tiny_model: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"weights: files go with a released model \(var-d16, "):
        load(tiny_model, weights=tmp_path / "x.pth")


@pytest.mark.parametrize("part", ["transformer", "tokenizer"])
def test_damaged_weights(tiny_model: Path, tmp_path: Path, part: str):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    file = folder / f"{part}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=rf"model: .*{part}\.safetensors cannot be read .*; is it truncated\?"
    ) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_weights_of_another_shape(tiny_model: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["transformer"]["width"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model: .*transformer\.safetensors does not fit its config") as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_bundled_models_load():
    for name in bundled_models():
        policy = load(name)
        assert isinstance(policy.generator, VAR | LlamaGen)
        assert class_names(name) == policy.generator.class_names
        conditions = tiny_conditions([0, 1])
        if policy.generator.text_encoder:
            reader = load_text_encoder(policy.generator.text_encoder)
            conditions = caption_conditions(["red apple", "octopus in dim light"], reader.encode)
        rollout = policy.sample(conditions, torch.arange(2))
        images = policy.decode(rollout.tokens)
        side = policy.generator.tokenizer.config.image_size
        assert images.shape == (2, 3, side, side)
        log_probs = policy.log_probs(conditions, rollout.tokens)
        torch.testing.assert_close(rollout.log_probs, log_probs.detach(), rtol=0, atol=1e-4)
