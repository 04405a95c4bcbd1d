"""A reward that runs in another process, environment or machine: `sfumato serve` there, its address here."""

import json
import os
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from sfumato.rewards.endpoint import EndpointError, Requests, check_address
from sfumato.rewards.wire import TENSORS, Answer, pack
from sfumato.rollout import Conditions


@dataclass(frozen=True, kw_only=True)
class Remote:
    """Scores of a reward server. While it is away the caller waits, with growing pauses.

    Images travel as 8-bit values. The token, if the server wants one, is SFUMATO_REWARD_TOKEN in the environment.
    """

    url: str
    """address of the server, such as http://127.0.0.1:8100"""
    timeout: float = 300.0
    """seconds that an answer may take"""
    retries: int = 40
    """further tries when the server is away, which last about 18 minutes"""
    _reason: list[str] = field(default_factory=lambda: [""], init=False, repr=False)

    def __post_init__(self):
        check_address(self.url)

    @property
    def last_failure(self) -> str:
        """Why an image had no score, as the server said."""
        return self._reason[0]

    def __call__(self, images: Float[Tensor, "B 3 H W"], conditions: Conditions) -> Float[Tensor, " B"]:
        token = os.environ.get("SFUMATO_REWARD_TOKEN", "")
        requests = Requests(timeout=self.timeout, retries=self.retries, token=token)
        body = requests.post(f"{self.url.rstrip('/')}/score", pack(images, conditions), TENSORS)
        try:
            answer = Answer.unpack(json.loads(body), len(images))
        except ValueError as error:
            raise EndpointError(f"{self.url}: {error}") from error
        self._reason[0] = answer.reason
        return answer.scores.to(images.device)
