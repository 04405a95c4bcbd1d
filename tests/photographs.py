"""Convert pictures to tensors."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def as_tensor(picture: Image.Image) -> Tensor:
    """Return a picture as a batch of one image in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
