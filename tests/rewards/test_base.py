"""How rewards are found, checked and summed."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_conditions
from torch import Tensor

from sfumato.rewards import RewardError, build_reward
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
        ("not_a_number", r"returned nan for 2 of 3 images \(first: 'cat'\); return finite scores"),
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
        ("brightnes", r"reward: there is no 'brightnes'; give one of brightness, .*, or path/to/file\.py:function"),
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


def test_any_callable_is_a_reward():
    from sfumato.rewards import WeightedSum

    def constant(images: Tensor, conditions: Conditions) -> Tensor:
        return torch.full((len(images),), 2.0)

    total, _ = WeightedSum({"constant": constant}, {"constant": 1.5})(IMAGES, CONDITIONS)
    assert total.tolist() == [3.0, 3.0, 3.0]
