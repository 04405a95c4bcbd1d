"""Lookup, checks and sums of rewards."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import bad_input
from tiny import tiny_request
from torch import Tensor

from sfumato.request import Words
from sfumato.rewards import Part, RewardError, WeightedSum, build_reward
from sfumato.rewards.base import correlation, statistics

IMAGES = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
WORDS = tiny_request([0, 2, 1]).words

USER_FILE = """
import torch

def left_half(images, words):
    return images[..., : images.shape[-1] // 2].mean((1, 2, 3))

def name_length(images, words):
    return torch.tensor([len(name) for name in words.names])

def fails(images, words):
    raise KeyError("no such key")

def not_a_number(images, words):
    return torch.tensor([1.0, float("nan"), float("inf")])

def half_scored(images, words):
    return torch.tensor([1.0, float("nan"), 3.0])

class Shade:
    def __init__(self, level: float, sign: int = 1):
        self.level, self.sign = level, sign

    def __call__(self, images, words):
        return torch.full((len(images),), self.sign * self.level)

class Refuses:
    def __init__(self):
        raise ValueError("rewards/x.pt is not there")

def too_many(images, words):
    return images.mean((2, 3))

def a_list(images, words):
    return [0.0] * len(images)

def doubles(images, words):
    return images.double().mean((1, 2, 3))
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(USER_FILE)
    return path


def test_weighted_sum():
    total, parts = build_reward({"brightness": 2.0, "darkness": -0.5, "colorfulness": 0.0})(IMAGES, WORDS)
    brightness = (IMAGES * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1).mean((1, 2))
    assert list(parts) == ["brightness", "darkness", "colorfulness"]
    torch.testing.assert_close(parts["brightness"], brightness, rtol=0, atol=1e-6)
    torch.testing.assert_close(parts["darkness"], 1 - brightness, rtol=0, atol=1e-6)
    torch.testing.assert_close(total, 2.5 * brightness - 0.5, rtol=0, atol=1e-6)


def test_function_from_a_file(user_file: Path):
    name = f"{user_file}:left_half"
    total, parts = build_reward({name: 3.0})(IMAGES, WORDS)
    expected = IMAGES[:, :, :, :2].mean((1, 2, 3))
    torch.testing.assert_close(parts[name], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(total, 3 * expected, rtol=0, atol=1e-6)


def test_scores_become_float32(user_file: Path):
    for function in ("doubles", "name_length"):
        total, _ = build_reward({f"{user_file}:{function}": 1.0})(IMAGES, WORDS)
        assert total.dtype == torch.float32
    assert total.tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("function", "pieces"),
    [
        ("fails", ["KeyError", "no such key"]),
        ("not_a_number", ["inf", "1 of 3", "'bee'"]),
        ("too_many", ["(3, 3)", "(3,)"]),
        ("a_list", ["list", "3 images"]),
    ],
)
def test_broken_functions_are_named(user_file: Path, function: str, pieces: list[str]):
    reward = build_reward({"brightness": 1.0, f"{user_file}:{function}": 1.0})
    with pytest.raises(RewardError) as error:
        reward(IMAGES, WORDS)
    assert error.value.field == "reward"
    for piece in (f"mine.py:{function}", *pieces):
        assert piece in str(error.value)


def test_cause_is_kept(user_file: Path):
    with pytest.raises(RewardError) as error:
        build_reward({f"{user_file}:fails": 1.0})(IMAGES, WORDS)
    assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("brightnes", ["'brightnes'", " brightness", "path/to/file.py:function"]),
        ("hue", ["'hue'", " brightness", "path/to/file.py:function"]),
        ("{folder}/none.py:f", ["none.py"]),
        ("{folder}/mine.py", ["mine.py'", " brightness", "path/to/file.py:function"]),
        ("{folder}/mine.py:nothing", ["mine.py", "'nothing'", "left_half"]),
        ("{folder}/mine.py:torch", ["mine.py", "'torch'", "left_half"]),
        ("{folder}/broken.py:f", ["broken.py", "ModuleNotFoundError", "a_module_that_is_not_there"]),
        ("{folder}/typo.py:f", ["typo.py", "SyntaxError"]),
    ],
)
def test_unknown_rewards(user_file: Path, name: str, pieces: list[str]):
    folder = user_file.parent
    (folder / "broken.py").write_text("import a_module_that_is_not_there\n")
    (folder / "typo.py").write_text("def f(:\n")
    with bad_input("reward", *pieces):
        build_reward({name.format(folder=folder): 1.0})


def test_the_reward_is_named_whatever_its_own_error_says(user_file: Path):
    with bad_input("reward", f"reward '{user_file}:Refuses': ", "rewards/x.pt"):
        build_reward({f"{user_file}:Refuses": 1.0})


def test_none_at_all():
    with bad_input("reward"):
        build_reward({})
    with bad_input("reward", "0", "dark"):
        build_reward({"dark": 0.0, "bright": 0.0})


def test_any_callable_is_a_reward():
    def constant(images: Tensor, words: Words) -> Tensor:
        return torch.full((len(images),), 2.0)

    total, _ = WeightedSum({"constant": Part(reward=constant, weight=1.5)})(IMAGES, WORDS)
    assert total.tolist() == [3.0, 3.0, 3.0]


