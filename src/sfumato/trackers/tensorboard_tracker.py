"""TensorBoard event files in the folder `tensorboard` of a run."""

from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from sfumato.trackers.tracker import Tracked


class TensorBoard:
    """Writes event files, for `tensorboard --logdir RUN_DIR`."""

    def __init__(self, run: Tracked):
        purge = run.first_step + 1 if run.first_step else None  # hides steps that are repeated
        self.events = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Write the metrics of a step."""
        for name, value in metrics.items():
            self.events.add_scalar(name, value, step)
        self.events.flush()

    def picture(self, name: str, path: Path, step: int) -> None:
        """Write a picture."""
        with Image.open(path) as image:
            self.events.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the event file."""
        self.events.close()
