"""Sets of images in a fixed order, read or drawn in batches so that memory does not grow with the number of images."""

import copy
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sfumato.data.images import IMAGE_SUFFIXES, class_of, cover, find_images, left_out, probe, read_rgb
from sfumato.data.pictures import to_pictures
from sfumato.engine.precision import Precision, autocast
from sfumato.errors import UserError
from sfumato.files import replacing
from sfumato.notes import note
from sfumato.policy import Policy
from sfumato.request import Words

Item = TypeVar("Item")


@runtime_checkable
class Images(Protocol):
    """Images in [0, 1], in multiples of 1/255, with a description of each."""

    words: Words
    """description of each image; the name is "" if unknown"""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice) -> Float[Tensor, "B 3 H W"]:
        """Return the images with these numbers, on the CPU."""
        ...


def batches(images: Images, size: int, title: str = "images") -> Iterator[tuple[Float[Tensor, "B 3 H W"], Words]]:
    """Yield all images with their descriptions, `size` at a time. On a terminal, show the progress under a title."""
    for first in shown(range(0, len(images), size), title):
        part = slice(first, first + size)
        yield images[part], images.words[part]


def shown(items: Sequence[Item], title: str) -> Iterable[Item]:
    """Return the items; if the error output is a terminal, show how many of them are done."""
    console = Console(stderr=True, markup=False)
    return track(items, title, console=console, transient=True, disable=not console.is_terminal)


def readable(files: Sequence[Path], field: str, folder: Path | None = None) -> dict[Path, tuple[int, int]]:
    """Return the width and height in pixels of the image files that can be read; a note says what was left out.

    Args:
        files: image files; each is decoded, because some damage only shows then.
        field: option that names them, for messages.
        folder: folder that was searched for them; the note then also counts other files and broken links.

    Raises:
        UserError: no file can be read.
    """
    found: dict[Path, tuple[int, int] | str] = {}
    for first in shown(range(0, len(files), 256), "checking"):
        found |= probe(files[first : first + 256])
    sizes = {path: size for path, size in found.items() if not isinstance(size, str)}
    unread = {path: reason for path, reason in found.items() if isinstance(reason, str)}
    if found and not sizes:
        path, reason = next(iter(unread.items()))
        raise UserError(
            f"{field}: none of {len(unread)} image files can be read ({path}: {reason}); replace them, or give others"
        )
    if folder is not None:
        omitted = left_out(folder, list(sizes), unread)
    else:
        first = "; ".join(f"{path}: {reason}" for path, reason in list(unread.items())[:3])
        omitted = unread and f"{len(unread)} files that cannot be read as images ({first})"
    if omitted:
        note(f"{field}: {len(sizes)} images{f' in {folder}' if folder else ''}; left out: {omitted}")
    return sizes


class StoredImages:
    """Images of a folder, in the order of their paths. The name of a subfolder is a class.

    Files that cannot be read are left out; a note says which, and why.

    Args:
        folder: folder of the images.
        files: files to use; all images in the folder and below if not given.
        field: option that names the folder, for messages.
        resized: whether images of other sizes may be resized with `sized`; otherwise all must have one size.

    Raises:
        UserError: no image is found, none can be read, or the images differ in size.
    """

    def __init__(
        self, folder: Path, files: Sequence[Path] | None = None, *, field: str = "target", resized: bool = False
    ):
        listed = find_images(folder) if files is None else files
        if not listed:
            known = ", ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(f"{field}: no images ({known}) in {folder}; give another folder")
        sizes = readable(listed, field, folder if files is None else None)
        self.files = list(sizes)
        first = self.files[0]
        self.size = sizes[first]
        """width and height in pixels; with `resized`, those of the first image until `sized` is called"""
        other = next((file for file in self.files if sizes[file] != self.size), None)
        if other is not None and not resized:
            raise UserError(
                f"{field}: {other} has {by(sizes[other])} pixels, {first.name} has {by(self.size)}; "
                "give images of one size"
            )
        classes = [class_of(p, folder) if p.parent != folder else "" for p in self.files]
        numbers = {name: number for number, name in enumerate(sorted(set(classes)))}
        self.words = Words(
            labels=torch.tensor([numbers[name] for name in classes]),
            names=tuple(classes),
            captions=tuple(f"a photo of a {name}" if name else "" for name in classes),
        )

    def sized(self, size: tuple[int, int]) -> "StoredImages":
        """Return the same images, resized and cropped to this width and height as images for pre-training are."""
        images = copy.copy(self)
        images.size = size
        return images

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: slice) -> Float[Tensor, "B 3 H W"]:
        return read_images(self.files[index], self.size)


