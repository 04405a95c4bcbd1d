"""Definition of a family of generators. The folder of each family exports one `FAMILY`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sfumato.data.imagenet_classes import imagenet_class_names
from sfumato.families.published import StateDict
from sfumato.policy import Card, Generator
from sfumato.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Release:
    """A published checkpoint: its files, and the information that they do not contain."""

    repository: str
    """Hugging Face repository"""
    weights: str
    """file of the network in the repository"""
    tokenizer: str
    """file of the tokenizer in the repository; empty if the file of the network contains it"""
    tokenizer_repository: str = ""
    """Hugging Face repository of the tokenizer, if it is another one"""
    needed: Mapping[str, Any]
    """arguments of the family's `read` that cannot be inferred from tensor shapes"""
    facts: Mapping[str, object]
    """result of the family's `inspect` for the correct file"""
    shape: Mapping[str, Any]
    """argument of the family's `build` for the same network and tokenizer, to plan a run without the files"""
    settings: Settings
    """sampling settings of the authors' own evaluations"""
    class_names: Callable[[], Sequence[str]] = imagenet_class_names
    """function that returns the class names; an empty sequence if the model reads captions"""
    listed: bool = True
    """whether messages name it; variants of another release are too many"""

    def card(self, family: str) -> Card:
        """Return the metadata of the model."""
        return Card(family=family, class_names=tuple(self.class_names()), settings=self.settings)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Everything that is specific to one kind of generator."""

    name: str
    """name of the family in a model folder's `config.json`"""
    build: Callable[[Mapping[str, Any]], Generator]
    """build a generator with initial weights from the shape that `describe` returned"""
    describe: Callable[[Any], dict[str, Any]] = lambda generator: {}
    """return a generator's shape as JSON-compatible values"""
    read: Callable[..., Generator] | None = None
    """build a float32 generator from state dicts with published names; the other arguments are those that cannot be
    inferred from tensor shapes"""
    write: Callable[[Any], Mapping[str, StateDict]] | None = None
    """return state dicts with published names, by file name without extension"""
    wrapping: Mapping[str, str] = field(default_factory=dict)
    """key of the tensors in published .pth files, by file name without extension; the others are plain state dicts"""
    inspect: Callable[[StateDict], Mapping[str, object]] = lambda state_dict: {}
    """return the facts about a published state dict that distinguish the releases"""
    check_installed: Callable[[], object] = lambda: None
    """raise a UserError if a package is missing that the family needs; called before weights are fetched"""
    releases: Mapping[str, Release] = field(default_factory=dict)
    """published checkpoints by name"""
    blocks: Callable[[Any], Sequence[nn.Module]] = lambda network: ()
    """return a network's blocks in order, whose activations can be recomputed"""
    lora_targets: tuple[str, ...] = ()
    """last parts of the names of the linear layers that get low-rank adapters"""
    network_shape: Any = None
    """dataclass that describes the network's shape, for pre-training"""
    tokenizer_shape: Any = None
    """dataclass that describes the tokenizer's shape, for pre-training"""
