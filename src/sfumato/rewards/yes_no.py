"""Answers to yes/no questions about an image, for benchmarks that question an image: BLIP's VQA model, a
vision-language model in this process or on a server, or a function of the user."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.data.preprocessing import normalize, resize
from sfumato.errors import UserError
from sfumato.plugins import describe, is_path, load_object
from sfumato.rewards import needs
from sfumato.rewards.endpoint import Requests, api_key, ask_all, chat, check_address, pictures_of
from sfumato.rewards.vlm import load_vlm

Answer = Callable[[Float[Tensor, "3 H W"], Sequence[str]], Sequence[float]]
"""Returns, for an image in [0, 1] and each of several questions, the probability of yes."""

LONGEST = 35
"""Largest number of tokens in a question to BLIP, as in T2I-CompBench's code."""
CONCURRENCY = 16
"""Number of simultaneous requests to a server."""


@dataclass(frozen=True)
class Blip:
    """BLIP's VQA model (Li et al. 2022): p(yes) / (p(yes) + p(no)) as the first word of the answer, as in
    T2I-CompBench's BLIP-VQA."""

    model: Any
    """a BlipForQuestionAnswering"""
    tokenizer: Any
    device: torch.device

    @torch.no_grad()
    def __call__(self, image: Float[Tensor, "3 H W"], questions: Sequence[str]) -> list[float]:
        side = self.model.config.vision_config.image_size
        seen = self.model.vision_model(pixel_values=normalize(resize(image[None].to(self.device), side, side)))[0]
        return [self._probability(seen, question) for question in questions]

    def _probability(self, seen: Float[Tensor, "1 N D"], question: str) -> float:
        """Return the probability of yes. One question at a time: transformers' decoder attends to padding, too."""
        words = self.tokenizer(question, truncation=True, max_length=LONGEST, return_tensors="pt").to(self.device)
        first = self.model.config.text_config.bos_token_id
        # BLIP's own code replaces [CLS] by [ENC], which follows [DEC] in its vocabulary; transformers does not.
        words.input_ids[:, 0] = first + 1
        asked = self.model.text_encoder(input_ids=words.input_ids, encoder_hidden_states=seen)[0]
        start = torch.tensor([[first]], device=self.device)
        logits = self.model.text_decoder(input_ids=start, encoder_hidden_states=asked).logits[0, 0]
        pair = self.tokenizer.convert_tokens_to_ids(["yes", "no"])
        return logits[pair].float().softmax(0)[0].item()


def load_answer(model: str, endpoint: str | None, device: torch.device) -> Answer:
    """Return a function that answers yes/no questions about an image.

    Args:
        model: hub id or folder of BLIP's VQA model or another vision-language model of transformers; with an endpoint,
            name of the model on the server; or `path/to/file.py:function`, an `Answer` of your own.
        endpoint: address, up to /v1, of an OpenAI-compatible server, or of several with commas between them.
        device: device of a model in this process.

    Raises:
        UserError: the address is invalid, a package is missing, or the model cannot be loaded.
    """
    if is_path(model):
        return functools.partial(ask_own, load_object("vqa", model), model)
    if endpoint is not None:
        check_address(endpoint)
        return functools.partial(ask_server, Requests(timeout=120, retries=8, token=api_key()), endpoint, model)
    transformers = needs.package("transformers", "clip")
    if needs.pretrained(transformers.AutoConfig, model).model_type != "blip":
        return functools.partial(ask_vlm, model, device)
    blip = needs.pretrained(transformers.BlipForQuestionAnswering, model).eval().requires_grad_(False).to(device)
    return Blip(blip, needs.pretrained(transformers.AutoTokenizer, model), device)


def ask_own(function: Callable, name: str, image: Float[Tensor, "3 H W"], questions: Sequence[str]) -> list[float]:
    """Ask a function of the user.

    Raises:
        UserError: it fails, or does not return one number from 0 to 1 for each question.
    """
    try:
        answers = [float(answer) for answer in function(image, questions)]
    except Exception as error:  # a user's code may raise anything; the cause is kept
        raise UserError(f"vqa: {name} fails: {describe(error)}") from error
    if len(answers) != len(questions) or not all(0 <= answer <= 1 for answer in answers):
        raise UserError(
            f"vqa: {name} returned {str(answers)[:80]} for {len(questions)} questions; return a probability for each"
        )
    return answers


def ask_vlm(model: str, device: torch.device, image: Float[Tensor, "3 H W"], questions: Sequence[str]) -> list[float]:
    """Ask a vision-language model in this process; the answers are 0 or 1."""
    images = image.to(device).expand(len(questions), -1, -1, -1)
    return [read_yes(text) for text in load_vlm(model).answer(images, [in_a_word(q) for q in questions])]


def ask_server(
    requests: Requests, endpoint: str, model: str, image: Float[Tensor, "3 H W"], questions: Sequence[str]
) -> list[float]:
    """Ask a model on an OpenAI-compatible server; the answers are 0 or 1."""
    (picture,) = pictures_of(image[None])

    def ask(question: str) -> float:
        answer = chat(requests, endpoint, model, in_a_word(question), picture, max_tokens=8)
        return read_yes(answer["message"]["content"])

    return ask_all(ask, list(questions), CONCURRENCY)


def in_a_word(question: str) -> str:
    """Return the question with the request for a short answer."""
    return f"{question} Answer with one word: yes or no."


def read_yes(answer: str) -> float:
    """Return 1 if the first word of an answer is yes; every other answer counts as no, as in DPG-Bench's code."""
    words = answer.strip().lower().split()
    return float(bool(words) and words[0].strip(".,:;!*\"'") == "yes")
