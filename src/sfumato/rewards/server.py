"""Serves a reward over HTTP from an environment of its own.

GET  /health   {"reward": NAME, "status": "ready"}
POST /score    images and conditions as in `wire`; answers {"scores": [number or null, ...], "reason": TEXT}
"""

import ipaddress
import secrets
import threading
from typing import Any

import torch

from sfumato.errors import UserError
from sfumato.rewards import needs
from sfumato.rewards.base import Part, RewardError, score
from sfumato.rewards.wire import Answer, unpack

LARGEST_REQUEST = 256 * 2**20
"""bytes"""


def application(name: str, part: Part, token: str = "", largest: int = LARGEST_REQUEST, device: str = "cpu") -> Any:
    """The web application (ASGI) that serves one reward.

    Args:
        name: what the reward is called in messages.
        part: the reward with its scale, offset and levels.
        token: requests must carry it as a bearer token, if it is not empty.
        largest: bytes of a request; longer ones are refused before they are read to the end.
        device: where the images are put.

    Raises:
        UserError: starlette is not installed.
    """
    needs.package("starlette", "serve")
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    one_at_a_time = threading.Lock()  # a model is no faster for being asked twice at once, and needs twice the memory

    def refuse(status: int, message: str) -> Response:
        return JSONResponse({"error": message}, status)

    async def read(request: Request) -> bytes | None:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > largest:
                return None
        return bytes(body)

    def work(body: bytes, content_type: str) -> Response:
        try:
            images, conditions = unpack(body, content_type)
        except ValueError as error:
            return refuse(400, str(error))
        try:
            with one_at_a_time:
                scores = part.adjust(score(name, part.reward, images.to(device), conditions.to(device)))
        except RewardError as error:
            return refuse(422, str(error))
        reason = getattr(part.reward, "last_failure", "") if bool(torch.isnan(scores).any()) else ""
        return JSONResponse(Answer(scores.cpu(), reason).pack())

    async def answer(request: Request) -> Response:
        if token and not secrets.compare_digest(
            request.headers.get("authorization", "").encode(), f"Bearer {token}".encode()
        ):
            return refuse(401, "token: it is missing or wrong; set SFUMATO_REWARD_TOKEN to the server's")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > largest:
            return refuse(413, f"body: {length} bytes are more than {largest}; send fewer images at a time")
        try:
            body = await read(request)
        except ClientDisconnect:
            return refuse(400, "body: it was cut off")
        if body is None:
            return refuse(413, f"body: it is longer than {largest} bytes; send fewer images at a time")
        content_type = request.headers.get("content-type", "").partition(";")[0].strip()
        return await run_in_threadpool(work, body, content_type)

    async def health(request: Request) -> Response:
        return JSONResponse({"reward": name, "status": "ready"})

    return Starlette(routes=[Route("/health", health), Route("/score", answer, methods=["POST"])])


def serve(name: str, part: Part, *, host: str = "127.0.0.1", port: int = 8100, token: str = "", device: str) -> None:
    """Serve a reward until interrupted.

    Raises:
        UserError: the address is open to others and there is no token, or a package is missing.
    """
    check_host(host, token)
    app = application(name, part, token, device=device)
    needs.package("uvicorn", "serve").run(app, host=host, port=port, log_level="warning")


def check_host(host: str, token: str) -> None:
    """Complain about an address that others can reach, if there is no token.

    Raises:
        UserError: it is so.
    """
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and not token:
        raise UserError(f"host: {host} can be reached from outside; set SFUMATO_REWARD_TOKEN to a secret")
