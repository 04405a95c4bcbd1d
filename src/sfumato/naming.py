"""Classes and captions as people give them: by name, number or range, and as words for a request."""

import difflib
import re
import unicodedata
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from sfumato.errors import UserError
from sfumato.request import Words


def words_of(asked: str | int | Sequence[str | int], class_names: Sequence[str]) -> Words:
    """Return words for classes, given by name, number or range, or for captions if the model has no classes.

    Args:
        asked: one or several classes or captions.
        class_names: names of the model's classes; empty if it reads captions.

    Raises:
        UserError: there is no such class, or a caption is a number.
    """
    several = [asked] if isinstance(asked, (str, int)) else list(asked)
    if class_names:
        return class_words(find_classes(several, class_names), class_names)
    for caption in several:
        if not isinstance(caption, str):
            raise UserError(f"captions: {caption!r} is a number, and this model reads captions; give text")
    return Words(names=tuple(map(str, several)))


def find_class(name_or_number: str | int, class_names: Sequence[str]) -> int:
    """Return the label of a class given by name (exact, or else without regard to case and Unicode form) or number.

    A name wins: of classes that are called 1 to 12, "10" is the one with this name. A number given as `int` is a label.

    Raises:
        UserError: there is no such class (the message lists similar names), or two classes differ only in case.
    """
    text, lowered = str(name_or_number).strip(), [_plain(name) for name in class_names]
    if isinstance(name_or_number, str):
        same = [name for name, low in zip(class_names, lowered, strict=True) if low == _plain(text)]
        if text in same or len(set(same)) == 1:
            return class_names.index(text if text in same else same[0])
        if same:
            raise UserError(f"classes: {text!r} could be {' or '.join(map(repr, same))}; give one of them exactly")
    if re.fullmatch(r"-?\d+", text):
        label, last = int(text), len(class_names) - 1
        if isinstance(name_or_number, str) and any(map(_is_number, class_names)):
            raise UserError(f"classes: no class is called {text!r}, and here numbers are names; give a name")
        if 0 <= label <= last:
            return label
        raise UserError(f"classes: there is no class number {label}; give 0 to {last}, or a name")
    close = difflib.get_close_matches(_plain(text), lowered, n=3) or [n for n in lowered if _plain(text) in n][:3]
    hint = f"did you mean {', '.join(map(repr, close))}?" if close else "`sfumato classes MODEL` lists them"
    raise UserError(f"classes: there is no class {text.lower()!r}; {hint}")


def find_classes(names_or_ranges: Sequence[str | int], class_names: Sequence[str]) -> list[int]:
    """Return the labels of classes given by name, by number, or as ranges "first-last", with both ends included.

    If names of classes are numbers, the ends of a range are names too, and the range has the names between them.

    Raises:
        UserError: there is no such class, or a range is empty.
    """
    labels: list[int] = []
    for item in names_or_ranges:
        ends = re.fullmatch(r"(\d+)-(\d+)", str(item).strip())
        if ends and str(item).strip() not in class_names:
            first, last = (find_class(end, class_names) for end in ends.groups())
            if int(ends[1]) > int(ends[2]):
                raise UserError(f"classes: the range {item} is empty; give the smaller number first")
            between = range(int(ends[1]), int(ends[2]) + 1)
            named = [label for label, name in enumerate(class_names) if _is_number(name) and int(name) in between]
            labels += sorted(named, key=lambda label: int(class_names[label])) or range(first, last + 1)
        else:
            labels.append(find_class(item, class_names))
    return list(dict.fromkeys(labels))


def _plain(name: str) -> str:
    """Return a name in lower case, with letters and accents composed: macOS decomposes them in names of files."""
    return unicodedata.normalize("NFC", name).lower()


def _is_number(name: str) -> bool:
    return re.fullmatch(r"\d+", name) is not None


def find_labels(class_names: Sequence[str], words: Words) -> Int[Tensor, " B"] | None:
    """Return the class number of each image among these classes; None if an image has another class.

    The class of an image is the "class" in the metadata of its prompt, or otherwise its name. If several classes have
    the same name (ImageNet has two cranes), the image's own label decides.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    wanted = [data.get("class", name) for data, name in zip(words.metadata, words.names, strict=True)]
    if not all(isinstance(name, str) and name in numbers for name in wanted):
        return None
    own = words.labels.tolist()
    same = [0 <= o < len(class_names) and class_names[o] == name for o, name in zip(own, wanted, strict=True)]
    return torch.tensor([o if s else numbers[str(name)] for o, s, name in zip(own, same, wanted, strict=True)])


def class_words(labels: Sequence[int], class_names: Sequence[str], template: str = "a photo of a {name}") -> Words:
    """Return words for these labels; each caption is the template with the class name filled in."""
    names = tuple(class_names[i] for i in labels)
    captions = tuple(template.replace("{name}", name) for name in names)
    return Words(labels=torch.tensor(labels), names=names, captions=captions)
