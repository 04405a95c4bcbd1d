"""A reward that runs in another process, environment or machine: run `sfumato serve` there and use its address here."""

import json
import math
import os
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import UserError
from sfumato.request import Words
from sfumato.rewards.endpoint import EndpointError, Requests, ask_all, check_address
from sfumato.rewards.flow_grpo import FLOW_GRPO
from sfumato.rewards.wire import OWN


@dataclass(frozen=True, kw_only=True)
class Remote:
    """Scores of one reward server, or of several equal ones that share each batch.

    A server that is away is left out while others answer. While none does, the caller waits with increasing pauses.
    Images are sent as 8-bit values. If the servers require a token, set SFUMATO_REWARD_TOKEN in the environment; every
    named server gets it.
    """

    url: tuple[str, ...]
    """addresses of the servers, such as http://127.0.0.1:8100"""
    protocol: Literal["sfumato", "flow-grpo"] = "sfumato"
    """sfumato for `sfumato serve`, flow-grpo for the servers of Flow-GRPO, which get no token"""
    batch_size: int | None = None
    """largest number of images in a request; by default each server gets an equal part of the batch"""
    timeout: float = 300.0
    """time limit for an answer, in seconds"""
    retries: int = 40
    """number of retries when no server is available; they last about 18 minutes"""
    _reason: list[str] = field(default_factory=lambda: [""], init=False, repr=False)

    def __post_init__(self):
        for url in self.url or ("",):
            check_address(url, "url")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"batch_size: {self.batch_size} is too small; give at least 1")
        self.requests()

    def requests(self) -> Requests:
        """Return the settings for requests, with the token of the environment.

        Raises:
            UserError: a setting or the token is invalid.
        """
        token = os.environ.get("SFUMATO_REWARD_TOKEN", "") if self.protocol == "sfumato" else ""
        return Requests(timeout=self.timeout, retries=self.retries, token=token)

    @property
    def last_failure(self) -> str:
        """The server's reason that an image has no score."""
        return self._reason[0]

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        form = FLOW_GRPO if self.protocol == "flow-grpo" else OWN
        requests, urls = self.requests(), [url.rstrip("/") + form.path for url in self.url]
        size = self.batch_size or max(1, math.ceil(len(images) / len(urls)))
        parts = torch.arange(len(images)).split(size)
        bodies = [form.pack(images[part.to(images.device)], words[part]) for part in parts]  # on the caller's stream
        answers = ask_all(lambda body: requests.post(urls, body, form.content_type), bodies, len(urls))
        try:
            read = [form.read(answer, len(part)) for answer, part in zip(answers, parts, strict=True)]
        except ValueError as error:
            raise EndpointError(f"{' or '.join(urls)}: {error}") from error
        self._reason[0] = next((answer.reason for answer in read if answer.reason), "")
        return torch.cat([answer.scores for answer in read]).to(images.device)

    def servers(self) -> dict[str, "Remote"]:
        """Return each server alone, by its address, for one attempt instead of many."""
        return {url: replace(self, url=(url,), retries=0) for url in self.url}

    def health(self) -> dict[str, Any]:
        """Return what the first server says of itself: `reward`, `status` and `version`; Flow-GRPO's say nothing.

        Raises:
            EndpointError: it does not answer, or with something else than a JSON object.
        """
        if self.protocol == "flow-grpo":
            return {}
        url = self.url[0].rstrip("/") + "/health"
        answer = self.requests().ask(url)
        try:
            content = json.loads(answer)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise EndpointError(f"{url} is not a server of sfumato serve; for one of Flow-GRPO, add protocol=flow-grpo")
        return content
