"""Rewards that compare images: of a group that is drawn in parts, of images whose groups are unknown, on a server."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import bad_input
from PIL import Image
from tiny import tiny_config, tiny_request, trainer_of
from torch import Tensor

from sfumato.cli.main import main
from sfumato.engine.timing import PhaseTimer
from sfumato.errors import UserError
from sfumato.objectives import GRPO
from sfumato.request import Words
from sfumato.rewards import Part, RewardError, WeightedSum, build_reward
from sfumato.rewards.base import join_seen
from sfumato.rewards.groups import groups_of, with_features
from sfumato.rewards.placement import placed
from sfumato.rewards.server import check_part

EXAMPLE = Path(__file__).parents[2] / "examples/win_rate.py"
WIN_RATE = f"{EXAMPLE}:win_rate"
IMAGES = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
WORDS = tiny_request([0, 1, 0, 1, 0, 2]).words


class Above:
    """Whether an image is brighter than the mean of its group."""

    def __init__(self):
        self.calls: list[tuple[str, int]] = []

    def features(self, images: Tensor, words: Words) -> Any:
        self.calls.append(("features", len(images)))
        return images.mean((2, 3))

    def scores(self, features: Tensor, words: Words, groups: Tensor) -> Any:
        self.calls.append(("scores", len(features)))
        bright = features.mean(1)
        return [bool(bright[n] > bright[groups == groups[n]].mean()) for n in range(len(features))]


def expected(images: Tensor, groups: list[int]) -> list[float]:
    bright = images.mean((1, 2, 3)).tolist()
    means = {g: sum(b for b, h in zip(bright, groups, strict=True) if h == g) / groups.count(g) for g in groups}
    return [float(b > means[g]) for b, g in zip(bright, groups, strict=True)]


def test_the_example():
    groups = torch.tensor([5, 5, 5, 2, 2, 7])
    spread = IMAGES.std((1, 2, 3)).tolist()
    wins = [sum(spread[n] > spread[m] for m in range(3)) / 2 for n in range(3)]
    wins += [float(spread[3] > spread[4]), float(spread[4] > spread[3]), torch.nan]
    total, scores = build_reward({WIN_RATE: 2.0})(IMAGES, WORDS, groups)
    torch.testing.assert_close(scores[WIN_RATE], torch.tensor(wins), equal_nan=True)
    torch.testing.assert_close(total, 2 * torch.tensor(wins), equal_nan=True)


def test_groups_are_those_of_equal_requests_if_nothing_is_known():
    assert groups_of(WORDS).tolist() == [0, 1, 0, 1, 0, 2]
    same_class = Words(names=("a", "a", "a"), captions=("x", "y", "x"))
    assert groups_of(same_class).tolist() == [0, 1, 0]
    _, scores = WeightedSum({"above": Part(reward=Above())})(IMAGES, WORDS)
    assert scores["above"].tolist() == expected(IMAGES, [0, 1, 0, 1, 0, 2])


def test_a_batch_in_parts_is_compared_as_a_whole():
    above = Above()
    reward = WeightedSum(
        {"above": Part(reward=above, scale=2.0), "bright": Part(reward=lambda i, w: i.mean((1, 2, 3)))}
    )
    parts = [torch.tensor([0, 1]), torch.tensor([2, 3, 4, 5])]
    seen = join_seen([reward.see(IMAGES[part], WORDS[part]) for part in parts])
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    total, scores = reward.finish(seen, WORDS, groups)
    assert above.calls == [("features", 2), ("features", 4), ("scores", 6)]
    assert scores["above"].tolist() == [2 * score for score in expected(IMAGES, groups.tolist())]
    torch.testing.assert_close(total, scores["above"] + IMAGES.mean((1, 2, 3)))
    assert reward.compares == ("above",)


@pytest.mark.parametrize("candidates", [0, 8])
def test_groups_of_training_are_split_over_parts(tiny_model: Path, candidates: int):
    """Groups of four are drawn three images at a time; two groups of the same class are not mixed."""
    rewards = {WIN_RATE: 1.0, "brightness": 0.0}
    trainer = trainer_of(tiny_config(tiny_model, sample_batch_size=3, reward=rewards))
    request = tiny_request([0, 0]).repeat(4)
    batch, _ = trainer.collect(request)
    images = trainer.policy.decode(trainer.policy.sample(request, torch.arange(8)).tokens)
    halves = [build_reward(rewards)(images[half], request.words[half])[0] for half in (slice(4), slice(4, 8))]
    torch.testing.assert_close(batch.rewards, torch.cat(halves))
    trainer = trainer_of(tiny_config(tiny_model, sample_batch_size=3, reward=rewards, candidates=candidates))
    drawn = trainer.rollouts.next(trainer.rng, PhaseTimer(torch.device("cpu"))).rewards
    rivals = (candidates or 4) - 1
    assert {round(wins, 3) for wins in (drawn * rivals).tolist()} <= set(range(rivals + 1))


def test_features_may_be_changed_by_no_other_reward():
    def darkens(images: Tensor, words: Words) -> Tensor:
        images.zero_()
        return torch.zeros(len(images))

    def compares(images: Tensor, words: Words, groups: Tensor) -> Tensor:
        return images.mean((1, 2, 3))

    reward = WeightedSum({"compares": Part(reward=with_features(compares)), "darkens": Part(reward=darkens)})
    torch.testing.assert_close(reward(IMAGES, WORDS)[1]["compares"], IMAGES.mean((1, 2, 3)))


class Remembers(Above):
    """A reward with a state, which is the number of images of training."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def update(self, features: Tensor) -> None:
        self.count += len(features)

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


