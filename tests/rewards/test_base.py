"""Lookup, checks and sums of rewards."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from errors import bad_input
from tiny import tiny_request
from torch import Tensor

from sfumato.request import Words
from sfumato.rewards import Part, RewardError, WeightedSum, build_reward
from sfumato.rewards.base import correlation, short_names, statistics
from sfumato.rewards.names import files_of_reward

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

def texts(images, words):
    return ["0"] * len(images)

def complexes(images, words):
    return images.mean((1, 2, 3)) * 1j

def a_number(images, words):
    return images.mean().item()

def too_few(images, words):
    return [0.0]

def huge(images, words):
    return torch.full((len(images),), 1e60, dtype=torch.float64)

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
    "convert",
    [
        lambda scores: scores.tolist(),
        lambda scores: tuple(scores.tolist()),
        lambda scores: list(scores),
        lambda scores: list(torch.nn.Parameter(scores)),
        lambda scores: scores.numpy(),
        lambda scores: list(scores.numpy()),
        lambda scores: scores.double(),
        lambda scores: scores.double().numpy()[:, None],
        lambda scores: scores[:, None],
        lambda scores: scores[:, None].tolist(),
        lambda scores: torch.nn.Parameter(scores) * 1,
    ],
)
def test_what_rewards_return_is_converted(convert: Callable[[Tensor], Any]):
    def function(images: Tensor, words: Words) -> Any:
        with torch.enable_grad():
            return convert(images.mean((1, 2, 3)))

    scores = WeightedSum({"function": Part(reward=function)})(IMAGES, WORDS)[1]["function"]
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    torch.testing.assert_close(scores, IMAGES.mean((1, 2, 3)), rtol=0, atol=1e-7)


def test_none_in_a_list_is_no_score():
    total, _ = WeightedSum({"some": Part(reward=lambda images, words: [1, None, 2.5])})(IMAGES, WORDS)  # pyright: ignore
    assert total[[0, 2]].tolist() == [1, 2.5]
    assert total[1].isnan()


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("brightness?scale=1e30", ["'brightness?scale=1e30'", "with scale and offset", "3 of 3"]),
        ("brightness?offset=1e11", ["'brightness?offset=1e11'", "with scale and offset 1e+11"]),
        ("brightness?levels=1,1e12&thresholds=0", ["1e+12"]),
    ],
)
def test_parts_that_are_too_large(name: str, pieces: list[str]):
    with pytest.raises(RewardError) as error:
        build_reward({name: 1.0})(IMAGES, WORDS)
    for piece in pieces:
        assert piece in str(error.value)


def test_the_largest_rewards_have_finite_statistics():
    name = "brightness?scale=1e10"
    total, parts = build_reward({name: 1e6, "darkness": -1e6})(IMAGES, WORDS)
    assert all(math.isfinite(value) for value in statistics(total, parts).values())
    assert statistics(total, parts)["reward_std"] == pytest.approx(1e16 * parts[name].div(1e10).std().item(), rel=1e-3)
    with bad_input("reward", "weight: 1e+07", "scale"):
        build_reward({"brightness": 1e7})


def writes(images: Tensor) -> None:
    images.zero_()


def writes_with_numpy(images: Tensor) -> None:
    images.numpy()[:] = 0


def writes_data(images: Tensor) -> None:
    images.data.zero_()


def turns(images: Tensor) -> None:
    images.squeeze_().transpose_(1, 2)


def wants_gradients(images: Tensor) -> None:
    images.requires_grad_()


@pytest.mark.parametrize("write", [writes, writes_with_numpy, writes_data, turns, wants_gradients])
def test_a_reward_that_writes_to_its_images(write: Callable[[Tensor], None]):
    seen: list[Tensor] = []

    def writing(images: Tensor, words: Words) -> Tensor:
        write(images)
        return torch.zeros(len(images))

    def looking(images: Tensor, words: Words) -> Tensor:
        seen.append(images)
        return torch.from_numpy(images.numpy().mean((1, 2, 3)))

    images = IMAGES.clone()
    rewards = {"before": looking, "writing": writing, "after": looking, "last": looking}
    reward = WeightedSum({name: Part(reward=function) for name, function in rewards.items()})
    for _ in range(2):
        _, scores = reward(images, WORDS)
        torch.testing.assert_close(scores["after"], IMAGES.mean((1, 2, 3)), rtol=0, atol=1e-6)
    assert torch.equal(images, IMAGES)
    assert not images.requires_grad
    assert seen[1] is seen[2]  # as long as nothing is written, all share one copy


def test_short_names_of_own_code():
    assert short_names(["rw/own.py:symmetry", "clip?prompt=a", "a b/own.py:Shade?level=1"]) == {
        "rw/own.py:symmetry": "symmetry",
        "clip?prompt=a": "clip?prompt=a",
        "a b/own.py:Shade?level=1": "Shade",
    }
    names = ["a/own.py:f", "b/own.py:f", "b/other.py:f", "c.py:G?n=1", "c.py:G?n=2", "c.py:dark", "dark"]
    assert list(short_names(names).values()) == [
        "a/own.py:f", "b/own.py:f", "other.py:f", "G?n=1", "G?n=2", "c.py:dark", "dark",
    ]  # fmt: skip


def test_metrics_have_short_names(user_file: Path):
    total, parts = build_reward({f"{user_file}:left_half": 1.0})(IMAGES, WORDS)
    assert {"reward/left_half", "reward_std/left_half", "reward_correlation/left_half"} < statistics(
        total, parts
    ).keys()


@pytest.mark.parametrize(
    ("function", "pieces"),
    [
        ("fails", ["KeyError", "no such key"]),
        ("not_a_number", ["inf", "1 of 3", "'bee'"]),
        ("too_many", ["(3, 3)", "(3,)"]),
        ("texts", ["list", "3 images"]),
        ("complexes", ["Tensor", "3 images"]),
        ("a_number", ["float", "3 images"]),
        ("too_few", ["list", "3 images"]),
        ("huge", ["1e+60", "3 of 3", "'ant'"]),
        ("fails", ["mine.py, line 11"]),
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


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        (b"x = 1\r\ndef f(:\r\n", ["own.py, line 2", "SyntaxError"]),
        ("NAME = 'café'\ndef f(images, words): pass\n".encode("latin-1"), ["SyntaxError", "UTF-8"]),
        (b"import sys\nsys.exit(3)\n", ["SystemExit: 3", "own.py, line 2"]),
        (b"\nx = [][1]\n", ["IndexError", "own.py, line 2"]),
        (b"class Fine:\n    pass\n\ndef g(images, words): pass\n", ["'f'", "Fine", "g"]),
        (b"class f:\n    def __init__(self):\n        raise KeyError('k')\n", ["KeyError: 'k'", "own.py, line 3"]),
        (b"class f:\n    pass\n", ["__call__"]),
    ],
)
def test_files_that_fail(tmp_path: Path, content: bytes, pieces: list[str]):
    (tmp_path / "own.py").write_bytes(content)
    with bad_input("reward", "own.py", *pieces):
        build_reward({f"{tmp_path}/own.py:f": 1.0})


@pytest.mark.parametrize("start", ["\ufeff", "# -*- coding: latin-1 -*-\n# é\n"])
def test_files_as_people_write_them(tmp_path: Path, start: str):
    folder = tmp_path / "my rewards? (new)"
    folder.mkdir()
    (folder / "a_neighbor.py").write_text("LEVEL = 0.25\n")
    text = f"{start}import a_neighbor\r\ndef f(images, words):\r\n    return [a_neighbor.LEVEL] * len(images)\r\n"
    (folder / "own.py").write_bytes(text.encode("latin-1" if "latin" in start else "utf-8"))
    name = f"{folder}/own.py:f?scale=2"
    assert build_reward({name: 1.0})(IMAGES, WORDS)[0].tolist() == [0.5] * 3
    assert files_of_reward(name) == [f"{folder}/own.py"]


@pytest.fixture(autouse=True)
def unchanged_imports(monkeypatch: pytest.MonkeyPatch):
    """Take folders of this test off the path, and what was imported from them."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("a_neighbor", None)


