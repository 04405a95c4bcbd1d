"""The bundled classifier of emoji for rewards, which evaluation never uses."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from errors import bad_input
from tiny import tiny_request
from torch import Tensor

import sfumato
from sfumato.data.classes import spread
from sfumato.emoji import judges as classifiers
from sfumato.emoji.judges import Classifier, PatchClassifier, load_classifier, load_rival
from sfumato.evaluation import features, recognition
from sfumato.naming import class_words
from sfumato.request import Words
from sfumato.rewards import build_reward
from sfumato.rewards.classifier import Network, default_network, load_network
from sfumato.rewards.wire import TENSORS, pack, unpack


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, Words]:
    """Pictures of 32 emoji, drawn by the bundled generator."""
    policy = sfumato.load("emoji-var", temperature=0.7)
    names = policy.generator.card.class_names
    words = class_words(spread(len(names), 32), names)
    return policy.draw(policy.request(words), torch.arange(len(words))), words


def test_it_knows_what_the_generator_draws(drawn: tuple[Tensor, Words]):
    images, words = drawn
    reward = build_reward({"classifier": 1.0, "classifier?score=accuracy": 1.0, "classifier?network=emoji-rival": 0.0})
    log_probs, accuracy, named = reward(images, words)[1].values()
    assert accuracy.mean() >= 0.4  # 58 % of many; chance is 1 of 512
    assert torch.equal(log_probs, named)
    assert log_probs.max() <= 0
    wrong = words[torch.arange(len(words)).roll(1)]
    assert (log_probs - reward(images, wrong)[1]["classifier"]).mean() > 3


def test_larger_pictures_are_made_smaller(drawn: tuple[Tensor, Words]):
    images, words = drawn
    reward = build_reward({"classifier?network=emoji-rival": 1.0})
    larger = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (reward(larger, words)[0] - reward(images, words)[0]).abs().median() < 1


def test_the_networks_are_two():
    rival, judge = load_rival(), load_classifier()
    assert rival.class_names == judge.class_names
    assert (type(rival), type(judge)) == (PatchClassifier, Classifier)
    assert not {tuple(p.shape) for p in rival.features.parameters() if p.ndim == 4} & {
        tuple(p.shape) for p in judge.features.parameters() if p.ndim == 4
    }


def test_evaluation_and_rewards_load_different_folders(drawn: tuple[Tensor, Words], monkeypatch: pytest.MonkeyPatch):
    """The models that evaluation and rewards of emoji read from disk."""
    read: list[str] = []
    load = classifiers._load

    def watch(folder: Path, wanted: type) -> Classifier | PatchClassifier:
        read.append(folder.name)
        return load(folder, wanted)

    monkeypatch.setattr(classifiers, "_load", watch)
    device = torch.device("cpu")
    recognition.load_recognizer("emoji", device).logits(drawn[0])
    features.load_extractor("emoji", None, device)(drawn[0])
    assert set(read) == {"emoji-classifier"}
    assert not {"emoji-rival"} & {*get_args(recognition.Recognizer), *get_args(features.Network)}
    read.clear()
    load_network.cache_clear()
    build_reward({"classifier": 1.0})(*drawn)
    assert set(read) == {"emoji-rival"}
    assert "emoji" not in get_args(Network)


def test_which_network_is_taken():
    names = load_rival().class_names
    assert default_network(class_words([300, 3], names)) == "emoji-rival"
    assert default_network(tiny_request([0, 1]).words) == "resnet50"
    # A name alone is not enough: ImageNet has other numbers for the same names.
    assert default_network(Words(labels=torch.tensor([291]), names=(names[0],))) == "resnet50"
    captions = Words(labels=torch.tensor([0]), names=("an apple",), metadata=({"class": names[7]},))
    assert default_network(captions) == "emoji-rival"
    assert load_network("emoji-rival", None).labels(captions).tolist() == [7]


def test_classes_by_name_alone():
    """Requests without class numbers, as from `sfumato score` and some clients."""
    names = load_rival().class_names
    images = torch.rand(1, 3, 8, 8)
    by_name = Words(labels=torch.tensor([-1]), names=(names[5],))
    reward = build_reward({"classifier?network=emoji-rival": 1.0})
    assert torch.equal(reward(images, by_name)[0], reward(images, class_words([5], names))[0])
    _, received = unpack(pack(images, by_name), TENSORS)
    assert received.labels.tolist() == [-1]
    with bad_input("reward", "'a car'", "emoji-rival"):
        reward(images, Words(labels=torch.tensor([3]), names=("a car",)))


def test_imagenet_classes_by_name_alone():
    pytest.importorskip("efficientnet_lite_pytorch")
    network = load_network("efficientnet-lite0", None)
    assert network.labels(Words(labels=torch.tensor([-1]), names=("tabby",))).tolist() == [281]
    assert network.labels(Words(labels=torch.tensor([12]), names=("mine",))).tolist() == [12]
    with bad_input("classes", "'mine'", "efficientnet-lite0"):
        network.labels(Words(labels=torch.tensor([-1]), names=("mine",)))
