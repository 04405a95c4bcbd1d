"""Requests to one or several equal servers, with a time limit, and retries with increasing pauses.

A request and its token go to the named hosts and ports only: redirects are not followed, and a proxy of the environment
is used only for https to other machines, where it cannot read what passes.
"""

import base64
import http.client
import io
import ipaddress
import json
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sfumato.data.pictures import to_pictures
from sfumato.errors import UserError
from sfumato.notes import note

Item = TypeVar("Item")

OVERLOADED = (408, 425, 429, 503)
"""HTTP statuses of a server that is there but busy."""
REPEATED = (*OVERLOADED, 500, 502, 504)
"""HTTP statuses after which a request is repeated."""
LONGEST_PAUSE = 30.0
"""Longest pause between two attempts, in seconds."""
CONNECTING = 10.0
"""Time limit for a connection, in seconds. The limit for an answer is much longer."""
LATE = 30.0
"""Seconds without an answer after which a note says that the server is waited for."""
LEFT_OUT = 60.0
"""Seconds for which a server that failed is left out, if there are others."""


class EndpointError(RuntimeError):
    """A server cannot be reached, or refuses the request."""


class AwayError(EndpointError):
    """A server cannot be reached, is broken, or is overloaded."""

    def __init__(self, message: str, url: str, reason: str, overloaded: bool = False):
        super().__init__(message)
        self.url, self.reason, self.overloaded = url, reason, overloaded


class Contacts:
    """Which servers have answered this process, which are busy, and which are left out or waited for."""

    def __init__(self):
        self._lock = threading.Lock()
        self._answered: set[str] = set()
        self._late: set[str] = set()
        self._busy: Counter[str] = Counter()
        self._failed: dict[str, float] = {}
        self._until: dict[str, float] = {}
        self._awaited: dict[str, float] = {}

    @contextmanager
    def next(self, urls: Sequence[str]) -> Iterator[str]:
        """Choose the least busy of these servers; those that are left out come last."""
        with self._lock:
            now = time.monotonic()
            url = min(urls, key=lambda url: (self._until.get(url, now) > now, self._busy[url]))
            self._busy[url] += 1
        try:
            yield url
        finally:
            with self._lock:
                self._busy[url] -= 1

    def answered(self, url: str) -> None:
        """Note that a server is there, and say so if it was left out or waited for."""
        with self._lock:
            self._answered.add(url)
            self._until.pop(url, None)
            since = [times.pop(url) for times in (self._failed, self._awaited) if url in times]
        if since:
            note(f"{url} answers again after {time.monotonic() - min(since):.0f} s")

    def has_answered(self, url: str) -> bool:
        """Whether a server was ever there."""
        with self._lock:
            return url in self._answered

    def leave_out(self, url: str, reason: str) -> None:
        """Leave a server out for a while. It is said once, until the server answers again."""
        with self._lock:
            now, known = time.monotonic(), url in self._failed
            self._failed.setdefault(url, now)
            self._until[url] = now + LEFT_OUT
        if not known:
            note(f"{url} is left out and tried again every {LEFT_OUT:.0f} s ({reason})")

    def wait(self, url: str, reason: str) -> None:
        """Say once, until the server answers again, that it is waited for."""
        with self._lock:
            known = url in self._awaited
            self._awaited.setdefault(url, time.monotonic())
        if not known:
            note(f"waiting for {url} ({reason})")

    def late(self, url: str, limit: float) -> None:
        """Say once that a server takes long to answer."""
        with self._lock:
            known = url in self._late
            self._late.add(url)
        if not known:
            note(f"waiting for {url} (no answer after {LATE:.0f} s; the time limit is {limit:g} s)")


CONTACTS = Contacts()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None  # the redirect is then an HTTPError


class _Connection(http.client.HTTPConnection):
    """A connection with a time limit of its own: otherwise a machine that is off is noticed after minutes."""

    def connect(self) -> None:
        limit = self.timeout
        self.timeout = min(limit or CONNECTING, CONNECTING)
        super().connect()
        self.sock.settimeout(limit)


