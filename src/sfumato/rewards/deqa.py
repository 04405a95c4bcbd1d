"""DeQA-Score (You et al. 2025) behind an OpenAI-compatible server: how likely a model finds five words of quality."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sfumato.rewards.endpoint import Requests, api_key, ask_all, chat, check_address, pictures_of
from sfumato.rollout import Conditions

LEVELS = {"excellent": 5.0, "good": 4.0, "fair": 3.0, "poor": 2.0, "bad": 1.0}
"""words of quality and what they count (section 3.1)"""
QUESTION = "How would you rate the quality of this image? Answer with one word: excellent, good, fair, poor or bad."


@dataclass(frozen=True, kw_only=True)
class DeQA:
    """Expected quality, 1 (bad) to 5 (excellent), under the probabilities of the five words as the answer's first."""

    endpoint: str = "http://127.0.0.1:18086/v1"
    """address of an OpenAI-compatible server up to /v1 that gives log-probabilities; its key is OPENAI_API_KEY"""
    model: str = "DeQA-Score-Mix3"
    """the name that the server knows"""
    concurrency: int = 16
    """requests at a time"""
    timeout: float = 120.0
    """seconds that an answer may take"""
    retries: int = 8
    """further tries when the server is away"""

    def __post_init__(self):
        check_address(self.endpoint)

    def __call__(self, images: Float[Tensor, "B 3 H W"], conditions: Conditions) -> Float[Tensor, " B"]:
        requests = Requests(timeout=self.timeout, retries=self.retries, token=api_key())
        options = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}

        def ask(picture: Image.Image) -> float:
            return expected_level(chat(requests, self.endpoint, self.model, QUESTION, picture, **options))

        return torch.tensor(ask_all(ask, pictures_of(images), self.concurrency), device=images.device)

    @property
    def last_failure(self) -> str:
        """Why an image had no score."""
        return f"an answer of {self.model} has no log-probability of any of {', '.join(LEVELS)}"


def expected_level(choice: dict[str, Any]) -> float:
    """Mean of the levels, weighted with the probabilities of their words as the first token; NaN without any."""
    tokens = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
    weights: dict[str, float] = {}
    for token in tokens:
        word = str(token.get("token", "")).strip(" ▁Ġ").lower()
        if word in LEVELS:
            weights[word] = weights.get(word, 0.0) + math.exp(token["logprob"])
    total = sum(weights.values())
    return sum(LEVELS[word] * weight for word, weight in weights.items()) / total if total else math.nan
