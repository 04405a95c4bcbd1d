"""How rewards are found, checked and summed."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_conditions
from torch import Tensor

from sfumato.rewards import Part, RewardError, WeightedSum, build_reward
from sfumato.rewards.base import correlation, statistics
from sfumato.rollout import Conditions

IMAGES = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
CONDITIONS = tiny_conditions([0, 2, 1])

USER_FILE = """
import torch

def left_half(images, conditions):
    return images[..., : images.shape[-1] // 2].mean((1, 2, 3))

def name_length(images, conditions):
    return torch.tensor([len(name) for name in conditions.names])

def fails(images, conditions):
    raise KeyError("no such key")

def not_a_number(images, conditions):
    return torch.tensor([1.0, float("nan"), float("inf")])

def half_scored(images, conditions):
    return torch.tensor([1.0, float("nan"), 3.0])

class Shade:
    def __init__(self, level: float, sign: int = 1):
        self.level, self.sign = level, sign

    def __call__(self, images, conditions):
        return torch.full((len(images),), self.sign * self.level)

def too_many(images, conditions):
    return images.mean((2, 3))

def a_list(images, conditions):
    return [0.0] * len(images)

def doubles(images, conditions):
    return images.double().mean((1, 2, 3))
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(USER_FILE)
    return path


def test_weighted_sum():
    total, parts = build_reward({"brightness": 2.0, "darkness": -0.5, "colorfulness": 0.0})(IMAGES, CONDITIONS)
    brightness = (IMAGES * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1).mean((1, 2))
    assert list(parts) == ["brightness", "darkness", "colorfulness"]
    torch.testing.assert_close(parts["brightness"], brightness, rtol=0, atol=1e-6)
    torch.testing.assert_close(parts["darkness"], 1 - brightness, rtol=0, atol=1e-6)
    torch.testing.assert_close(total, 2.5 * brightness - 0.5, rtol=0, atol=1e-6)


def test_function_from_a_file(user_file: Path):
    name = f"{user_file}:left_half"
    total, parts = build_reward({name: 3.0})(IMAGES, CONDITIONS)
    expected = IMAGES[:, :, :, :2].mean((1, 2, 3))
    torch.testing.assert_close(parts[name], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(total, 3 * expected, rtol=0, atol=1e-6)


def test_scores_become_float32(user_file: Path):
    for function in ("doubles", "name_length"):
        total, _ = build_reward({f"{user_file}:{function}": 1.0})(IMAGES, CONDITIONS)
        assert total.dtype == torch.float32
    assert total.tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", r"failed: KeyError: 'no such key'"),
        ("not_a_number", r"returned inf for 1 of 3 images \(first: 'bee'\); return finite scores, or NaN for none"),
        ("too_many", r"returned a tensor \(3, 3\) for 3 images; return a tensor \(3,\)"),
        ("a_list", r"returned a list for 3 images"),
    ],
)
def test_broken_functions_are_named(user_file: Path, function: str, message: str):
    reward = build_reward({"brightness": 1.0, f"{user_file}:{function}": 1.0})
    with pytest.raises(RewardError, match=rf"reward '.*mine\.py:{function}' {message}"):
        reward(IMAGES, CONDITIONS)


def test_cause_is_kept(user_file: Path):
    with pytest.raises(RewardError) as error:
        build_reward({f"{user_file}:fails": 1.0})(IMAGES, CONDITIONS)
    assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("brightnes", r"reward: there is no 'brightnes'; did you mean brightness or .*\? give one of brightness, .*"),
        ("hue", r"reward: there is no 'hue'; give one of brightness, .*, or path/to/file\.py:function"),
        ("{folder}/none.py:f", r"reward: .*none\.py is not a file"),
        ("{folder}/mine.py", r"reward: there is no '.*mine\.py'; give one of .*path/to/file\.py:function"),
        ("{folder}/mine.py:nothing", r"reward: .*mine\.py has no function 'nothing'; it has .*left_half"),
        ("{folder}/mine.py:torch", r"reward: .*mine\.py has no function 'torch'"),
        ("{folder}/broken.py:f", r"reward: .*broken\.py cannot be imported: ModuleNotFoundError: No module"),
        ("{folder}/typo.py:f", r"reward: .*typo\.py cannot be imported: SyntaxError"),
    ],
)
def test_unknown_rewards(user_file: Path, name: str, message: str):
    folder = user_file.parent
    (folder / "broken.py").write_text("import a_module_that_is_not_there\n")
    (folder / "typo.py").write_text("def f(:\n")
    with pytest.raises(ValueError, match=message) as error:
        build_reward({name.format(folder=folder): 1.0})
    assert "\n" not in str(error.value)


def test_none_at_all():
    with pytest.raises(ValueError, match="reward: none is given"):
        build_reward({})
    with pytest.raises(ValueError, match="reward: every weight is 0; give dark another"):
        build_reward({"dark": 0.0, "bright": 0.0})


