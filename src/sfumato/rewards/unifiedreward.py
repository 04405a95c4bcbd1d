"""UnifiedReward (Wang et al. 2025) on an OpenAI-compatible server, as in AR-GRPO's evaluation."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sfumato.errors import UserError
from sfumato.request import Words
from sfumato.rewards.answers import find_number
from sfumato.rewards.endpoint import Requests, api_key, ask_all, chat, check_address, pictures_of

QUESTION = """This image was generated for the caption [{caption}]. Judge it by two criteria: how well it shows what \
the caption says (objects, their attributes and relations), and how good it looks (clarity, detail, colours, overall \
appeal). Give reasons, then one mark from 1 to 5 after the words 'Final Score:'."""


@dataclass(frozen=True, kw_only=True)
class UnifiedReward:
    """The model's score from 1 to 5, divided by 5: 0.2 to 1. An image whose answer has no score gets none."""

    endpoint: str = "http://127.0.0.1:17140/v1"
    """address, up to /v1, of an OpenAI-compatible server, or of several with commas between them; their key is
    OPENAI_API_KEY"""
    model: str = "UnifiedReward-7b-v1.5"
    """name of the model on the server"""
    question: str = QUESTION
    """question, with {caption} in place of the caption; the answer must contain a "Final Score:" from 1 to 5"""
    concurrency: int = 16
    """number of simultaneous requests"""
    timeout: float = 120.0
    """time limit for an answer, in seconds"""
    retries: int = 8
    """number of retries when the server is unavailable"""

    def __post_init__(self):
        check_address(self.endpoint)
        if "{caption}" not in self.question:
            raise UserError(f"question: {self.question!r} does not contain {{caption}}; put it where the caption goes")

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        requests = Requests(timeout=self.timeout, retries=self.retries, token=api_key())

        def ask(item: tuple[str, Image.Image]) -> float:
            caption, picture = item
            question = self.question.replace("{caption}", caption)
            answer = chat(requests, self.endpoint, self.model, question, picture)["message"]["content"]
            return find_number(answer, "Final Score", 1.0, 5.0) / 5

        items = list(zip(words.captions, pictures_of(images, 512), strict=True))
        return torch.tensor(ask_all(ask, items, self.concurrency), device=images.device)

    @property
    def last_failure(self) -> str:
        """The reason that an image has no score."""
        return f"an answer of {self.model} has no 'Final Score:' from 1 to 5"
