"""Time limits of rewards."""

import threading
import time

import pytest
import torch
from errors import bad_input
from tiny import tiny_request

from sfumato.rewards import Part, WeightedSum
from sfumato.rewards.deadline import Deadline, OverdueError, is_stuck

IMAGES = torch.rand(2, 3, 4, 4)
WORDS = tiny_request([0, 1]).words


def test_calls_return_or_raise():
    begun = []
    deadline = Deadline(60.0, begun=lambda: begun.append(1))
    weight = torch.ones(2, requires_grad=True)
    result = deadline.call(lambda x: (x * weight, threading.current_thread()), IMAGES[:, 0, 0, 0])
    assert torch.equal(result[0], IMAGES[:, 0, 0, 0])
    assert not result[0].requires_grad
    assert result[1] is deadline.call(threading.current_thread) is not threading.current_thread()
    with pytest.raises(TimeoutError, match="of its own"):  # not a missed deadline
        deadline.call(lambda: (_ for _ in ()).throw(TimeoutError("of its own")))
    assert len(begun) == 3
    assert not is_stuck()


def test_a_call_that_does_not_return_is_abandoned():
    deadline, release = Deadline(0.1), threading.Event()
    began = time.monotonic()
    with pytest.raises(OverdueError):
        deadline.call(release.wait)
    assert 0.1 <= time.monotonic() - began < 5
    assert is_stuck()
    with pytest.raises(OverdueError):  # the thread is still busy
        deadline.call(lambda: 1)
    release.set()
    deadline._last.result(5)  # pyright: ignore[reportOptionalMemberAccess]
    assert not is_stuck()
    assert deadline.call(lambda: 1) == 1


def test_a_slow_reward_is_named():
    release = threading.Event()

    def slow(images, words):
        release.wait(60)
        return images.mean((1, 2, 3))

    reward = WeightedSum({"slow": Part(reward=slow)}, Deadline(0.2))
    with bad_input("reward", "'slow'", "0.2 s", "raise reward_timeout"):
        reward(IMAGES, WORDS)
    release.set()


def test_a_quick_reward_has_the_same_scores():
    parts = {"first": Part(reward=lambda images, words: images[:, 0].mean((1, 2)), weight=2.0)}
    total, _ = WeightedSum(parts, Deadline(60.0))(IMAGES, WORDS)
    assert torch.equal(total, WeightedSum(parts)(IMAGES, WORDS)[0])
