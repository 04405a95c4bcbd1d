"""The networks of GenEval: Mask2Former finds objects, CLIP names their colors; both through transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, normalize, resize
from sfumato.errors import UserError
from sfumato.rewards import needs
from sfumato.rewards.backbone import Clip, load_clip
from sfumato.rewards.geneval_scoring import COLORS, Detection

MASK2FORMER = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"
SHORT, LONG, MULTIPLE = 800, 1333, 32
"""Sides of the detector's images in pixels: the shorter side, the limit of the longer side, and the number to whose
multiples both are padded."""
MOST = 100
"""Largest number of objects in an image, of all classes together."""
BLANK = 0x99 / 255
"""Gray level that replaces the background of an object."""

# fmt: off
OBJECTS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
"""COCO's classes in their order, with the names of GenEval's prompts."""


@dataclass(frozen=True)
class Detector:
    """A detector and a CLIP model, ready to use."""

    model: Any
    """a Mask2FormerForUniversalSegmentation"""
    clip: Clip
    device: torch.device

    @torch.no_grad()
    def detect(self, image: Float[Tensor, "3 H W"]) -> dict[str, list[Detection]]:
        """Return all objects in an image in [0, 1] by class."""
        height, width = image.shape[1:]
        pixels, (tall, wide) = prepare(image[None].to(self.device))
        out = self.model(pixel_values=pixels)
        masks = F.interpolate(out.masks_queries_logits, pixels.shape[2:], mode="bilinear", align_corners=False)
        masks = F.interpolate(masks[..., :tall, :wide], (height, width), mode="bilinear", align_corners=False)
        return find_objects(out.class_queries_logits[0].float().cpu(), masks[0].float().cpu())

    def colors(self, image: Float[Tensor, "3 H W"], objects: Sequence[Detection], name: str) -> list[str]:
        """Return the most likely color of each object of a class; CLIP sees the object cut out, on gray."""
        templates = (f"a photo of a {{}} {name}", f"a photo of a {{}}-colored {name}", "a photo of a {} object")
        captions = [template.format(color) for color in COLORS for template in templates]
        texts = self.clip.text_embeddings(captions, self.device).unflatten(0, (len(COLORS), -1)).mean(1)
        texts = F.normalize(texts, dim=1)
        colors = []
        for detection in objects:
            part = cut_out(image, detection)[None].to(self.device)
            colors.append(COLORS[int((self.clip.image_embeddings(part) @ texts.T).argmax())])
        return colors


def load_detector(model: str, clip: str, device: torch.device) -> Detector:
    """Load Mask2Former and CLIP by hub id or folder.

    Raises:
        UserError: a package is missing, a model cannot be loaded, or the detector does not have COCO's 80 classes.
    """
    needs.package("scipy", "geneval")  # Mask2Former's class requires it for its loss
    transformers = needs.package("transformers", "geneval")
    network = needs.pretrained(transformers.Mask2FormerForUniversalSegmentation, model)
    if network.config.num_labels != len(OBJECTS):
        raise UserError(f"detector: {model} has {network.config.num_labels} classes, not COCO's 80; give another")
    return Detector(network.eval().requires_grad_(False).to(device), load_clip(clip), device)


def prepare(images: Float[Tensor, "1 3 H W"]) -> tuple[Float[Tensor, "1 3 h w"], tuple[int, int]]:
    """Resize and normalize images in [0, 1] for the detector, and pad them at the right and bottom.

    Returns the images, and their height and width before padding.
    """
    height, width = images.shape[-2:]
    scale = min(SHORT / min(height, width), LONG / max(height, width))
    tall, wide = round(height * scale), round(width * scale)
    pixels = normalize(resize(images, tall, wide, "bilinear"), IMAGENET_MEAN, IMAGENET_STD)
    return F.pad(pixels, (0, -wide % MULTIPLE, 0, -tall % MULTIPLE)), (tall, wide)


def find_objects(logits: Float[Tensor, "Q K"], masks: Float[Tensor, "Q H W"]) -> dict[str, list[Detection]]:
    """Return objects by class from the outputs of the queries (Cheng et al. 2022): the 100 most likely pairs of a query
    and a class. The confidence of an object is the probability of its class times the mean probability of its mask,
    over the pixels inside the mask.

    Args:
        logits: class logits of each query; the last class is "no object".
        masks: logits, for each query and pixel, that the pixel belongs to the object.
    """
    scores = logits.softmax(1)[:, :-1]
    best = scores.flatten().topk(min(MOST, scores.numel()))
    by_class: dict[str, list[Detection]] = {}
    for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        query, label = divmod(place, scores.shape[1])
        mask = masks[query] > 0
        if not mask.any():
            continue
        certainty = masks[query][mask].sigmoid().mean().item()
        rows, columns = mask.any(1).nonzero()[:, 0].tolist(), mask.any(0).nonzero()[:, 0].tolist()
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        by_class.setdefault(OBJECTS[label], []).append(Detection(box, score * certainty, mask))
    return by_class


def cut_out(image: Float[Tensor, "3 H W"], detection: Detection) -> Float[Tensor, "3 h w"]:
    """Return an object on gray, cropped to its box."""
    if detection.mask is not None:
        image = torch.where(detection.mask.to(image.device), image, torch.full_like(image, BLANK))
    left, top, right, bottom = (round(side) for side in detection.box)
    return image[:, top:bottom, left:right]
