"""Finds objects of any name in an image: OWLv2 (Minderer, Gritsenko & Houlsby 2023) through transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.data.pictures import to_pictures
from sfumato.rewards import needs
from sfumato.rewards.geneval_scoring import Detection

OWLV2 = "google/owlv2-base-patch16-ensemble"
THRESHOLD = 0.2
"""Confidence above which an object counts."""


@dataclass(frozen=True)
class OpenDetector:
    """A detector that is told the names of objects, with its processor."""

    model: Any
    """an Owlv2ForObjectDetection"""
    processor: Any
    device: torch.device

    @torch.no_grad()
    def detect(self, image: Float[Tensor, "3 H W"], names: Sequence[str]) -> dict[str, list[Detection]]:
        """Return the objects of these names in an image in [0, 1], the most confident first; boxes are in pixels."""
        inputs = self.processor(
            text=[[f"a photo of a {name}" for name in names]], images=to_pictures(image[None]), return_tensors="pt"
        ).to(self.device)
        (found,) = self.processor.post_process_grounded_object_detection(
            self.model(**inputs), THRESHOLD, target_sizes=[tuple(image.shape[1:])]
        )
        objects: dict[str, list[Detection]] = {}
        for place in found["scores"].argsort(descending=True).tolist():
            left, top, right, bottom = found["boxes"][place].tolist()
            detection = Detection((left, top, right, bottom), found["scores"][place].item())
            objects.setdefault(names[int(found["labels"][place])], []).append(detection)
        return objects


def load_open_detector(model: str, device: torch.device) -> OpenDetector:
    """Load OWLv2 by hub id or folder.

    Raises:
        UserError: a package is missing, or the model cannot be loaded.
    """
    needs.package("scipy", "compbench")  # its processor blurs images with it
    transformers = needs.package("transformers", "compbench")
    network = needs.pretrained(transformers.Owlv2ForObjectDetection, model)
    return OpenDetector(
        network.eval().requires_grad_(False).to(device), needs.pretrained(transformers.Owlv2Processor, model), device
    )