class ArrayImages:
    """The array `arr_0` of an .npz file, uint8 (N, H, W, 3), as guided-diffusion's evaluator reads it.

    Images are read from the file when they are needed, whether it is compressed or not. An array in Fortran's order,
    whose images are scattered over the file, is read into memory as a whole.

    Raises:
        UserError: the file has no such array, or is damaged; its checksum is tested at once.
    """

    def __init__(self, path: Path, *, field: str = "target"):
        self._whole: np.ndarray | None = None
        with reading(path, field), ExitStack() as opened:
            archive = opened.enter_context(zipfile.ZipFile(path))
            self._stream = opened.enter_context(archive.open("arr_0.npy"))
            self._shape, scattered = _read_header(self._stream)
            if not self._shape[0]:
                raise ValueError("it has no images")
            self._start = self._stream.tell()
            for _ in iter(lambda: self._stream.read(2**20), b""):
                pass  # at the end of the data, zipfile compares its checksum
            if self._stream.tell() - self._start != math.prod(self._shape):
                raise ValueError("its data is incomplete")
            if scattered:
                with np.load(path) as arrays:
                    self._whole = np.ascontiguousarray(arrays["arr_0"])
            opened.pop_all()  # keep the file open as long as the set exists
        count, height, width = self._shape[:3]
        self.size = (width, height)
        self.words = Words(labels=torch.zeros(count, dtype=torch.long), names=("",) * count)

    def __len__(self) -> int:
        return self._shape[0]

    def __getitem__(self, index: slice) -> Float[Tensor, "B 3 H W"]:
        numbers, (height, width) = range(len(self))[index], self._shape[1:3]
        assert numbers.step == 1
        if self._whole is not None:
            pixels = torch.from_numpy(self._whole[index])
        else:
            self._stream.seek(self._start + numbers.start * height * width * 3)
            content = bytearray(self._stream.read(len(numbers) * height * width * 3))
            pixels = torch.frombuffer(content, dtype=torch.uint8).view(len(numbers), height, width, 3)
        return pixels.permute(0, 3, 1, 2).float() / 255


@contextmanager
def reading(path: Path, field: str) -> Iterator[None]:
    """Turn what is wrong with an .npz file of images into an error.

    Raises:
        UserError: the block finds the file damaged, or without an array of images.
    """
    try:
        yield
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{field}: {path} has no readable array arr_0 of uint8 (N, H, W, 3) ({error}); fix or replace it"
        ) from error


def _read_header(stream) -> tuple[tuple[int, ...], bool]:
    """Return the shape of an array of images, and whether it is in Fortran's order."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
        raise ValueError(f"it is {dtype} {shape}")
    return shape, fortran_order


def by(size: tuple[int, int]) -> str:
    """Format a width and a height."""
    return f"{size[0]}×{size[1]}"


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


def read_images(files: Sequence[Path], size: tuple[int, int] | None = None) -> Float[Tensor, "B 3 H W"]:
    """Read images in [0, 1]; transparent areas become white.

    Args:
        files: image files.
        size: width and height in pixels, to which other images are resized and cropped; if not given, all images have
            one size.

    Raises:
        UserError: a file is not an image.
    """
    pictures = [read_rgb(file, "target") for file in files]
    pixels = [np.array(picture if size is None else cover(picture, *size)) for picture in pictures]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


def write_image(path: Path, image: Float[Tensor, "3 H W"]) -> None:
    """Write an image in [0, 1] as a PNG file; the file appears only once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        to_pictures(image[None])[0].save(temporary, format="png", compress_level=1)
