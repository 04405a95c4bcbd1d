"""What travels between a reward server and its client: images and conditions as a safetensors file, scores as JSON.

safetensors holds numbers and text and nothing that runs.
"""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sfumato.data.images import to_rgb
from sfumato.data.preprocessing import to_bytes
from sfumato.errors import UserError
from sfumato.rollout import Conditions

TENSORS, JSON = "application/x-safetensors", "application/json"
"""content types of requests"""
LARGEST_SIDE, LARGEST_TOTAL = 4096, 2**26
"""pixels of a side, and of all images of a request"""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MALFORMED = (
    TypeError, ValueError, OverflowError, RecursionError, OSError, SyntaxError, SafetensorError,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""what reading malformed input raises"""


def pack(images: Float[Tensor, "B 3 H W"], conditions: Conditions) -> bytes:
    """A request: images as 8-bit values, labels, and the conditions' words."""
    words = {"names": conditions.names, "captions": conditions.captions, "metadata": conditions.metadata}
    labels = conditions.labels.cpu().long()
    if conditions.text is not None:  # they number the captions, not classes
        labels = torch.full_like(labels, -1)
    tensors = {"images": to_bytes(images).cpu().contiguous(), "labels": labels.contiguous()}
    return save_tensors(tensors, {key: json.dumps(value, default=str) for key, value in words.items()})


def unpack(body: bytes, content_type: str) -> tuple[Tensor, Conditions]:
    """Images in [0, 1] and conditions of a request.

    Raises:
        UserError: the request is malformed; the message says how.
    """
    if content_type == TENSORS:
        return _unpack_tensors(body)
    if content_type == JSON:
        return _unpack_json(body)
    raise UserError(f"content-type: {content_type!r} is not understood; send {TENSORS} or {JSON}")


def _unpack_tensors(body: bytes) -> tuple[Tensor, Conditions]:
    try:
        tensors = load_tensors(body)
        length = int.from_bytes(body[:8], "little")
        words = json.loads(body[8 : 8 + length]).get("__metadata__", {})
        words = {key: json.loads(value) for key, value in words.items()}
        words = {key: words[key] for key in ("names", "captions", "metadata") if key in words}
    except (*MALFORMED, AttributeError) as error:
        raise UserError(f"body: not a safetensors file ({error})") from error
    if "images" not in tensors:
        raise UserError("body: there is no tensor 'images'; send (B, 3, H, W), of 8 bits or in [0, 1]")
    return read_request(tensors["images"], tensors.get("labels"), words)


def _unpack_json(body: bytes) -> tuple[Tensor, Conditions]:
    """{"images": [PNG in base64, ...], "captions": [...], "names": [...], "labels": [...], "metadata": [...]}"""
    try:
        content = json.loads(body)
    except MALFORMED as error:
        raise UserError(f"body: not JSON ({error})") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("images"), list) or not content["images"]:
        raise UserError('body: there is no list "images" of PNG files in base64')
    pictures, pixels = [], 0
    for number, text in enumerate(content["images"]):
        pictures.append(read_picture(number, text))
        pixels += pictures[-1].width * pictures[-1].height
        if pixels > LARGEST_TOTAL:
            raise UserError(f"images: they have more than {LARGEST_TOTAL} pixels in all; send fewer at a time")
    if len({picture.size for picture in pictures}) > 1:
        raise UserError(f"images: they are of different sizes, {sorted({p.size for p in pictures})}; send equal ones")
    images = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])
    labels = content.get("labels")
    if labels is not None:
        if not isinstance(labels, list) or not all(isinstance(n, int) and abs(n) < 2**31 for n in labels):
            raise UserError("labels: they are not a list of class numbers")
        labels = torch.tensor(labels, dtype=torch.long)
    return read_request(images, labels, content)


def read_picture(number: int, text: Any) -> Image.Image:
    """A picture of a JSON request."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as picture:
            if max(picture.size) > LARGEST_SIDE:
                raise UserError(f"{picture.size} is larger than {LARGEST_SIDE} pixels")
            return to_rgb(picture)
    except MALFORMED as error:
        raise UserError(f"images: number {number} is not a PNG file in base64 ({error})") from error


def read_request(images: Tensor, labels: Tensor | None, words: Mapping[str, Any]) -> tuple[Tensor, Conditions]:
    """Images and conditions, checked."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape or max(images.shape[2:]) > LARGEST_SIDE:
        raise UserError(f"images: {tuple(images.shape)} is not (B, 3, H, W) with sides from 1 to {LARGEST_SIDE}")
    if images.dtype == torch.uint8:
        images = images.float() / 255
    elif images.dtype not in FLOATS or not ((images >= 0) & (images <= 1)).all():
        raise UserError(f"images: of type {images.dtype} they must be 8 bits, or numbers from 0 to 1")
    count = len(images)
    labels = torch.full((count,), -1) if labels is None else labels
    if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
        raise UserError(f"labels: {tuple(labels.shape)} of {labels.dtype} is not ({count},) of whole numbers")
    captions, names = (read_texts(key, words.get(key), count) for key in ("captions", "names"))
    metadata = words.get("metadata") or [{}] * count
    if (
        not isinstance(metadata, list)
        or len(metadata) != count
        or not all(isinstance(item, Mapping) for item in metadata)
    ):
        raise UserError(f"metadata: it is not a list of {count} objects")
    return images.float(), Conditions(
        labels=labels.long(), names=names or captions or ("",) * count, captions=captions, metadata=tuple(metadata)
    )


def read_texts(key: str, texts: Any, count: int) -> tuple[str, ...]:
    """A list of as many texts as there are images, or none at all."""
    if not texts:
        return ()
    if not isinstance(texts, list) or len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{key}: they are not a list of {count} texts")
    return tuple(texts)


@dataclass(frozen=True)
class Answer:
    """What a server says: a score an image, null for none, and why."""

    scores: Float[Tensor, " B"]
    reason: str = ""

    def pack(self) -> dict[str, Any]:
        """As JSON."""
        scores = [None if score != score else score for score in self.scores.tolist()]
        return {"scores": scores, "reason": self.reason}

    @staticmethod
    def unpack(content: Any, count: int) -> "Answer":
        """From JSON.

        Raises:
            UserError: these are not scores of so many images.
        """
        scores = content.get("scores") if isinstance(content, Mapping) else None
        if not isinstance(scores, list) or len(scores) != count:
            raise UserError(f"the answer has no list of {count} scores: {str(content)[:80]}")
        if not all(score is None or isinstance(score, int | float) for score in scores):
            raise UserError(f"the answer's scores are not numbers: {str(scores)[:80]}")
        numbers = [torch.nan if score is None else float(score) for score in scores]
        return Answer(torch.tensor(numbers), str(content.get("reason") or ""))
