"""Results that several rewards share are computed once per batch."""

import torch
from tiny import tiny_request

from sfumato.rewards import build_reward
from sfumato.rewards.sharing import OncePerBatch


def test_once_until_the_images_change():
    once, calls = OncePerBatch[int](), []

    def compute() -> int:
        calls.append(1)
        return len(calls)

    images = torch.rand(2, 3, 4, 4)
    assert [once(images, compute), once(images, compute)] == [1, 1]
    assert once(images, compute, key="b") == 2
    images.mul_(0.5)
    assert once(images, compute, key="b") == 3
    assert once(images.clone(), compute, key="b") == 4


def test_under_inference_mode():
    """Tensors created in inference mode have no version counter, but are still distinguished."""
    once, calls = OncePerBatch[int](), []

    def compute() -> int:
        calls.append(1)
        return len(calls)

    with torch.inference_mode():
        images, others = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
        assert [once(images, compute), once(images, compute)] == [1, 1]
        assert once(images, compute, key="b") == 2
        assert once(others, compute, key="b") == 3
    assert once(others, compute, key="b") == 3
    ordinary = others.clone()
    assert [once(ordinary, compute, key="b"), once(ordinary, compute, key="b")] == [4, 4]


def test_rewards_under_inference_mode():
    """A reward that shares the output of its network returns the same scores in inference mode."""
    pictures, words = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), tiny_request([0, 2]).words
    names = ("emoji-clip", "emoji-clip?prompt=an ant", "emoji-clip?scale=2")
    reward = build_reward(dict.fromkeys(names, 1.0))
    expected = reward(pictures, words)[0]
    with torch.inference_mode():
        for images in (pictures, pictures.clone(), pictures.flip(0).flip(0)):
            for _ in range(2):
                assert torch.equal(reward(images, words)[0], expected)
        assert not torch.equal(reward(pictures.flip(3), words)[0], expected)
