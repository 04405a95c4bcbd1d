import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from errors import bad_input
from tiny import tiny_llamagen, tiny_request, tiny_var

from sfumato.families import load, load_generator, read_card, releases
from sfumato.families.library import load_model, save_model
from sfumato.policy import Policy
from sfumato.settings import Settings, SettingsOptions

OWN = Settings(guidance=1.5, temperature=0.6, top_k=900, top_p=0.96)


def test_what_is_asked_for_goes_before_the_models_own():
    assert SettingsOptions().settings(OWN) == OWN
    asked = SettingsOptions(guidance=0.0, top_k=3).settings(OWN)
    assert asked == Settings(guidance=0.0, temperature=0.6, top_k=3, top_p=0.96)
    assert asked.guidance is None


def test_no_guidance():
    assert Settings(guidance=0.0) == Settings(guidance=0) == Settings(guidance=None) == Settings()


def test_as_text():
    assert str(OWN) == "guidance 1.5, temperature 0.6, top-k 900, top-p 0.96"
    assert str(Settings()) == "temperature 1"
    assert str(Settings(guidance=(0.5, 2.0), top_k=(0, 9))) == "guidance 0.5 2, temperature 1, top-k 0 9"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ({"guidance": -1.0}, "-1.0"),
        ({"guidance": float("nan")}, "nan"),
        ({"guidance": float("inf")}, "inf"),
        ({"guidance": (1.0, -1.5)}, "-1.5"),
        ({"temperature": 0.0}, "0.0"),
        ({"temperature": (1.0, 0.0)}, "0.0"),
        ({"top_k": -2}, "-2"),
        ({"top_p": 1.5}, "1.5"),
        ({"top_p": (0.5, 1.5)}, "1.5"),
    ],
)
def test_out_of_range(setting: dict, value: str):
    for kind in (Settings, SettingsOptions):
        with bad_input(next(iter(setting)), value):
            kind(**setting)


def test_values_of_each_unit():
    settings = Settings(guidance=(0.5, 1.0, 2.0), temperature=0.7)
    assert settings.at("guidance", 3) == (0.5, 1.0, 2.0)
    assert settings.at("temperature", 3) == (0.7,) * 3
    assert settings.at("top_k", 2) == (0, 0)
    with bad_input("guidance", "3", "4"):
        settings.at("guidance", 4)
    assert [s.truncates for s in (settings, Settings(top_k=(0, 3)), Settings(top_p=0.5), Settings(top_k=(0, 0)))] == [
        False, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("make", [tiny_var, tiny_llamagen])
@pytest.mark.parametrize("own", [OWN, Settings(guidance=3.0, temperature=(1.0, 0.5), top_k=(9, 2))], ids=str)
def test_a_model_folder_carries_its_settings(tmp_path: Path, make, own: Settings):
    generator = make()
    generator.card = replace(generator.card, settings=own)
    save_model(tmp_path, generator)
    assert load_model(tmp_path).card.settings == own
    assert load_generator(tmp_path).card.settings == own
    assert read_card(str(tmp_path)).settings == own
    # A folder without settings samples from the model as trained.
    config = json.loads((tmp_path / "config.json").read_text())
    saved = config.pop("settings")
    assert saved == json.loads(json.dumps(asdict(own)))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(tmp_path).card.settings == Settings()
    # Version 0.1 used another name, and 0 for no guidance.
    for guidance, read in ((saved["guidance"], own), (0.0, replace(own, guidance=None))):
        (tmp_path / "config.json").write_text(json.dumps({**config, "inference": {**saved, "guidance": guidance}}))
        assert load_model(tmp_path).card.settings == read_card(str(tmp_path)).settings == read


def test_a_loaded_model_draws_with_its_own_settings(tmp_path: Path):
    generator = tiny_var()
    generator.card = replace(generator.card, settings=OWN)
    save_model(tmp_path, generator)
    assert load(tmp_path).settings == OWN
    assert load(tmp_path, guidance=None).settings == replace(OWN, guidance=None)
    asked = load(tmp_path, guidance=2.0, temperature=(1.0, 0.5), top_k=0, top_p=0.0)
    assert asked.settings == Settings(guidance=2.0, temperature=(1.0, 0.5))
    assert asked.generator.card.settings == OWN
    with bad_input("temperature", "0.0"):
        load(tmp_path, temperature=0.0)


def test_released_models_have_their_authors_settings():
    settings = {name: release.settings for name, (_, release) in releases().items()}
    assert settings["var-d16"] == Settings(guidance=1.5, top_k=900, top_p=0.96)
    assert settings["llamagen-xl-384"] == Settings(guidance=2.0)
    assert settings["llamagen-xl-t2i"] == Settings(guidance=7.5, top_k=1000)


def test_the_policy_of_settings():
    generator, request, seeds = tiny_var(), tiny_request([0, 1, 2, 3]), torch.arange(4)
    policy = Policy(generator, OWN)
    assert (policy.settings, generator.card.settings) == (OWN, Settings())
    ours = policy.sample(request, seeds)
    # By hand: guided logits, temperature, filter, and the draws of these seeds.
    logits = generator.logits(request, ours.tokens, Settings(guidance=1.5)) / 0.6
    kept = generator.filter(logits, 900, 0.96).log_softmax(-1)
    expected = kept.gather(-1, ours.tokens[..., None])[..., 0]
    torch.testing.assert_close(ours.log_probs, expected, rtol=0, atol=1e-5)
    assert (kept == -torch.inf).any()
