"""Sets of images in a fixed order, read or drawn a few at a time: memory does not grow with their number."""

import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sfumato.data.images import IMAGE_SUFFIXES, find_images, read_rgb
from sfumato.errors import UserError
from sfumato.policy import LogitsFilter, Policy
from sfumato.rollout import Conditions


@runtime_checkable
class Images(Protocol):
    """Images in [0, 1], multiples of 1/255, and what each should show."""

    conditions: Conditions
    """one an image; the name is "" where nothing is known"""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice) -> Float[Tensor, "B 3 H W"]:
        """The images with these numbers, on the CPU."""
        ...


def batches(images: Images, size: int) -> Iterator[tuple[Float[Tensor, "B 3 H W"], Conditions]]:
    """All images with their conditions, `size` at a time. A terminal shows how far they are."""
    starts, console = range(0, len(images), size), Console(stderr=True)
    for first in track(starts, "images", console=console, transient=True, disable=not console.is_terminal):
        part = slice(first, first + size)
        yield images[part], images.conditions[part]


class StoredImages:
    """Images of a folder, in the order of their paths. A sub-folder is a class by its name.

    Args:
        folder: where they are.
        files: which; all that are there and below if not given.

    Raises:
        UserError: there are none.
    """

    def __init__(self, folder: Path, files: Sequence[Path] | None = None):
        self.files = find_images(folder) if files is None else list(files)
        if not self.files:
            raise UserError(f"target: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) below {folder}; give another")
        classes = [p.relative_to(folder).parts[0] if p.parent != folder else "" for p in self.files]
        numbers = {name: number for number, name in enumerate(sorted(set(classes)))}
        self.conditions = Conditions(
            labels=torch.tensor([numbers[name] for name in classes]),
            names=tuple(classes),
            captions=tuple(f"a photo of a {name}" if name else "" for name in classes),
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: slice) -> Float[Tensor, "B 3 H W"]:
        return read_images(self.files[index])


class ArrayImages:
    """The array `arr_0` of an .npz file, uint8 (N, H, W, 3), as guided-diffusion's evaluator reads it.

    It is read from the file as it is needed, compressed or not.

    Raises:
        UserError: the file has no such array.
    """

    def __init__(self, path: Path):
        try:
            self._stream = zipfile.ZipFile(path).open("arr_0.npy")  # noqa: SIM115 (for as long as the set lives)
            self._shape = _read_header(self._stream)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"target: {path} has no array arr_0 of uint8 (N, H, W, 3) ({error}); mend it") from error
        self._start = self._stream.tell()
        count = self._shape[0]
        self.conditions = Conditions(labels=torch.zeros(count, dtype=torch.long), names=("",) * count)

    def __len__(self) -> int:
        return self._shape[0]

    def __getitem__(self, index: slice) -> Float[Tensor, "B 3 H W"]:
        numbers, (height, width) = range(len(self))[index], self._shape[1:3]
        assert numbers.step == 1
        self._stream.seek(self._start + numbers.start * height * width * 3)
        content = bytearray(self._stream.read(len(numbers) * height * width * 3))
        pixels = torch.frombuffer(content, dtype=torch.uint8).view(len(numbers), height, width, 3)
        return pixels.permute(0, 3, 1, 2).float() / 255


def _read_header(stream) -> tuple[int, ...]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran_order:
        raise ValueError(f"it is {dtype} {shape}")
    return shape


def by_number(number: int) -> str:
    """Where a drawn image is kept, below the folder of all."""
    return f"{number:06d}.png"


class DrawnImages:
    """Images of a policy, kept as PNG files: those that are there are not drawn again.

    An image's draw depends on its seed alone, so a set that was interrupted goes on as if it had not been.
    """

    def __init__(
        self,
        policy: Policy,
        conditions: Conditions,
        seeds: Int[Tensor, " B"],
        folder: Path,
        filter: LogitsFilter | None = None,
        place: Callable[[int], str] = by_number,
    ):
        """A set that is drawn when it is read.

        Args:
            policy: what draws.
            conditions: one an image.
            seeds: one an image.
            folder: where the images are kept.
            filter: restricts what is drawn, as the family's own inference does.
            place: path of the n-th image below the folder.
        """
        self.policy, self.conditions, self.seeds, self.filter = policy, conditions, seeds, filter
        self.files = [folder / place(number) for number in range(len(conditions))]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: slice) -> Float[Tensor, "B 3 H W"]:
        missing = [n for n in range(len(self))[index] if not self.files[n].is_file()]
        if missing:
            numbers = torch.tensor(missing)
            device = next(self.policy.generator.transformer.parameters()).device
            wanted = self.conditions[numbers].to(device)
            drawn = self.policy.draw(wanted, self.seeds[numbers], len(missing), self.filter)
            for number, image in zip(missing, drawn, strict=True):
                write_image(self.files[number], image)
        return read_images(self.files[index])


def read_images(files: Sequence[Path]) -> Float[Tensor, "B 3 H W"]:
    """Images in [0, 1], transparent ones laid on white.

    Raises:
        UserError: a file is no image, or they are not all of one size.
    """
    images = [torch.from_numpy(np.array(read_rgb(file, "target"))).permute(2, 0, 1) for file in files]
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            size, first = image.shape[1:], images[0].shape[1:]
            raise UserError(
                f"target: {file} has {size[1]}×{size[0]} pixels, {files[0].name} has {first[1]}×{first[0]}; "
                "make all of one size"
            )
    return torch.stack(images).float() / 255


def write_image(path: Path, image: Float[Tensor, "3 H W"]) -> None:
    """An image in [0, 1] as a PNG file that is complete or absent."""
    pixels = (image.clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(1, 2, 0).contiguous().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    Image.fromarray(pixels).save(temporary, format="png", compress_level=1)
    os.replace(temporary, path)
