"""The format of requests and answers of a reward server: images and words as a safetensors file, scores as JSON.

A safetensors file contains numbers and text only, and no executable code.
"""

import base64
import io
import json
from collections.abc import Callable, Mapping
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
from sfumato.files import finite
from sfumato.request import Words
from sfumato.rewards.endpoint import excerpt

TENSORS, JSON = "application/x-safetensors", "application/json"
"""Content types of requests."""
LARGEST_SIDE, LARGEST_TOTAL = 4096, 2**26
"""Largest accepted side of an image, and largest number of pixels of all images in a request."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MALFORMED = (
    TypeError, ValueError, OverflowError, RecursionError, OSError, SyntaxError, SafetensorError,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""Exceptions that malformed input can raise when it is read."""


def pack(images: Float[Tensor, "B 3 H W"], words: Words) -> bytes:
    """Encode a request: images as 8-bit values, labels, and the text fields of the words."""
    fields = {"names": words.names, "captions": words.captions, "metadata": plain_metadata(words)}
    labels = words.labels.cpu().long()
    tensors = {"images": to_bytes(images).cpu().contiguous(), "labels": labels.contiguous()}
    return save_tensors(tensors, {key: json.dumps(value) for key, value in fields.items()})


def plain_metadata(words: Words) -> list[dict[str, Any]]:
    """Return the metadata of each image as JSON can store it: NaN and infinity become null, other objects text."""
    return [finite(json.loads(json.dumps(dict(item), default=str))) for item in words.metadata]


def unpack(body: bytes, content_type: str) -> tuple[Tensor, Words]:
    """Decode the images in [0, 1] and the words of a request.

    Raises:
        UserError: the request is malformed; the message describes the fault.
    """
    if content_type == TENSORS:
        return _unpack_tensors(body)
    if content_type == JSON:
        return _unpack_json(body)
    raise UserError(f"content-type: {content_type!r} is not supported; send {TENSORS} or {JSON}")


def _unpack_tensors(body: bytes) -> tuple[Tensor, Words]:
    try:
        tensors = load_tensors(body)
        length = int.from_bytes(body[:8], "little")
        fields = json.loads(body[8 : 8 + length]).get("__metadata__", {})
        fields = {key: json.loads(value) for key, value in fields.items()}
        fields = {key: fields[key] for key in ("names", "captions", "metadata") if key in fields}
    except (*MALFORMED, AttributeError) as error:
        raise UserError(f"body: it is not a safetensors file ({error}); send one") from error
    if "images" not in tensors:
        raise UserError("body: there is no tensor 'images'; send (B, 3, H, W) with 8-bit values or values in [0, 1]")
    return read_request(tensors["images"], tensors.get("labels"), fields)


def _unpack_json(body: bytes) -> tuple[Tensor, Words]:
    """Decode {"images": [PNG in base64, ...], "captions": [...], "names": [...], "labels": [...], "metadata": [...]}"""
    try:
        content = json.loads(body)
    except MALFORMED as error:
        raise UserError(f"body: it is not JSON ({error}); send a JSON object") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("images"), list) or not content["images"]:
        raise UserError('body: there is no list "images"; send PNG files in base64')
    pictures, pixels = [], 0
    for number, text in enumerate(content["images"]):
        pictures.append(read_picture(number, text))
        pixels += pictures[-1].width * pictures[-1].height
        if pixels > LARGEST_TOTAL:
            raise UserError(f"images: they have more than {LARGEST_TOTAL} pixels in total; send fewer at a time")
    if len({picture.size for picture in pictures}) > 1:
        raise UserError(f"images: their sizes differ ({sorted({p.size for p in pictures})}); send images of one size")
    images = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])
    labels = content.get("labels")
    if labels is not None:
        if not isinstance(labels, list) or not all(isinstance(n, int) and abs(n) < 2**31 for n in labels):
            raise UserError("labels: they are not a list of class numbers; send a list of integers")
        labels = torch.tensor(labels, dtype=torch.long)
    return read_request(images, labels, content)