class OnlyScores:
    last_failure = "out of luck"

    def __init__(self, level: float = 0.5):
        self.level, self.updated = level, 0

    def scores(self, images: Tensor, words: Words, groups: Tensor) -> Tensor:
        return images.mean((1, 2, 3)) - self.level + groups

    def update(self, images: Tensor) -> None:
        self.updated += 1

    def state_dict(self) -> dict[str, int]:
        return {"updated": self.updated}


@pytest.mark.parametrize("move", [False, True])
def test_only_training_changes_the_state(move: bool):
    remembers, only = Remembers(), OnlyScores()
    reward = WeightedSum(
        {
            "r": Part(reward=remembers),
            "o": Part(reward=with_features(only)),
            "plain": Part(reward=lambda i, w: w.labels.float()),
        }
    )
    reward = placed(reward, torch.device("cpu")) if move else reward
    seen = reward.see(IMAGES, WORDS)
    _, scores = reward.finish(seen, WORDS, torch.tensor([0, 0, 0, 0, 1, 1]))
    torch.testing.assert_close(scores["o"], IMAGES.mean((1, 2, 3)) - 0.5 + torch.tensor([0, 0, 0, 0, 1, 1]))
    assert reward.state_dict() == {"r": {"count": 0}, "o": {"updated": 0}}
    reward.update(seen)
    assert reward.state_dict() == {"r": {"count": 6}, "o": {"updated": 1}}
    reward.load_state_dict({"r": {"count": 9}})
    assert remembers.count == 9
    assert getattr(reward.parts["o"].reward, "last_failure", "") == "out of luck"
    assert not hasattr(reward.parts["r"].reward, "last_failure")


def test_a_failing_step_leaves_the_state(tiny_model: Path):
    remembers = Remembers()
    trainer = trainer_of(tiny_config(tiny_model))
    trainer.rollouts = replace(trainer.rollouts, reward=WeightedSum({"r": Part(reward=remembers)}))
    trainer.step(0)
    assert remembers.count == 8

    class Refuses(GRPO):
        def credit(self, batch: Any) -> Any:
            assert remembers.count == 16
            raise UserError("credit: 1; give 2")

    trainer.objective = Refuses()
    with bad_input("step", "step 2: credit: 1"):
        trainer.step(1)
    assert remembers.count == 8


