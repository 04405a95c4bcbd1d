"""Build requests in one line, for tests and experiments."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.request import CaptionFeatures, ClassInputs, Request, TextInputs, Words
from sfumato.text.encoders import WordVectors, load_text_encoder


def class_request(labels: Sequence[int] | Tensor, names: Sequence[str] = ()) -> Request:
    """Build a request for classes.

    Args:
        labels: class numbers, one per image.
        names: class names, one per image, for rewards; the numbers by default.
    """
    numbers = torch.as_tensor(labels).long()
    words = Words(labels=numbers.cpu(), names=tuple(names) or tuple(map(str, numbers.tolist())))
    return Request(words=words, inputs=ClassInputs(labels=numbers))


def text_request(
    features: Sequence[str] | Sequence[Float[Tensor, "_ W"]] | Float[Tensor, "P T W"],
    mask: Tensor | None = None,
    captions: Sequence[str] = (),
    rows: Sequence[int] | None = None,
) -> Request:
    """Build a request for captions from their text features, or from strings that the bundled word vectors encode.

    Args:
        features: one string, or one tensor (T, W), per caption; or a single tensor (P, T, W), padded on the left.
        mask: True for text tokens, (P, T); only with a single tensor; all True by default.
        captions: the captions themselves, for rewards; by default the strings, or "caption 0", "caption 1", ...
        rows: number of the caption of each image; one image per caption by default.
    """
    if isinstance(features, Tensor):
        known = torch.ones(features.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        table = CaptionFeatures(features=features, mask=known)
    else:
        strings = [caption for caption in features if isinstance(caption, str)]
        tensors = [tensor for tensor in features if isinstance(tensor, Tensor)]
        if strings:
            captions, tensors = captions or strings, load_text_encoder(WordVectors.name).encode(strings)
        table = CaptionFeatures.padded(tensors)
    numbers = torch.arange(len(table)) if rows is None else torch.as_tensor(rows)
    texts = tuple(captions) or tuple(f"caption {row}" for row in range(len(table)))
    words = Words(names=tuple(texts[row] for row in numbers.tolist()))
    return Request(words=words, inputs=TextInputs(rows=numbers.to(table.mask.device), captions=table))
