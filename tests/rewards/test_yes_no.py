"""Answers to yes/no questions: BLIP as transformers computes it, words of other models, and a user's function."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from errors import bad_input
from local_server import serving
from PIL import Image
from tiny_transformers import save_blip_vqa

from sfumato.rewards import yes_no
from sfumato.rewards.yes_no import Blip, load_answer, read_yes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return save_blip_vqa(tmp_path_factory.mktemp("blip"))


def test_blip_as_transformers_generates(blip: Path):
    """The first word that transformers' own `generate` would draw, among yes and no, with BLIP's [ENC] token."""
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    pixels = torch.randint(0, 256, (3, 40, 52), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    answer = load_answer(str(blip), None, CPU)
    assert isinstance(answer, Blip)
    questions = ["a red car?", "bench?"]
    ours = answer(pixels / 255, questions)
    processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    for question, probability in zip(questions, ours, strict=True):
        words = answer.tokenizer(question, return_tensors="pt")
        assert words.input_ids[0, 0] == answer.tokenizer.convert_tokens_to_ids("[CLS]")
        words.input_ids[0, 0] = answer.tokenizer.convert_tokens_to_ids("[ENC]")
        out = answer.model.generate(
            input_ids=words.input_ids,
            attention_mask=words.attention_mask,
            pixel_values=theirs,
            max_new_tokens=1,
            output_logits=True,
            return_dict_in_generate=True,
        )
        yes, no = (out.logits[0][0, answer.tokenizer.convert_tokens_to_ids(word)].exp() for word in ("yes", "no"))
        assert probability == pytest.approx((yes / (yes + no)).item(), abs=2e-3)
    assert abs(ours[0] - ours[1]) > 5e-3
    assert abs(answer(1 - pixels / 255, questions)[0] - ours[0]) > 5e-3


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("yes", 1), (" Yes, it is.", 1), ("**YES**", 1), ("no", 0), ("Yesterday", 0), ("", 0), ("I think yes", 0)],
)
def test_words(answer: str, expected: int):
    assert read_yes(answer) == expected


def test_other_models_are_asked_for_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    asked = []

    class Model:
        def answer(self, images: torch.Tensor, questions: Sequence[str]) -> list[str]:
            asked.append((tuple(images.shape), list(questions)))
            return ["Yes.", "No."]

    monkeypatch.setattr(yes_no, "load_vlm", lambda model: Model() if model == str(tmp_path) else None)
    answer = load_answer(str(tmp_path), None, CPU)
    assert answer(torch.rand(3, 4, 6), ["Is it red?", "Is it blue?"]) == [1, 0]
    shape, questions = asked[0]
    assert shape == (2, 3, 4, 6)
    assert questions[1].startswith("Is it blue? ")


def test_a_server_is_asked():
    def reply(body: bytes) -> tuple[int, bytes]:
        sent = json.loads(body)
        assert sent["model"] == "mplug"
        (text,) = [part["text"] for part in sent["messages"][0]["content"] if part["type"] == "text"]
        said = "yes" if text.startswith("Is there a dog?") else "no"
        return 200, json.dumps({"choices": [{"message": {"content": said}}]}).encode()

    with serving(reply) as server:
        answer = load_answer("mplug", server.address + "/v1", CPU)
        assert answer(torch.rand(3, 4, 4), ["Is there a cat?", "Is there a dog?"]) == [0, 1]
    with bad_input("endpoint", "localhost"):
        load_answer("mplug", "localhost", CPU)


def test_a_function_of_the_user(tmp_path: Path):
    file = tmp_path / "own.py"
    file.write_text(
        "def bright(image, questions):\n    return [float(image.mean())] * len(questions)\n"
        "def lazy(image, questions):\n    return [0.5]\n"
        "def loud(image, questions):\n    return [2.0] * len(questions)\n"
        "def broken(image, questions):\n    raise ValueError('no model')\n"
    )
    image = torch.full((3, 2, 2), 0.25)
    assert load_answer(f"{file}:bright", None, CPU)(image, ["a?", "b?"]) == [0.25, 0.25]
    for name, pieces in (("lazy", ["[0.5]", " 2 "]), ("loud", ["[2.0, 2.0]"]), ("broken", ["no model", "line 8"])):
        with bad_input("vqa", name, *pieces):
            load_answer(f"{file}:{name}", None, CPU)(image, ["a?", "b?"])
    with bad_input("vqa", "own.py", "missing", "bright"):
        load_answer(f"{file}:missing", None, CPU)
