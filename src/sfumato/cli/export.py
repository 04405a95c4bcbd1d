"""`sfumato export MODEL`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from sfumato.cli.options import parse_options


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model's weights under their published names, so that the original code can load them."""

    model: tyro.conf.Positional[str]
    """bundled model, or run or checkpoint folder"""
    out: Path
    """folder to write"""
    format: str = "pth"
    """file format: pth or safetensors, with adapters merged; or peft, for the adapters alone"""
    weights: str | None = None
    """ema for the moving average of the weights"""

    def __call__(self) -> int:
        from sfumato.families.exporting import export

        for path in export(self.model, self.out, self.format, self.weights):
            Console(markup=False).print(str(path), highlight=False, soft_wrap=True)
        return 0


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the options of `sfumato export`."""
    return parse_options(Export, "export", arguments)
