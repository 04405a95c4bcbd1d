"""Requests to servers, with a time limit, retries with increasing pauses, and several requests at a time.

A request and its token go to the named host and port only: redirects are not followed, and a proxy of the environment
is used only for https to other machines, where it cannot read what passes.
"""

import base64
import http.client
import io
import ipaddress
import json
import os
import threading
import time
import urllib.error
import urllib.parse
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
from sfumato.notes import note

Item = TypeVar("Item")

REPEATED = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which a request is retried."""
LONGEST_PAUSE = 30.0
"""Longest pause between two attempts, in seconds."""


class EndpointError(RuntimeError):
    """A server cannot be reached, or refuses the request."""


class Contacts:
    """Which servers have answered this process, and which of them it waits for."""

    def __init__(self):
        self._lock = threading.Lock()
        self._answered: set[str] = set()
        self._awaited: set[str] = set()

    def answered(self, url: str) -> None:
        """Note that a server is there."""
        with self._lock:
            self._answered.add(url)
            self._awaited.discard(url)

    def has_answered(self, url: str) -> bool:
        """Whether a server was ever there."""
        with self._lock:
            return url in self._answered

    def wait(self, url: str, reason: str) -> None:
        """Say once, until the server answers again, that it is waited for."""
        with self._lock:
            if url not in self._awaited:
                self._awaited.add(url)
                note(f"waiting for {url} ({reason})")


CONTACTS = Contacts()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None  # the redirect is then an HTTPError


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Settings for requests to a server."""

    timeout: float = 120.0
    """time limit for one answer, in seconds"""
    retries: int = 8
    """number of retries when the server is overloaded, or is away after it has answered before; the pauses grow from
    0.5 to 30 seconds"""
    token: str = ""
    """bearer token to send; none if empty"""

    def __post_init__(self):
        if not (self.token.isascii() and self.token.isprintable()):
            raise UserError("token: it has a line break or characters that are not ASCII; set it to the server's token")

    def post(self, url: str, body: bytes, content_type: str) -> bytes:
        """Send a POST request and return the body of the response.

        Raises:
            EndpointError: the server does not answer or refuses; the message names the address and the reason.
        """
        headers = {"Content-Type": content_type}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        opener, reason = _opener(url), ""
        for attempt in range(self.retries + 1):
            request = urllib.request.Request(url, data=body, headers=headers, method="POST")
            try:
                with opener.open(request, timeout=self.timeout) as response:
                    answer = response.read()
                CONTACTS.answered(url)
                return answer
            except urllib.error.HTTPError as error:
                with error:
                    reason = f"{error.code} {error.read(2000).decode(errors='replace')}".strip()
                if 300 <= error.code < 400:
                    target = error.headers.get("Location", "nowhere")
                    raise EndpointError(
                        f"{url} redirects to {target}, which is not followed; give the address that answers"
                    ) from None
                if error.code not in REPEATED:
                    raise EndpointError(f"{url} refused: {reason}") from None
            except (OSError, http.client.HTTPException) as error:  # unreachable, disconnected or too slow
                reason = f"{type(error).__name__}: {error}"
                if not CONTACTS.has_answered(url):  # it was never started, or the address is wrong
                    raise EndpointError(f"{url} does not answer ({reason}); is the server running?") from None
            if attempt < self.retries:
                CONTACTS.wait(url, reason)
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


def _opener(url: str) -> urllib.request.OpenerDirector:
    address = urllib.parse.urlsplit(url)
    tunneled = address.scheme == "https" and not is_loopback(address.hostname or "")
    return urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler(None if tunneled else {}))


def is_loopback(host: str) -> bool:
    """Whether a host, given by name or IP address, is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