@pytest.mark.parametrize(
    ("options", "expected"),
    [("text=a=b", ("a=b", 0.5, 3, True)), ("text=1&level=2&count=4&on=false", ("1", 2.0, 4, False))],
)
def test_options_without_type_hints(tmp_path: Path, options: str, expected: tuple[Any, ...]):
    (tmp_path / "own.py").write_text(
        "class F:\n    def __init__(self, text, level=0.5, count=3, on=True):\n"
        "        self.held = text, level, count, on\n    def __call__(self, images, words): pass\n"
    )
    held: Any = build_reward({f"{tmp_path}/own.py:F?{options}": 1.0}).parts[f"{tmp_path}/own.py:F?{options}"].reward
    assert held.held == expected
    with bad_input("reward", "count: 'x'", "int"):
        build_reward({f"{tmp_path}/own.py:F?text=a&count=x": 1.0})


def test_files_of_the_same_name_are_different_modules(tmp_path: Path):
    for level in (1, 2):
        (tmp_path / str(level)).mkdir()
        (tmp_path / f"{level}/own.py").write_text(f"L = {level}\ndef f(images, words):\n    return [L] * len(images)\n")
    names = [f"{tmp_path}/{level}/own.py:f" for level in (1, 2)]
    modules = [build_reward({name: 1.0}).parts[name].reward.__module__ for name in names]
    assert modules[0] != modules[1]


def test_state_is_kept(tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "class Counts:\n    def __init__(self):\n        self.calls = 0\n    def __call__(self, images, words):\n"
        "        self.calls += 1\n        return [self.calls] * len(images)\n"
    )
    reward = build_reward({f"{tmp_path}/own.py:Counts": 1.0})
    assert [reward(IMAGES, WORDS)[0][0].item() for _ in range(3)] == [1, 2, 3]


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
        ("{file}:Shade?level=1&sine=1", ["'sine'", "did you mean sign"]),
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
