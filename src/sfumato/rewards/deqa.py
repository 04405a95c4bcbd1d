"""DeQA-Score (You et al. 2025) on an OpenAI-compatible server: the probabilities of five words for image quality."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sfumato.request import Words
from sfumato.rewards.endpoint import Requests, api_key, ask_all, chat, check_address, pictures_of

LEVELS = {"excellent": 5.0, "good": 4.0, "fair": 3.0, "poor": 2.0, "bad": 1.0}
"""Quality words and their levels (section 3.1)."""
QUESTION = "How would you rate the quality of this image? Answer with one word: excellent, good, fair, poor or bad."


@dataclass(frozen=True, kw_only=True)
class DeQA:
    """Expected quality, 1 (bad) to 5 (excellent), under the probabilities of the five words as first answer token."""

    endpoint: str = "http://127.0.0.1:18086/v1"
    """address, up to /v1, of an OpenAI-compatible server that returns log-probabilities, or of several with commas
    between them; their key is OPENAI_API_KEY"""
    model: str = "DeQA-Score-Mix3"
    """name of the model on the server"""
    concurrency: int = 16
    """number of simultaneous requests"""
    timeout: float = 120.0
    """time limit for an answer, in seconds"""
    retries: int = 8
    """number of retries when the server is unavailable"""

    def __post_init__(self):
        check_address(self.endpoint)

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        requests = Requests(timeout=self.timeout, retries=self.retries, token=api_key())
        options = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}

        def ask(picture: Image.Image) -> float:
            return expected_level(chat(requests, self.endpoint, self.model, QUESTION, picture, **options))

        return torch.tensor(ask_all(ask, pictures_of(images), self.concurrency), device=images.device)

    @property
    def last_failure(self) -> str:
        """The reason that an image has no score."""
        return f"an answer of {self.model} has no log-probability of any of {', '.join(LEVELS)}"


def expected_level(choice: dict[str, Any]) -> float:
    """Return the mean level, weighted by the probabilities of the words as first token; NaN if no word has one."""
    tokens = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
    weights: dict[str, float] = {}
    for token in tokens:
        word = str(token.get("token", "")).strip(" ▁Ġ").lower()
        if word in LEVELS:
            weights[word] = weights.get(word, 0.0) + math.exp(token["logprob"])
    total = sum(weights.values())
    return sum(LEVELS[word] * weight for word, weight in weights.items()) / total if total else math.nan