def read_picture(number: int, text: Any) -> Image.Image:
    """Decode a picture of a JSON request."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as picture:
            if max(picture.size) > LARGEST_SIDE:
                raise UserError(f"{picture.size} is larger than {LARGEST_SIDE} pixels per side")
            return to_rgb(picture)
    except MALFORMED as error:
        raise UserError(f"images: number {number} is not a PNG file in base64 ({error})") from error


def read_request(images: Tensor, labels: Tensor | None, fields: Mapping[str, Any]) -> tuple[Tensor, Words]:
    """Check the contents of a request, and return images and words."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape or max(images.shape[2:]) > LARGEST_SIDE:
        raise UserError(f"images: {tuple(images.shape)} is not (B, 3, H, W) with sides from 1 to {LARGEST_SIDE}")
    if images.dtype == torch.uint8:
        images = images.float() / 255
    elif images.dtype not in FLOATS or not ((images >= 0) & (images <= 1)).all():
        raise UserError(f"images: values of type {images.dtype} are not 8 bits or numbers from 0 to 1; send these")
    count = len(images)
    labels = torch.full((count,), -1) if labels is None else labels
    if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
        raise UserError(f"labels: {tuple(labels.shape)} of {labels.dtype} is not ({count},) of integers")
    captions, names = (read_texts(key, fields.get(key), count) for key in ("captions", "names"))
    metadata = fields.get("metadata") or [{}] * count
    if (
        not isinstance(metadata, list)
        or len(metadata) != count
        or not all(isinstance(item, Mapping) for item in metadata)
    ):
        raise UserError(f"metadata: it is not a list of {count} objects; send one object per image")
    return images.float(), Words(
        labels=labels.long(), names=names or captions or ("",) * count, captions=captions, metadata=tuple(metadata)
    )


def read_texts(key: str, texts: Any, count: int) -> tuple[str, ...]:
    """Check that there is one text per image, or no texts at all."""
    if not texts:
        return ()
    if not isinstance(texts, list) or len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{key}: they are not a list of {count} texts; send one per image, or none")
    return tuple(texts)


@dataclass(frozen=True)
class Answer:
    """A server's answer: one score per image, NaN (null in JSON) for no score, and the reason."""

    scores: Float[Tensor, " B"]
    reason: str = ""

    def pack(self) -> dict[str, Any]:
        """Return the content of the JSON."""
        scores = [None if score != score else score for score in self.scores.tolist()]
        return {"scores": scores, "reason": self.reason}


def read_answer(body: bytes, count: int) -> Answer:
    """Read the JSON of a server's answer.

    Raises:
        UserError: it does not have one score for each of `count` images.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise UserError(f"the answer is not JSON: {excerpt(body)}") from None
    content = content if isinstance(content, Mapping) else {}
    return Answer(read_scores(content.get("scores"), count, excerpt(body)), excerpt(str(content.get("reason") or "")))


def read_scores(scores: Any, count: int, answer: str) -> Float[Tensor, " B"]:
    """Return the scores in an answer as float64.

    Args:
        scores: what should be a list of `count` numbers, or None for an image without a score.
        count: number of images.
        answer: beginning of the answer, for messages.

    Raises:
        UserError: they are something else.
    """
    if not isinstance(scores, list) or len(scores) != count:
        raise UserError(f"the answer has no list of {count} scores: {answer}")
    if not all(score is None or isinstance(score, int | float) for score in scores):
        raise UserError(f"the answer's scores are not numbers: {answer}")
    try:
        numbers = [torch.nan if score is None else float(score) for score in scores]
    except OverflowError:
        raise UserError(f"the answer's scores are too large: {answer}") from None
    return torch.tensor(numbers, dtype=torch.float64)


@dataclass(frozen=True)
class Protocol:
    """How images are sent to a server, and scores come back."""

    path: str
    """path of requests below the address of the server"""
    content_type: str
    pack: Callable[[Tensor, Words], bytes]
    """makes the body of a request from images (B, 3, H, W) in [0, 1] and words"""
    read: Callable[[bytes, int], Answer]
    """reads the body of the answer for this number of images"""


OWN = Protocol("/score", TENSORS, pack, read_answer)
"""The protocol of `sfumato serve`."""
