"""The protocol of Flow-GRPO's reward servers (github.com/yifan123/reward-server): GenEval, DeQA and UnifiedReward.

Both sides send pickles. Ours contains only lists, dictionaries, numbers, text and bytes. Theirs is read without running
code: a pickle that names any function or class is refused.
"""

import io
import pickle
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sfumato.data.pictures import to_pictures
from sfumato.errors import UserError
from sfumato.request import Words
from sfumato.rewards.endpoint import excerpt
from sfumato.rewards.wire import Answer, Protocol, plain_metadata, read_scores


def pack(images: Float[Tensor, "B 3 H W"], words: Words) -> bytes:
    """Encode a request as Flow-GRPO's clients do, with the fields of all its servers; each reads those that it needs.

    Images are JPEG files of quality 75. The metadata of an image contains its caption as `prompt`, as GenEval's does.
    """
    metadata = [
        {**item, "prompt": caption} for item, caption in zip(plain_metadata(words), words.captions, strict=True)
    ]
    jpegs = [as_jpeg(picture) for picture in to_pictures(images)]
    fields = {"images": jpegs, "prompts": list(words.captions), "meta_datas": metadata, "only_strict": True}
    return pickle.dumps(fields, protocol=4)


def as_jpeg(picture: Any) -> bytes:
    """Return a picture encoded as JPEG with Pillow's default quality (75), as Flow-GRPO does."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG")
    return buffer.getvalue()


def read_answer(body: bytes, count: int) -> Answer:
    """Read a server's answer: the scores are in `scores` (GenEval) or `outputs` (DeQA, UnifiedReward).

    Raises:
        UserError: it is not a pickle of plain data, or does not have one score for each of `count` images.
    """
    try:
        content = PlainUnpickler(io.BytesIO(body)).load()
    except UserError:
        raise
    except Exception:  # a damaged pickle can raise anything
        raise UserError(f"the answer is not a pickle: {excerpt(body)}") from None
    if not isinstance(content, Mapping):
        raise UserError(f"the answer is a {type(content).__name__}, not a dictionary")
    scores = content["scores"] if "scores" in content else content.get("outputs")
    return Answer(read_scores(scores, count, f"it has {', '.join(map(str, content)) or 'nothing'}"))


class PlainUnpickler(pickle.Unpickler):
    """Reads lists, dictionaries, numbers, text and bytes, which need no function or class."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Refuse a function or class.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"the answer is a pickle that uses {excerpt(f'{module_name}.{global_name}')}, which is not read, because a "
            "pickle can run code; let the server send Python's lists, dictionaries and numbers (.tolist(), .item())"
        )


FLOW_GRPO = Protocol("", "application/octet-stream", pack, read_answer)
