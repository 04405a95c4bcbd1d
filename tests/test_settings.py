import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tiny import tiny_conditions, tiny_llamagen, tiny_var

from sfumato.families.library import load, load_model, save_model
from sfumato.families.releases import RELEASES
from sfumato.policy import drawing_policy
from sfumato.settings import Inference, InferenceOptions

OWN = Inference(guidance=1.5, temperature=0.6, top_k=900, top_p=0.96)


def test_what_is_asked_for_goes_before_the_models_own():
    assert InferenceOptions().inference(OWN) == OWN
    asked = InferenceOptions(guidance=0.0, top_k=3).inference(OWN)
    assert asked == Inference(guidance=0.0, temperature=0.6, top_k=3, top_p=0.96)


def test_as_text():
    assert str(OWN) == "guidance 1.5, temperature 0.6, top-k 900, top-p 0.96"
    assert str(Inference()) == "temperature 1"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"guidance": -1.0}, "guidance: -1.0 is negative"),
        ({"guidance": float("nan")}, "guidance: nan is negative"),
        ({"temperature": 0.0}, "temperature: 0.0 must be above 0"),
        ({"top_k": -2}, "top_k: -2 is negative"),
        ({"top_p": 1.5}, "top_p: 1.5 is not between 0 and 1"),
    ],
)
def test_out_of_range(setting: dict, message: str):
    for kind in (Inference, InferenceOptions):
        with pytest.raises(ValueError, match=message):
            kind(**setting)


@pytest.mark.parametrize("make", [tiny_var, tiny_llamagen])
def test_a_model_folder_carries_its_settings(tmp_path: Path, make):
    generator = make()
    generator.inference = OWN
    save_model(tmp_path, generator)
    assert load_model(tmp_path).inference == OWN
    assert load(tmp_path).generator.inference == OWN
    # A folder that says nothing is drawn from as it was trained.
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("inference") == asdict(OWN)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(tmp_path).inference == Inference()


def test_released_models_have_their_authors_settings():
    assert RELEASES["var-d16"].inference == Inference(guidance=1.5, top_k=900, top_p=0.96)
    assert RELEASES["llamagen-xl-384"].inference == Inference(guidance=2.0)
    assert RELEASES["llamagen-xl-t2i"].inference == Inference(guidance=7.5, top_k=1000)


def test_the_policy_of_settings():
    generator, conditions, seeds = tiny_var(), tiny_conditions([0, 1, 2, 3]), torch.arange(4)
    policy, keep = drawing_policy(generator, OWN)
    assert (policy.temperature, policy.generator.guidance, generator.guidance) == (0.6, 1.5, 0.0)
    ours = policy.sample(conditions, seeds, keep)
    # By hand: guided logits, divided, then the filter, then the draw that these seeds decide.
    other = tiny_var(guidance=1.5)
    logits = other.logits(conditions, ours.tokens) / 0.6
    kept = other.filter(logits, 900, 0.96).log_softmax(-1)
    expected = kept.gather(-1, ours.tokens[..., None])[..., 0]
    torch.testing.assert_close(ours.log_probs, expected, rtol=0, atol=1e-5)
    assert (kept == -torch.inf).any()