def test_no_score(user_file: Path):
    """One of two parts has no score for the second image; a part of weight 0 is only logged."""
    half = f"{user_file}:half_scored"
    reward = build_reward({"brightness": 1.0, half: 2.0})
    total, parts = reward(IMAGES, WORDS)
    assert parts[half].isnan().tolist() == total.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(total[2], parts["brightness"][2] + 6, rtol=0, atol=1e-6)
    reward.check_scored(parts, 0.34)
    with pytest.raises(RewardError, match=r"half_scored'.* 1 of 3 .*max_unscored 0\.3"):
        reward.check_scored(parts, 0.3)
    total, _ = build_reward({"brightness": 1.0, half: 0.0})(IMAGES, WORDS)
    assert total.isfinite().all()


def test_reason_of_no_score():
    class Shy:
        last_failure = "the judge said 'no'"

        def __call__(self, images: Tensor, words: Words) -> Tensor:
            return torch.full((len(images),), torch.nan)

    reward = WeightedSum({"shy": Part(reward=Shy())})
    with pytest.raises(RewardError, match=r"'shy'.* 3 of 3 .*the judge said 'no'"):
        reward.check_scored(reward(IMAGES, WORDS)[1], 0.5)


def test_scale_offset_and_levels():
    plain = build_reward({"brightness": 1.0})(IMAGES, WORDS)[0]
    scaled = build_reward({"brightness?scale=5&offset=-1": 2.0})(IMAGES, WORDS)[0]
    torch.testing.assert_close(scaled, 2 * (5 * plain - 1), rtol=0, atol=1e-5)
    part = Part(reward=lambda images, words: images, levels=(0.5, 1.0, 1.5), thresholds=(0.2, 0.4), scale=2.0)
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 7.0, math.nan])
    torch.testing.assert_close(
        part.adjust(scores), torch.tensor([1.0, 2.0, 2.0, 3.0, 3.0, math.nan]), equal_nan=True, rtol=0, atol=0
    )


def test_thresholds_are_the_terciles():
    name = "brightness?levels=0.5,1,1.5"
    reward = build_reward({name: 1.0, "brightness?levels=0,1&thresholds=0.5": 1.0, "dark": 1.0})
    assert reward.without_thresholds() == (name,)
    images = torch.arange(1, 8)[:, None, None, None] / 10 * torch.ones(7, 3, 4, 4)
    words = tiny_request([0] * 7).words
    thresholds = reward.measure_thresholds(images, words)
    assert thresholds == {name: pytest.approx((0.3, 0.5), abs=1e-6)}
    levels = reward.with_thresholds({name: (0.31, 0.51)})(images, words)[1][name]
    assert levels.tolist() == [0.5, 0.5, 0.5, 1.0, 1.0, 1.5, 1.5]


def test_options_of_a_class(user_file: Path):
    name = f"{user_file}:Shade?level=0.25&sign=-1&scale=2"
    assert build_reward({name: 1.0})(IMAGES, WORDS)[0].tolist() == [-0.5] * 3


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("brightness?scal=5", ["'brightness?scal=5'", "'scal'", "scale, offset"]),
        ("brightness?scale", ["'scale'", "scale=VALUE"]),
        ("brightness?scale=1&scale=2", ["'scale'"]),
        ("brightness?scale=much", ["scale: 'much'", "float"]),
        ("brightness?scale=nan", ["'brightness?scale=nan': scale: nan"]),
        ("brightness?levels=1", ["levels: (1.0,)"]),
        ("brightness?levels=1,2&thresholds=1,2", ["thresholds: 2 for 2"]),
        ("brightness?levels=1,2,3&thresholds=2,1", ["thresholds: (2.0, 1.0)"]),
        ("{file}:Shade", ["level", "mine.py:Shade?level=VALUE"]),
        ("{file}:Shade?level=1&sine=1", ["'sine'", "'sign'"]),
        ("{file}:Shade?level=1&sign=1.5", ["sign: '1.5'", "int"]),
    ],
)
def test_wrong_options(user_file: Path, name: str, pieces: list[str]):
    with bad_input("reward", *pieces):
        build_reward({name.format(file=user_file): 1.0})


def test_statistics():
    total = torch.tensor([1.0, 2.0, 6.0, math.nan])
    scores = {"up": torch.tensor([1.0, 2.0, 6.0, 9.0]), "same": torch.ones(4), "down": -total}
    found = statistics(total, scores)
    assert found["reward_mean"] == 3
    assert found["unscored"] == 0.25
    assert found["reward_std"] == pytest.approx(math.sqrt(7), abs=1e-6)
    assert found["reward/up"] == 4.5
    assert found["reward_std/same"] == 0
    correlations = [found[f"reward_correlation/{name}"] for name in scores]
    assert correlations == pytest.approx([1, 0, -1], abs=1e-9)
    noise = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert correlation(noise[0], noise[1]) == pytest.approx(np.corrcoef(noise.numpy())[0, 1], abs=1e-6)