class _SecureConnection(http.client.HTTPSConnection, _Connection):
    pass  # HTTPSConnection.connect calls that of _Connection


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, req)


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
        if not 0 < self.timeout <= 1e6:
            raise UserError(f"timeout: {self.timeout:g} is not a number of seconds up to 1e6; give one, such as 120")
        if self.retries < 0:
            raise UserError(f"retries: {self.retries} is negative; give 0 or more")
        if not (self.token.isascii() and self.token.isprintable()):
            raise UserError("token: it has a line break or characters that are not ASCII; set it to the server's token")

    def post(self, urls: Sequence[str], body: bytes, content_type: str) -> bytes:
        """Send a POST request to one of several equal servers, and return the body of the response.

        The least busy server is asked first. If it is away, it is left out for a while and the next one is asked. If
        all are away, the request is repeated after a pause, unless none of them was ever there.

        Raises:
            EndpointError: no server answers, or one refuses; the message names the address and the reason.
        """
        pauses = [min(0.5 * 2 ** min(n, 10), LONGEST_PAUSE) for n in range(self.retries)]
        attempt = 0
        while True:
            try:
                return self._ask_one_of(urls, body, content_type)
            except AwayError as error:
                if not (error.overloaded or any(map(CONTACTS.has_answered, urls))):
                    raise EndpointError(str(error)) from None  # none was ever started, or the addresses are wrong
                if attempt == self.retries:
                    raise EndpointError(
                        f"{error.url} did not answer {attempt + 1} requests ({error.reason}); is the server running?"
                    ) from None
                CONTACTS.wait(error.url, f"{error.reason}; asking again for up to {duration(sum(pauses[attempt:]))}")
            time.sleep(pauses[attempt])
            attempt += 1

    def _ask_one_of(self, urls: Sequence[str], body: bytes, content_type: str) -> bytes:
        left = list(urls)
        while True:
            with CONTACTS.next(left) as url:
                try:
                    return self.ask(url, body, content_type)
                except AwayError as error:
                    left.remove(url)
                    if not left:
                        raise
                    CONTACTS.leave_out(url, error.reason)

    def post_json(self, urls: Sequence[str], content: Any) -> Any:
        """Send JSON as `post` does, and return the JSON of the response.

        Raises:
            EndpointError: no server answers, or one refuses, or the answer is not JSON.
        """
        answer = self.post(urls, json.dumps(content).encode(), "application/json")
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):
            raise EndpointError(f"{' or '.join(urls)} returned an answer that is not JSON: {excerpt(answer)}") from None

    def ask(self, url: str, body: bytes | None = None, content_type: str = "") -> bytes:
        """Send one request, a POST if it has a body and otherwise a GET, and return the body of the response.

        Raises:
            AwayError: the server does not answer, or fails, or is overloaded.
            EndpointError: the server refuses; the message names the address and the reason.
        """
        headers = {"Content-Type": content_type} if content_type else {}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(url, data=body, headers=headers)
        late = threading.Timer(LATE, CONTACTS.late, (url, self.timeout))
        late.daemon = True
        late.start()
        try:
            with _opener(url).open(request, timeout=self.timeout) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            with error:
                reason = f"{error.code} {excerpt(error.read(100_000))}".strip()
            if 300 <= error.code < 400:
                target = error.headers.get("Location", "nowhere")
                raise EndpointError(
                    f"{url} redirects to {target}, which is not followed; give the address that answers"
                ) from None
            message = f"{url} refused: {reason}"
            if error.code in REPEATED:
                raise AwayError(message, url, reason, error.code in OVERLOADED) from None
            raise EndpointError(message) from None
        except (OSError, http.client.HTTPException) as error:  # unreachable, disconnected or too slow
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            reason = excerpt(getattr(cause, "strerror", None) or f"{type(cause).__name__}: {cause}")
            raise AwayError(f"{url} does not answer ({reason}); is the server running?", url, reason) from None
        finally:
            late.cancel()
        CONTACTS.answered(url)
        return answer


def _opener(url: str) -> urllib.request.OpenerDirector:
    address = urllib.parse.urlsplit(url)
    host = address.hostname or ""
    tunneled = address.scheme == "https" and not is_loopback(host) and not urllib.request.proxy_bypass(host)
    proxy = urllib.request.getproxies().get("https", "") if tunneled else ""
    if proxy.startswith("socks"):
        raise EndpointError(f"{url}: HTTPS_PROXY is a SOCKS proxy, which is not supported; unset it, or set NO_PROXY")
    proxies = urllib.request.ProxyHandler(None if tunneled else {})
    return urllib.request.build_opener(_NoRedirects, _Http, _Https, proxies)


def excerpt(text: str | bytes, longest: int = 200) -> str:
    """Return one short line for a message: the text of a web page without its tags, or the last line of a traceback."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    if text.lstrip().startswith("<"):
        text = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE)
    if "Traceback (most recent call last)" in text:
        text = text.strip().splitlines()[-1]
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[:longest]}…"


def duration(seconds: float) -> str:
    """Return seconds for people: 45 s, 18 min."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


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

    Several equal servers, separated by commas, share the requests.

    Raises:
        EndpointError: `post_json` fails, or the answer has no choices.
    """
    urls = [f"{server.rstrip('/')}/chat/completions" for server in endpoint.split(",")]
    address = f"data:image/png;base64,{base64.b64encode(as_png(picture)).decode()}"
    content = [
        {
            "type": "image_url",
            "image_url": {"url": address},
        },
        {"type": "text", "text": text},
    ]
    messages = [{"role": "user", "content": content}]
    answer = requests.post_json(urls, {"model": model, "messages": messages, "temperature": 0, **options})
    try:
        choice = answer["choices"][0]
        choice["message"]["content"] = choice["message"]["content"] or ""
        return choice
    except (KeyError, IndexError, TypeError) as error:
        raise EndpointError(f"{endpoint} answered without choices: {excerpt(json.dumps(answer))}") from error


def as_png(picture: Image.Image) -> bytes:
    """Return a picture encoded as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def pictures_of(images: Float[Tensor, "B 3 H W"], side: int | None = None) -> list[Image.Image]:
    """Convert images in [0, 1] to pictures, resized to a square if a side is given."""
    pictures = to_pictures(images)
    return pictures if side is None else [p.resize((side, side), Image.Resampling.BICUBIC) for p in pictures]


def check_address(addresses: str, field: str = "endpoint") -> None:
    """Check the form of one or several addresses, separated by commas.

    Raises:
        UserError: one of them is not the address of an HTTP server, or contains a password.
    """
    for address in addresses.split(","):
        try:
            parts = urllib.parse.urlsplit(address)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # the port, or the form of an IPv6 address
            valid, parts = False, urllib.parse.urlsplit("")
        if parts.username is not None:
            raise UserError(
                f"{field}: the address of {parts.hostname} has a user name, which is not sent; leave it out"
            )
        if not valid or any(c.isspace() or not c.isprintable() for c in address):
            raise UserError(
                f"{field}: {address!r} is not an HTTP address; give one such as http://127.0.0.1:8000, with a port "
                "from 1 to 65535"
            )


def api_key() -> str:
    """Return the key for OpenAI-compatible servers from the environment; empty if not set (local servers need none)."""
    return os.environ.get("OPENAI_API_KEY", "")
