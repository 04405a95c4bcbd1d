"""A family of your own: each token depends only on the class and on the token before it.

sfumato train emoji-llamagen-colorful --model examples/bigram.py:build --guidance None --run-dir runs/bigram
"""

import copy

import torch
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.families import load_generator
from sfumato.policy import Card
from sfumato.request import ClassInputs, Words
from sfumato.settings import Settings


class BigramNetwork(nn.Module):
    """Compute the logits of the next token."""

    def __init__(self, vocab_size: int, num_classes: int, width: int = 32):
        super().__init__()
        self.classes = nn.Embedding(num_classes, width)
        self.before = nn.Embedding(vocab_size + 1, width)  # the last row stands for no token
        self.head = nn.Linear(width, vocab_size)

    def forward(self, labels: Tensor, before: Tensor) -> Tensor:  # (B,), (B, T) -> (B, T, V)
        return self.head(torch.tanh(self.before(before) + self.classes(labels)[:, None]))


class Bigram:
    """Implement `sfumato.policy.Generator` with the tokenizer of a bundled model."""

    def __init__(self, seed: int = 0):
        self.base = load_generator("emoji-llamagen")  # its tokenizer is used and stays frozen
        self.tokenizer, self.units, self.filter = self.base.tokenizer, self.base.units, self.base.filter
        self.decode, self.encode = self.base.decode, self.base.encode
        self.card = Card(class_names=self.base.card.class_names, judge="emoji")
        self.vocab_size = 4096
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = BigramNetwork(self.vocab_size, len(self.card.class_names))

    def inputs(self, words: Words) -> ClassInputs:
        return ClassInputs(labels=words.labels)

    def start(self, inputs: ClassInputs, settings: Settings) -> Tensor:
        if settings.guidance is not None:
            raise UserError(f"guidance: {settings.guidance} is not supported by this model; give None")
        return inputs.labels

    def step(self, state: Tensor, drawn: Tensor | None) -> Tensor:
        first = torch.full((len(state), 1), self.vocab_size, device=state.device)
        return self.network(state, first if drawn is None else drawn)

    def logits(self, inputs: ClassInputs, tokens: Tensor, settings: Settings) -> Tensor:
        labels = self.start(inputs, settings)
        first = torch.full((len(tokens), 1), self.vocab_size, device=tokens.device)
        return self.network(labels, torch.cat([first, tokens[:, :-1]], dim=1))

    def with_network(self, network: nn.Module) -> "Bigram":
        twin = copy.copy(self)
        twin.network = network
        return twin

    def to(self, device: torch.device | str) -> "Bigram":
        self.network.to(device)
        self.base.to(device)
        return self


def build() -> Bigram:
    """Return a generator with initial weights; `--model examples/bigram.py:build` calls this function."""
    return Bigram()
