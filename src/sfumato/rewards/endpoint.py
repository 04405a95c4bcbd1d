"""Requests to servers, with a time limit, retries with increasing pauses, and several requests at a time."""

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

from sfumato.data.pictures import to_pictures
from sfumato.errors import UserError

Item = TypeVar("Item")

REPEATED = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which a request is retried."""
LONGEST_PAUSE = 30.0
"""Longest pause between two attempts, in seconds."""


class EndpointError(RuntimeError):
    """A server cannot be reached, or refuses the request."""


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Settings for requests to a server."""

    timeout: float = 120.0
    """time limit for one answer, in seconds"""
    retries: int = 8
    """number of retries when the server is unavailable or overloaded; the pauses grow from 0.5 to 30 seconds"""
    token: str = ""
    """bearer token to send; none if empty"""

    def post(self, url: str, body: bytes, content_type: str) -> bytes:
        """Send a POST request and return the body of the response.

        Raises:
            EndpointError: the server does not answer or refuses; the message names the address and the reason.
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
            except (OSError, http.client.HTTPException) as error:  # unreachable, disconnected or too slow
                reason = f"{type(error).__name__}: {error}"
            if attempt < self.retries:
                time.sleep(min(0.5 * 2**attempt, LONGEST_PAUSE))
        raise EndpointError(f"{url} did not answer {self.retries + 1} requests ({reason}); is the server running?")

    def post_json(self, url: str, content: Any) -> Any:
        """Send JSON and return the JSON of the response.

        Raises:
            EndpointError: the server does not answer or refuses, or the answer is not JSON.
        """
        answer = self.post(url, json.dumps(content).encode(), "application/json")
        try:
            return json.loads(answer)
        except ValueError as error:
            raise EndpointError(f"{url} returned an answer that is not JSON: {answer[:80]!r}") from error


def ask_all(ask: Callable[[Item], Any], items: Sequence[Item], concurrency: int) -> list[Any]:
    """Call `ask` for every item, `concurrency` at a time, and return the results in the order of the items."""
    with ThreadPoolExecutor(max_workers=max(1, concurrency)) as pool:
        return list(pool.map(ask, items))


def chat(
    requests: Requests, endpoint: str, model: str, text: str, picture: Image.Image, **options: Any
) -> dict[str, Any]:
    """Send a text and a picture to an OpenAI-compatible server at temperature 0, and return its first choice.

    Raises:
        EndpointError: `post_json` fails, or the answer has no choices.
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
    """Return a picture encoded as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def pictures_of(images: Float[Tensor, "B 3 H W"], side: int | None = None) -> list[Image.Image]:
    """Convert images in [0, 1] to pictures, resized to a square if a side is given."""
    pictures = to_pictures(images)
    return pictures if side is None else [p.resize((side, side), Image.Resampling.BICUBIC) for p in pictures]


def check_address(endpoint: str) -> None:
    """Check the form of an endpoint's address.

    Raises:
        UserError: it does not begin with http:// or https://.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise UserError(f"endpoint: {endpoint!r} is not an HTTP address; give one such as http://127.0.0.1:8000/v1")


def api_key() -> str:
    """Return the key for OpenAI-compatible servers from the environment; empty if not set (local servers need none)."""
    return os.environ.get("OPENAI_API_KEY", "")
