"""Requests to servers: with a time limit, repeated with growing pauses, several at a time."""

import base64
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sfumato.data.preprocessing import to_pictures
from sfumato.errors import UserError

Item = TypeVar("Item")

REPEATED = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that may be gone at the next try"""
LONGEST_PAUSE = 30.0
"""seconds between tries, at most"""


class EndpointError(RuntimeError):
    """A server that cannot be reached, or that refuses."""


@dataclass(frozen=True, kw_only=True)
class Requests:
    """How a server is asked."""

    timeout: float = 120.0
    """seconds that one answer may take"""
    retries: int = 8
    """further tries when the server is away or overloaded; the pauses grow from 0.5 to 30 seconds"""
    token: str = ""
    """sent as a bearer token, if there is one"""

    def post(self, url: str, body: bytes, content_type: str) -> bytes:
        """The server's answer.

        Raises:
            EndpointError: there is none, or the server refuses; the message names the address and the reason.
        """
        headers = {"Content-Type": content_type}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        reason = ""
        for attempt in range(self.retries + 1):
            request = urllib.request.Request(url, data=body, headers=headers, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return response.read()
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"{error.code} {error.read(2000).decode(errors='replace')}".strip()
                if error.code not in REPEATED:
                    raise EndpointError(f"{url} refused: {reason}") from None
            except (OSError, http.client.HTTPException) as error:  # unreachable, cut off, or too slow
                reason = f"{type(error).__name__}: {error}"
            if attempt < self.retries:
                time.sleep(min(0.5 * 2**attempt, LONGEST_PAUSE))
        raise EndpointError(f"{url} does not answer after {self.retries + 1} tries ({reason}); is the server running?")

    def post_json(self, url: str, content: Any) -> Any:
        """The server's answer, both ways as JSON.

        Raises:
            EndpointError: there is none, the server refuses, or the answer is not JSON.
        """
        answer = self.post(url, json.dumps(content).encode(), "application/json")
        try:
            return json.loads(answer)
        except ValueError as error:
            raise EndpointError(f"{url} answered with what is not JSON: {answer[:80]!r}") from error


def ask_all(ask: Callable[[Item], Any], items: Sequence[Item], concurrency: int) -> list[Any]:
    """`ask` of every item, some at a time; the results are in the order of the items."""
    with ThreadPoolExecutor(max_workers=max(1, concurrency)) as pool:
        return list(pool.map(ask, items))


def chat(
    requests: Requests, endpoint: str, model: str, text: str, picture: Image.Image, **options: Any
) -> dict[str, Any]:
    """First choice of an OpenAI-compatible server's answer to a text and a picture, at temperature 0.

    Raises:
        EndpointError: as of `post_json`, or the answer has another form.
    """
    url = f"{endpoint.rstrip('/')}/chat/completions"
    address = f"data:image/png;base64,{base64.b64encode(as_png(picture)).decode()}"
    content = [
        {
            "type": "image_url",
            "image_url": {"url": address},
        },
        {"type": "text", "text": text},
    ]
    messages = [{"role": "user", "content": content}]
    answer = requests.post_json(url, {"model": model, "messages": messages, "temperature": 0, **options})
    try:
        choice = answer["choices"][0]
        choice["message"]["content"] = choice["message"]["content"] or ""
        return choice
    except (KeyError, IndexError, TypeError) as error:
        raise EndpointError(f"{url} answered without choices: {str(answer)[:80]}") from error


def as_png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def pictures_of(images: Float[Tensor, "B 3 H W"], side: int | None = None) -> list[Image.Image]:
    """Images in [0, 1] as pictures, resized to a square if a side is given."""
    pictures = to_pictures(images)
    return pictures if side is None else [p.resize((side, side), Image.Resampling.BICUBIC) for p in pictures]


def check_address(endpoint: str) -> None:
    """Complain about an endpoint that is none.

    Raises:
        UserError: it does not begin with http:// or https://.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise UserError(f"endpoint: {endpoint!r} is no address; give one such as http://127.0.0.1:8000/v1")


def api_key() -> str:
    """The key of OpenAI-compatible servers, from the environment; servers of one's own need none."""
    return os.environ.get("OPENAI_API_KEY", "")
