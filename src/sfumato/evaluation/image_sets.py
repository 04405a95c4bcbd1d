"""Sets of images in a fixed order, read or drawn in batches so that memory does not grow with the number of images."""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sfumato.data.images import IMAGE_SUFFIXES, find_images, read_rgb
from sfumato.data.pictures import to_pictures
from sfumato.engine.precision import Precision, autocast
from sfumato.errors import UserError
from sfumato.files import replacing
from sfumato.policy import Policy
from sfumato.request import Words


@runtime_checkable
class Images(Protocol):
    """Images in [0, 1], in multiples of 1/255, with a description of each."""

    words: Words
    """description of each image; the name is "" if unknown"""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice) -> Float[Tensor, "B 3 H W"]:
        """Return the images with these numbers, on the CPU."""
        ...


def batches(images: Images, size: int) -> Iterator[tuple[Float[Tensor, "B 3 H W"], Words]]:
    """Yield all images with their descriptions, `size` at a time. On a terminal, show the progress."""
    starts, console = range(0, len(images), size), Console(stderr=True, markup=False)
    for first in track(starts, "images", console=console, transient=True, disable=not console.is_terminal):
        part = slice(first, first + size)
        yield images[part], images.words[part]


class StoredImages:
    """Images of a folder, in the order of their paths. The name of a subfolder is a class.

    Args:
        folder: folder of the images.
        files: files to use; all images in the folder and below if not given.

    Raises:
        UserError: there are no images.
    """

    def __init__(self, folder: Path, files: Sequence[Path] | None = None):
        self.files = find_images(folder) if files is None else list(files)
        if not self.files:
            raise UserError(f"target: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {folder}; give another folder")
        classes = [p.relative_to(folder).parts[0] if p.parent != folder else "" for p in self.files]
        numbers = {name: number for number, name in enumerate(sorted(set(classes)))}
        self.words = Words(
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

    Images are read from the file when they are needed, whether it is compressed or not.

    Raises:
        UserError: the file has no such array.
    """

    def __init__(self, path: Path):
        try:
            with ExitStack() as opened:
                archive = opened.enter_context(zipfile.ZipFile(path))
                self._stream = opened.enter_context(archive.open("arr_0.npy"))
                self._shape = _read_header(self._stream)
                opened.pop_all()  # keep the file open as long as the set exists
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"target: {path} has no array arr_0 of uint8 (N, H, W, 3) ({error}); fix it") from error
        self._start = self._stream.tell()
        count = self._shape[0]
        self.words = Words(labels=torch.zeros(count, dtype=torch.long), names=("",) * count)

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
    """Return the path of a drawn image in the folder of the set."""
    return f"{number:06d}.png"


class DrawnImages:
    """Images that a policy draws, stored as PNG files; existing files are not drawn again.

    An image depends only on its request and seed, so an interrupted set continues with the same images.
    """

    def __init__(
        self,
        policy: Policy,
        words: Words,
        seeds: Int[Tensor, " B"],
        folder: Path,
        place: Callable[[int], str] = by_number,
        precision: Precision = "auto",
    ):
        """Create a set whose images are drawn when they are read.

        Args:
            policy: policy that draws the images.
            words: description of each image.
            seeds: one seed per image.
            folder: folder for the images.
            place: returns the path of the n-th image in the folder.
            precision: precision of the policy's arithmetic.
        """
        self.policy, self.words, self.seeds = policy, words, seeds
        self.precision: Precision = precision
        self.files = [folder / place(number) for number in range(len(words))]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: slice) -> Float[Tensor, "B 3 H W"]:
        missing = [n for n in range(len(self))[index] if not self.files[n].is_file()]
        if missing:
            numbers = torch.tensor(missing)
            request = self.policy.request(self.words[numbers])
            with autocast(self.policy.device, self.precision):
                drawn = self.policy.draw(request, self.seeds[numbers], len(missing))
            for number, image in zip(missing, drawn, strict=True):
                write_image(self.files[number], image)
        return read_images(self.files[index])


def read_images(files: Sequence[Path]) -> Float[Tensor, "B 3 H W"]:
    """Read images in [0, 1]; transparent areas become white.

    Raises:
        UserError: a file is not an image, or the images differ in size.
    """
    images = [torch.from_numpy(np.array(read_rgb(file, "target"))).permute(2, 0, 1) for file in files]
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            size, first = image.shape[1:], images[0].shape[1:]
            raise UserError(
                f"target: {file} has {size[1]}×{size[0]} pixels, {files[0].name} has {first[1]}×{first[0]}; "
                "give images of one size"
            )
    return torch.stack(images).float() / 255


def write_image(path: Path, image: Float[Tensor, "3 H W"]) -> None:
    """Write an image in [0, 1] as a PNG file; the file appears only once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        to_pictures(image[None])[0].save(temporary, format="png", compress_level=1)
