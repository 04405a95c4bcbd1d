"""Serve a reward over HTTP from its own environment.

GET  /health   returns {"reward": NAME, "status": "ready", "version": VERSION OF SFUMATO}
POST /score    takes images and words as in `wire`; returns {"scores": [number or null, ...], "reason": TEXT}
"""

import secrets
import socket
import threading
from importlib.metadata import version
from typing import Any

import torch

from sfumato.errors import UserError
from sfumato.rewards import needs
from sfumato.rewards.base import Part, RewardError, score
from sfumato.rewards.endpoint import is_loopback
from sfumato.rewards.groups import GroupReward
from sfumato.rewards.wire import Answer, unpack

LARGEST_REQUEST = 256 * 2**20
"""Largest accepted request, in bytes."""


def application(name: str, part: Part, token: str = "", largest: int = LARGEST_REQUEST, device: str = "cpu") -> Any:
    """Build the web application (ASGI) that serves one reward.

    Args:
        name: name of the reward in messages.
        part: the reward with its scale, offset and levels.
        token: bearer token that requests must have; none is required if it is empty.
        largest: largest accepted request, in bytes; longer ones are refused before they are read completely.
        device: device of the images.

    Raises:
        UserError: starlette is not installed, or the reward compares images.
    """
    check_part(name, part)
    needs.package("starlette", "serve")
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    one_at_a_time = threading.Lock()  # two requests at once are not faster and need twice the memory

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
            images, words = unpack(body, content_type)
        except ValueError as error:
            return refuse(400, str(error))
        try:
            with one_at_a_time:
                scores = score(name, part, images.to(device), words.to(device))
        except RewardError as error:
            return refuse(422, str(error))
        reason = getattr(part.reward, "last_failure", "") if bool(torch.isnan(scores).any()) else ""
        return JSONResponse(Answer(scores.cpu(), reason).pack())

    async def answer(request: Request) -> Response:
        if token and not secrets.compare_digest(
            request.headers.get("authorization", "").encode(), f"Bearer {token}".encode()
        ):
            return refuse(401, "token: it is missing or wrong; set SFUMATO_REWARD_TOKEN to the server's token")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > largest:
            return refuse(413, f"body: {length} bytes are more than {largest}; send fewer images at a time")
        try:
            body = await read(request)
        except ClientDisconnect:
            return refuse(400, "body: it is incomplete because the client disconnected; send it again")
        if body is None:
            return refuse(413, f"body: it is longer than {largest} bytes; send fewer images at a time")
        content_type = request.headers.get("content-type", "").partition(";")[0].strip()
        return await run_in_threadpool(work, body, content_type)

    async def health(request: Request) -> Response:
        return JSONResponse({"reward": name, "status": "ready", "version": version("sfumato")})

    return Starlette(routes=[Route("/health", health), Route("/score", answer, methods=["POST"])])


def check_part(name: str, part: Part) -> None:
    """Check that a reward scores images one by one: a server gets batches in parts.

    Raises:
        UserError: the reward compares images.
    """
    if isinstance(part.reward, GroupReward):
        raise UserError(f"reward: {name} compares images, but a server gets parts of a batch; use it where you train")


def serve(name: str, part: Part, bound: socket.socket, *, token: str = "", device: str) -> None:
    """Serve a reward on a socket from `bind` until interrupted.

    Raises:
        UserError: a package is missing.
    """
    app = application(name, part, token, device=device)
    uvicorn = needs.package("uvicorn", "serve")
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[bound])


def bind(host: str, port: int, token: str) -> socket.socket:
    """Return a socket at an address. Nobody can connect to it before it is served.

    Raises:
        UserError: other machines can reach the host and no token is set, the host is none of this machine's, or the
            port is taken or out of range.
    """
    check_host(host, token)
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of a server that ended a moment ago
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        if isinstance(error, socket.gaierror):
            raise UserError(f"host: {host} is unknown ({error.strerror}); give an address of this machine") from None
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise UserError(f"port: {port} of {host} cannot be used ({reason}); choose another --port") from None
    return bound


def check_host(host: str, token: str) -> None:
    """Check that the server has a token if other machines can reach its address.

    Raises:
        UserError: the host is not loopback and no token is set.
    """
    if not is_loopback(host) and not token:
        raise UserError(f"host: {host} can be reached from other machines; set SFUMATO_REWARD_TOKEN to a secret")
