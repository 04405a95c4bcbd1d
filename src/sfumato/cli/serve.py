"""`sfumato serve REWARD`."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import tyro
from rich.console import Console

from sfumato.cli.options import parse_options
from sfumato.errors import UserError
from sfumato.rewards import build_reward


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve a reward over HTTP from this environment. Elsewhere, use it as the reward http://HOST:PORT."""

    reward: tyro.conf.Positional[str]
    """name of a reward with its options, or path/to/file.py:function"""
    host: str = "127.0.0.1"
    """address to listen on; if other machines can reach it, SFUMATO_REWARD_TOKEN must hold a token"""
    port: int = 8100
    """port to listen on; 0 chooses a free one"""
    device: str = "auto"
    """device to run on: auto, cpu, cuda or cuda:N"""

    def __call__(self) -> int:
        from sfumato.engine.process import find_device
        from sfumato.rewards.server import bind, check_part, serve

        token = os.environ.get("SFUMATO_REWARD_TOKEN", "")
        with bind(self.host, self.port, token) as bound:
            (name, part), *others = build_reward({self.reward: 1.0}).parts.items()
            if others:
                raise UserError(f"reward: {self.reward} is a sum of rewards; serve them one by one")
            check_part(name, part)
            if part.levels and not part.thresholds:
                raise UserError(f"reward: {name} has no thresholds; give them, or set the levels where it is used")
            host, port = f"[{self.host}]" if ":" in self.host else self.host, bound.getsockname()[1]
            Console(markup=False).print(f"{name}: http://{host}:{port}", highlight=False, soft_wrap=True)
            serve(name, part, bound, token=token, device=str(find_device(self.device)))
        return 0


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the options of `sfumato serve`."""
    return parse_options(Serve, "serve", arguments)
