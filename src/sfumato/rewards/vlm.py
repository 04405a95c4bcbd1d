"""A vision-language model from transformers that answers questions about images in batches."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.data.pictures import to_pictures
from sfumato.rewards import needs

MAX_NEW_TOKENS = 256
"""Largest number of tokens in an answer."""


class VisionLanguageModel:
    """A model with its processor. Answers are decoded greedily, not sampled."""

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model.eval().requires_grad_(False), processor
        self.processor.tokenizer.padding_side = "left"  # so that all answers of a batch begin at the same position

    @torch.no_grad()
    def answer(self, images: Float[Tensor, "B 3 H W"], questions: Sequence[str]) -> list[str]:
        """Answer one question about each image."""
        self.model.to(images.device)
        prompts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
                add_generation_prompt=True,
            )
            for question in questions
        ]
        inputs = self.processor(
            text=prompts, images=[[picture] for picture in to_pictures(images)], padding=True, return_tensors="pt"
        ).to(images.device)
        output = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new, skip_special_tokens=True)


@functools.cache
def load_vlm(model: str) -> VisionLanguageModel:
    """Load a model by hub id or folder; later calls return the same object.

    Raises:
        UserError: transformers is missing, or the model cannot be loaded.
    """
    transformers = needs.package("transformers", "clip")
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return VisionLanguageModel(
        needs.pretrained(transformers.AutoModelForImageTextToText, model, dtype=dtype),
        needs.pretrained(transformers.AutoProcessor, model),
    )
