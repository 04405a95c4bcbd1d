"""`sfumato rewards`."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from sfumato.cli.options import parse_options
from sfumato.rewards import COMPOSITIONS, REWARDS, SERVER, Entry
from sfumato.rewards.needs import EXTRAS


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """List all rewards: what they return, what they need, and whether they are ready on this machine."""

    def __call__(self) -> int:
        titles = ("reward", "range", "extra", "weights", "runs on", "on this machine")
        table = Table(*titles, box=None, header_style="bold")
        for name, entry in REWARDS.items():
            table.add_row(name, entry.range, entry.extra, entry.weights, entry.runs_on, readiness(entry))
        console = Console() if Console().is_terminal else Console(width=180)
        console.print(table)
        console.print("\nSums of rewards:\n", highlight=False)
        for name, parts in COMPOSITIONS.items():
            console.print(f"  {name}: {' + '.join(parts)}", highlight=False, markup=False, soft_wrap=True)
        return 0


def readiness(entry: Entry) -> str:
    """Say whether a reward's packages and weights are on this machine."""
    missing = [module for module in EXTRAS.get(entry.extra, ()) if importlib.util.find_spec(module) is None]
    if missing:
        remedy = f"pip install 'sfumato\\[{entry.extra}]'"
        return f"ready for {entry.without_extra}; {remedy}" if entry.without_extra else remedy
    if entry.runs_on == SERVER:
        return "when its server runs"
    if "/" in entry.weights:
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound

        try:
            cached = entry.weights in {repository.repo_id for repository in scan_cache_dir().repos}
        except CacheNotFound:
            cached = False
        return "ready" if cached else "downloaded at first use"
    return "ready" if not entry.weights else "downloaded at first use"


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the options of `sfumato rewards`."""
    return parse_options(Rewards, "rewards", arguments)