@pytest.mark.parametrize(
    ("features", "fault"),
    [(torch.zeros(5, 2), "a Tensor (5, 2) as features of 6 images"), ([1.0] * 6, "a list as features of 6 images")],
)
def test_wrong_features(features: Any, fault: str):
    above = Above()
    above.features = lambda images, words: features
    with pytest.raises(RewardError, match="'above' returned") as raised:
        WeightedSum({"above": Part(reward=above)})(IMAGES, WORDS)
    assert fault in str(raised.value)
    assert str(raised.value).endswith("return a tensor (6, ...)")


def test_failures_of_both_stages_are_named():
    def lost(*arguments: Any) -> Any:
        raise OSError("no route")

    for stage in ("features", "scores"):
        above = Above()
        setattr(above, stage, lost)
        with bad_input("reward", "'above' failed: OSError: no route"):
            WeightedSum({"above": Part(reward=above)})(IMAGES, WORDS)
    above = Above()
    above.scores = lambda features, words, groups: [1.0]
    with bad_input("reward", "'above' returned a list for 6 images", "(6,)"):
        WeightedSum({"above": Part(reward=above)})(IMAGES, WORDS)


def test_images_of_two_sizes_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for number, side in enumerate((4, 4, 5)):
        Image.new("L", (side, side), 60 * number).save(tmp_path / f"{number}.png")
    assert main(["score", WIN_RATE, str(tmp_path), "--json", "--device", "cpu"]) == 2
    message = capsys.readouterr().err
    assert f"sfumato: reward '{WIN_RATE}' has features of the shapes [(3, 4, 4), (3, 5, 5)]" in message


def test_scored_files_are_compared_with_those_of_the_same_caption(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    noise = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)) - 0.5
    for folder, spreads in (("ant", (0.2, 0.9, 0.5)), ("bee", (0.7,))):
        (tmp_path / folder).mkdir()
        for number, spread in enumerate(spreads):
            pixels = ((0.5 + spread * noise) * 255).byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(tmp_path / f"{folder}/{number}.png")
    assert main(["score", WIN_RATE, str(tmp_path), "--json", "--device", "cpu"]) == 0
    out = capsys.readouterr()
    assert [line["score"] for line in json.loads(out.out)] == [0.0, 1.0, 0.5, None]
    assert "1 of 4 images have no score" in out.err


def test_a_server_refuses(capsys: pytest.CaptureFixture[str]):
    with bad_input("reward", "above", "parts of a batch", "where you train"):
        check_part("above", Part(reward=Above()))
    assert main(["serve", WIN_RATE, "--port", "0"]) == 2
    captured = capsys.readouterr()
    assert "compares images" in captured.err
    assert "http" not in captured.out


def test_a_class_of_the_user_with_options(tmp_path: Path):
    (tmp_path / "r.py").write_text(
        "class Ranks:\n"
        "    def __init__(self, factor: float = 1.0):\n"
        "        self.factor = factor\n"
        "    def scores(self, images, words, groups):\n"
        "        return self.factor * groups\n"
        "class Called(Ranks):\n"
        "    scores = None\n"
        "    def __call__(self, images, words, groups):\n"
        "        return -self.factor * groups\n"
    )
    groups = torch.tensor([0, 1, 2, 3, 4, 5])
    for name, sign in ((f"{tmp_path}/r.py:Ranks?factor=3", 3), (f"{tmp_path}/r.py:Called?factor=2", -2)):
        total, _ = build_reward({name: 1.0})(IMAGES, WORDS, groups)
        torch.testing.assert_close(total, (sign * groups).float())


def test_the_documented_example_is_the_file():
    page = (EXAMPLE.parents[1] / "docs/how-to/own-reward.md").read_text()
    code = EXAMPLE.read_text().partition("def win_rate")[2].partition("\n")[2].partition('"""\n')[2]
    assert code.strip() in page