def test_any_callable_is_a_reward():
    def constant(images: Tensor, conditions: Conditions) -> Tensor:
        return torch.full((len(images),), 2.0)

    total, _ = WeightedSum({"constant": Part(reward=constant, weight=1.5)})(IMAGES, CONDITIONS)
    assert total.tolist() == [3.0, 3.0, 3.0]


def test_no_score(user_file: Path):
    """Of two parts one has no score for the second image; a part of weight 0 is only logged."""
    half = f"{user_file}:half_scored"
    reward = build_reward({"brightness": 1.0, half: 2.0})
    total, parts = reward(IMAGES, CONDITIONS)
    assert parts[half].isnan().tolist() == total.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(total[2], parts["brightness"][2] + 6, rtol=0, atol=1e-6)
    reward.check_scored(parts, 0.34)
    with pytest.raises(RewardError, match=r"half_scored' has no score for 1 of 3 images, more than max_unscored 0.3;"):
        reward.check_scored(parts, 0.3)
    total, _ = build_reward({"brightness": 1.0, half: 0.0})(IMAGES, CONDITIONS)
    assert total.isfinite().all()


def test_reason_of_no_score():
    class Shy:
        last_failure = "the judge said 'no'"

        def __call__(self, images: Tensor, conditions: Conditions) -> Tensor:
            return torch.full((len(images),), torch.nan)

    reward = WeightedSum({"shy": Part(reward=Shy())})
    with pytest.raises(RewardError, match=r"reward 'shy' has no score for 3 of 3 images.*\(the judge said 'no'\)"):
        reward.check_scored(reward(IMAGES, CONDITIONS)[1], 0.5)


def test_scale_offset_and_levels():
    plain = build_reward({"brightness": 1.0})(IMAGES, CONDITIONS)[0]
    scaled = build_reward({"brightness?scale=5&offset=-1": 2.0})(IMAGES, CONDITIONS)[0]
    torch.testing.assert_close(scaled, 2 * (5 * plain - 1), rtol=0, atol=1e-5)
    part = Part(reward=lambda images, conditions: images, levels=(0.5, 1.0, 1.5), thresholds=(0.2, 0.4), scale=2.0)
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 7.0, math.nan])
    torch.testing.assert_close(
        part.adjust(scores), torch.tensor([1.0, 2.0, 2.0, 3.0, 3.0, math.nan]), equal_nan=True, rtol=0, atol=0
    )


def test_thresholds_are_the_terciles():
    name = "brightness?levels=0.5,1,1.5"
    reward = build_reward({name: 1.0, "brightness?levels=0,1&thresholds=0.5": 1.0, "dark": 1.0})
    assert reward.without_thresholds() == (name,)
    images = torch.arange(1, 8)[:, None, None, None] / 10 * torch.ones(7, 3, 4, 4)
    conditions = tiny_conditions([0] * 7)
    thresholds = reward.measure_thresholds(images, conditions)
    assert thresholds == {name: pytest.approx((0.3, 0.5), abs=1e-6)}
    levels = reward.with_thresholds({name: (0.31, 0.51)})(images, conditions)[1][name]
    assert levels.tolist() == [0.5, 0.5, 0.5, 1.0, 1.0, 1.5, 1.5]


def test_options_of_a_class(user_file: Path):
    name = f"{user_file}:Shade?level=0.25&sign=-1&scale=2"
    assert build_reward({name: 1.0})(IMAGES, CONDITIONS)[0].tolist() == [-0.5] * 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("brightness?scal=5", r"reward 'brightness\?scal=5': there is no option 'scal'; brightness takes scale, off"),
        ("brightness?scale", r"option 'scale' has no value; write scale=VALUE"),
        ("brightness?scale=1&scale=2", r"option 'scale' is given twice"),
        ("brightness?scale=much", r"scale: 'much' is not of type float"),
        ("brightness?scale=nan", r"reward 'brightness\?scale=nan': scale: nan is not finite"),
        ("brightness?levels=1", r"levels: \(1\.0,\) are all one"),
        ("brightness?levels=1,2&thresholds=1,2", r"thresholds: 2 for 2 levels; give one fewer"),
        ("brightness?levels=1,2,3&thresholds=2,1", r"thresholds: \(2\.0, 1\.0\) do not ascend"),
        ("{file}:Shade", r"level is not given; write .*mine\.py:Shade\?level=VALUE"),
        ("{file}:Shade?level=1&sine=1", r"there is no option 'sine'; did you mean 'sign'\?"),
        ("{file}:Shade?level=1&sign=1.5", r"sign: '1\.5' is not of type int"),
    ],
)
def test_wrong_options(user_file: Path, name: str, message: str):
    with pytest.raises(ValueError, match=message) as error:
        build_reward({name.format(file=user_file): 1.0})
    assert "\n" not in str(error.value)


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
