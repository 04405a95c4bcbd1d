"""`sfumato playground MODEL ...`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import tyro

from sfumato.cli.options import parse_options
from sfumato.engine.precision import Precision
from sfumato.errors import UserError
from sfumato.settings import SettingsOptions


@dataclass(frozen=True, kw_only=True)
class Playground(SettingsOptions):
    """Open a page in the browser on which base models and aligned runs draw side by side, with the rewards of the runs
    and a slider through their checkpoints."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """run folders, and other models (bundled, released, OWNER/NAME on the hub, path/to/file.py:build)"""
    port: int = 7860
    """port of the page"""
    host: str = "127.0.0.1"
    """address to listen on; with 0.0.0.0, other machines can open the page"""
    share: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """also make a public link through Gradio's servers, which everyone who has it can open for a week"""
    device: str = "auto"
    """device to run on: auto, cpu, cuda or cuda:N"""
    precision: Precision = "auto"
    """precision of the arithmetic; auto is bf16 on a GPU and fp32 on the CPU"""

    def __call__(self) -> int:
        from sfumato.engine.process import find_device
        from sfumato.playground.drawing import Playground
        from sfumato.playground.page import build_page, import_gradio, launch

        if not 1 <= self.port <= 65535:
            raise UserError(f"port: {self.port} is not a port; give 1 to 65535")
        import_gradio()  # says at once whether it is missing
        playground = Playground(self.models, find_device(self.device), self.precision)
        launch(build_page(playground, self), self.host, self.port, self.share)
        return 0


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the options of `sfumato playground`."""
    return parse_options(Playground, "playground", arguments)
