"""A reward that runs in another process, environment or machine: run `sfumato serve` there and use its address here."""

import json
import os
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from sfumato.request import Words
from sfumato.rewards.endpoint import EndpointError, Requests, check_address
from sfumato.rewards.wire import TENSORS, Answer, pack


@dataclass(frozen=True, kw_only=True)
class Remote:
    """Scores of a reward server. While the server is unavailable, the caller waits with increasing pauses.

    Images are sent as 8-bit values. If the server requires a token, set SFUMATO_REWARD_TOKEN in the environment.
    """

    url: str
    """address of the server, such as http://127.0.0.1:8100"""
    timeout: float = 300.0
    """time limit for an answer, in seconds"""
    retries: int = 40
    """number of retries when the server is unavailable; they last about 18 minutes"""
    _reason: list[str] = field(default_factory=lambda: [""], init=False, repr=False)

    def __post_init__(self):
        check_address(self.url)

    @property
    def last_failure(self) -> str:
        """The server's reason that an image has no score."""
        return self._reason[0]

    def __call__(self, images: Float[Tensor, "B 3 H W"], words: Words) -> Float[Tensor, " B"]:
        token = os.environ.get("SFUMATO_REWARD_TOKEN", "")
        requests = Requests(timeout=self.timeout, retries=self.retries, token=token)
        body = requests.post(f"{self.url.rstrip('/')}/score", pack(images, words), TENSORS)
        try:
            answer = Answer.unpack(json.loads(body), len(images))
        except ValueError as error:
            raise EndpointError(f"{self.url}: {error}") from error
        self._reason[0] = answer.reason
        return answer.scores.to(images.device)
