"""The protocol of Flow-GRPO's reward servers, with stand-ins written after app_geneval.py and app_deqa.py."""

import io
import pickle
import traceback
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from errors import bad_input
from local_server import serving
from PIL import Image

from sfumato.request import Words
from sfumato.rewards import RewardError, build_reward
from sfumato.rewards.flow_grpo import read_answer

IMAGES = torch.stack([torch.full((3, 16, 16), level) for level in (0.2, 0.4, 0.6, 0.8)])
METADATA = [{"tag": "counting", "include": [{"class": "cat", "count": n}], "limit": float("nan")} for n in range(4)]
WORDS = Words(names=tuple(f"a photo of {n} cats" for n in range(4)), metadata=tuple(METADATA))


def brightness(pictures: list[bytes]) -> list[float]:
    opened = [Image.open(io.BytesIO(data), formats=["jpeg"]) for data in pictures]
    return [float(np.array(picture).mean() / 255) for picture in opened]


def geneval(data: dict[str, Any]) -> dict[str, Any]:
    """Scores are brightness plus the wanted count, so that they reveal images and metadata."""
    levels = brightness(data["images"])
    counts = [item["include"][0]["count"] for item in data["meta_datas"]]
    assert [item["prompt"] for item in data["meta_datas"]] == [f"a photo of {count} cats" for count in counts]
    assert [item["tag"] for item in data["meta_datas"]] == ["counting"] * len(levels)
    scores, strict = [level + count for level, count in zip(levels, counts, strict=True)], [0.0] * len(levels)
    groups = defaultdict(list, counting=strict)
    return {
        "scores": scores, "rewards": [False] * len(levels) if data["only_strict"] else strict,
        "strict_rewards": strict, "group_rewards": dict(groups), "group_strict_rewards": dict(groups),
    }  # fmt: skip


def deqa(data: dict[str, Any]) -> dict[str, Any]:
    return {"outputs": brightness(data["images"])}


def unifiedreward(data: dict[str, Any]) -> dict[str, Any]:
    return {"outputs": [float(prompt.split()[3]) for prompt in np.array(data["prompts"])]}


def inference(score: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[bytes], tuple[int, bytes]]:
    """Answer as the servers do: a pickle, or the traceback of an error."""

    def answer(body: bytes) -> tuple[int, bytes]:
        try:
            return 200, pickle.dumps(score(pickle.loads(body)))
        except Exception:
            return 500, traceback.format_exc().encode()

    return answer


@pytest.mark.parametrize(
    ("score", "expected"),
    [(geneval, [0.2, 1.4, 2.6, 3.8]), (deqa, [0.2, 0.4, 0.6, 0.8]), (unifiedreward, [0, 1, 2, 3])],
)
def test_scores(score: Callable, expected: list[float], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SFUMATO_REWARD_TOKEN", "secret")
    with serving(inference(score)) as server:
        scores = build_reward({f"{server.address}?protocol=flow-grpo&batch_size=3": 1.0})(IMAGES, WORDS)[0]
    assert scores.tolist() == pytest.approx(expected, abs=0.01)
    assert [(path, token) for path, token, _ in server.seen] == [("/", None)] * 2  # these servers get no token


def test_an_error_there_is_one_line():
    with (
        serving(inference(geneval)) as server,
        pytest.raises(RewardError, match=r"http://127\.0\.0\.1:\d+ refused: 500 KeyError: 'include'$"),
    ):
        build_reward({f"{server.address}?protocol=flow-grpo": 1.0})(IMAGES, Words(names=("a cat",) * 4))
    assert len(server.seen) == 1


class Hostile:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_a_function_is_refused(tmp_path: Path, protocol: int):
    """It is read by nothing that could run it."""
    body = pickle.dumps({"scores": [Hostile(tmp_path / "touched")] * 4}, protocol)
    with serving(lambda request: (200, body)) as server, pytest.raises(RewardError) as error:
        build_reward({f"{server.address}?protocol=flow-grpo": 1.0})(IMAGES, WORDS)
    assert "which is not read, because a pickle can run code" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "touched").exists()
    pickle.loads(body)
    assert (tmp_path / "touched").exists()  # otherwise, the test would show nothing


@pytest.mark.parametrize(
    ("body", "pieces"),
    [
        (b"", ("not a pickle",)),
        (b"<html><body><h1>It works!</h1></body></html>", ("not a pickle: It works!",)),
        (pickle.dumps([1.0] * 4), ("a list, not a dictionary",)),
        (pickle.dumps({"outputs": [1.0] * 3}), ("no list of 4 scores", "outputs")),
        (pickle.dumps({"outputs": ["good"] * 4}), ("not numbers",)),
        (pickle.dumps({"outputs": [10**400] * 4}), ("too large",)),
        (pickle.dumps({"outputs": [np.float64(1.0)] * 4}), ("numpy", ".item()")),
        (pickle.dumps({"outputs": np.ones(4)}), ("numpy", ".tolist()")),
        (b"cposix\nsystem\n(S'true'\ntR.", ("posix.system",)),
        (b"(S'true'\niposix\nsystem\n.", ("posix.system",)),
        (b"\x80\x02\x82\x01.", ("not a pickle",)),  # an extension
        (b"Pname\n.", ("not a pickle",)),  # a persistent object
        (b"\x80\x04}X\x06\x00\x00\x00scores" + b"]" * 5001 + b"a" * 5000 + b"s.", ("no list of 4 scores",)),
        (b"\x80\x04" + b"(" * 100_000 + b"l" * 5000 + b".", ("a list",)),
    ],
)
def test_other_answers_are_refused(body: bytes, pieces: tuple[str, ...]):
    with bad_input("the", *pieces):
        read_answer(body, 4)
