"""LlamaGen as a generator: classes or captions and drawn tokens in, guided logits and images out (Sun et al., 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.families.llamagen.network import LlamaGenConfig, LlamaGenTransformer, causal_mask
from sfumato.families.llamagen.tokenizer import VQModel
from sfumato.families.shared import check_size, keep_top_k, name_classes
from sfumato.nn.attention import KeyValueCache
from sfumato.rollout import Conditions
from sfumato.settings import Inference


@dataclass(kw_only=True)
class LlamaGenState:
    """A decoding in progress. With guidance there are R = 2B rows: the conditions', then their unconditional twins."""

    batch: int
    hidden: Float[Tensor, "R 1 C"]
    """the network's output at the last position of the condition"""
    caches: list[KeyValueCache]
    columns: Bool[Tensor, "R 1 1 T"] | None
    """positions that may be attended to; None if all"""
    drawn: int = 0
    """tokens whose logits were asked for"""


class LlamaGen(nn.Module):
    """A next-token generator: a trainable transformer and its frozen tokenizer.

    `guidance` s makes the policy unconditional + s·(conditional - unconditional) logits, in sampling and in scoring;
    1 is no guidance (and so is 0), and then no unconditional half is computed. `guidance_interval` is the published
    sampler's: -1 guides all tokens, i >= 0 only the first i + 2.
    """

    def __init__(
        self,
        config: LlamaGenConfig,
        tokenizer: VQModel,
        class_names: Sequence[str] | None = None,
        guidance: float = 1.0,
        guidance_interval: int = -1,
    ):
        super().__init__()
        self.config = config
        self.class_names = name_classes(class_names, config.num_classes)
        self.guidance, self.guidance_interval = guidance, guidance_interval
        self.inference = Inference()
        self.text_encoder = config.text_encoder
        self.longest_caption = config.num_caption_tokens if config.caption_width else 0
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        shape = tokenizer.config
        self.transformer = LlamaGenTransformer(config, shape.grid_size, shape.vocab_size)
        self.units: tuple[int, ...] = (1,) * shape.grid_size**2

    @property
    def null_class(self) -> int:
        """The label that asks for no class in particular."""
        return self.config.num_classes

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional half."""
        return self.guidance not in (0.0, 1.0)

    def start(self, conditions: Conditions) -> LlamaGenState:
        """A fresh decoding state. The network reads every distinct condition once, however many images share it."""
        labels, null = self._rows(conditions)
        distinct, place = (2 * labels + null).unique(return_inverse=True)
        prefix, mask = self._prefix(conditions, distinct // 2, distinct % 2 == 1)
        transformer, length = self.transformer, prefix.shape[1]
        narrow = [KeyValueCache(length) for _ in transformer.blocks]
        seen = None if mask is None else causal_mask(mask, length)
        hidden = transformer.hidden(prefix, transformer.positions(length)[:length], seen, narrow)[:, -1:]
        total = length + len(self.units) - 1
        caches = [KeyValueCache(total) for _ in transformer.blocks]
        for cache, short in zip(caches, narrow, strict=True):
            cache.append(short.keys[place], short.values[place])
        columns = None
        if mask is not None and not bool(mask.all()):
            columns = F.pad(mask[place], (0, total - length), value=True)[:, None, None]
        return LlamaGenState(batch=len(conditions), hidden=hidden[place], caches=caches, columns=columns)

    def step(self, state: LlamaGenState, unit_tokens: Int[Tensor, "B 1"] | None) -> Float[Tensor, "B 1 V"]:
        """Guided logits of the next token, given the one before (None at the first)."""
        transformer, drawn = self.transformer, state.drawn
        if drawn == len(self.units):
            raise ValueError(f"step: all {drawn} tokens are drawn; call start for a new image")
        if (unit_tokens is None) != (drawn == 0):
            raise ValueError(f"unit_tokens: give None at the first token and the one drawn after it (token {drawn})")
        guided = self._guided_at(drawn)
        if unit_tokens is None:
            x = state.hidden
        else:
            rows = 2 * state.batch if guided else state.batch
            if rows < state.caches[0].batch:  # guidance is over: from here on the conditional half is enough
                for cache in state.caches:
                    cache.keep(rows)
                state.columns = None if state.columns is None else state.columns[:rows]
            x = transformer.token_embedding(unit_tokens).repeat(rows // state.batch, 1, 1)
            end = state.caches[0].length + 1
            mask = None if state.columns is None else state.columns[..., :end]
            x = transformer.hidden(x, transformer.rotation[drawn - 1 : drawn], mask, state.caches)
        state.drawn += 1
        return transformer.classify(x, self.guidance if guided else None)

    def logits(self, conditions: Conditions, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
        """Guided logits of all tokens, each given the true ones before it."""
        labels, null = self._rows(conditions)
        prefix, mask = self._prefix(conditions, labels, null)
        strength = None
        if self.guided:
            tokens = tokens.repeat(2, 1)
            strengths = [self.guidance if self._guided_at(i) else 1.0 for i in range(len(self.units))]
            strength = torch.tensor(strengths, device=tokens.device)[:, None]
        return self.transformer(prefix, mask, tokens, strength)

    def decode(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1]."""
        side = self.tokenizer.config.grid_size
        codes = self.tokenizer.quantizer.embed(tokens)
        return self.tokenizer.reconstruct(codes.transpose(1, 2).unflatten(2, (side, side)))

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B L"]:
        """Tokens of images in [0, 1]; the side must be the tokenizer's."""
        check_size(images, self.tokenizer.config.image_size)
        return self.tokenizer.encode(images)

    @staticmethod
    def filter(logits: Float[Tensor, "*N V"], top_k: int = 0, top_p: float = 0.0) -> Float[Tensor, "*N V"]:
        """LlamaGen's top-k and nucleus filter: removed logits become -inf; 0 turns either off (and so does top_p 1).

        Top-k keeps ties with the k-th. The nucleus keeps the likeliest tokens up to and including the first at which
        their cumulative probability passes top_p (VAR's rule at the boundary is the opposite one).
        """
        logits = keep_top_k(logits, top_k)
        if 0 < top_p < 1:
            descending, order = logits.sort(dim=-1, descending=True)
            passed = descending.softmax(-1).cumsum(-1) > top_p
            removed = F.pad(passed[..., :-1], (1, 0), value=False)
            logits = logits.masked_fill(removed.scatter(-1, order, removed), -torch.inf)
        return logits

    def _rows(self, conditions: Conditions) -> tuple[Int[Tensor, " R"], Bool[Tensor, " R"]]:
        """The transformer's labels and which of its rows are unconditional: with guidance, all of the second half."""
        labels = conditions.labels
        null = torch.zeros_like(labels, dtype=torch.bool) if conditions.null is None else conditions.null
        if self.guided:
            labels, null = labels.repeat(2), torch.cat([null, torch.ones_like(null)])
        if not self.config.caption_width:
            labels = labels.masked_fill(null, self.null_class)
        return labels, null

    def _prefix(
        self, conditions: Conditions, labels: Int[Tensor, " R"], null: Bool[Tensor, " R"]
    ) -> tuple[Float[Tensor, "R P C"], Bool[Tensor, "R P"] | None]:
        """The condition as tokens, and which of them are no padding. A null caption has its caption's padding."""
        if not self.config.caption_width:
            return self.transformer.embed_classes(labels), None
        text = conditions.text
        if text is None:
            raise UserError("conditions: this model reads captions; give text features (sfumato.data.prompts)")
        longest = self.config.num_caption_tokens
        if text.features.shape[1] > longest or text.features.shape[2] != self.config.caption_width:
            raise UserError(
                f"text: features {tuple(text.features.shape)} are not of at most {longest} tokens of width "
                f"{self.config.caption_width}; use the text encoder {self.config.text_encoder!r}"
            )
        unconditional = self.transformer.null_caption[longest - text.features.shape[1] :]
        features = torch.where(null[:, None, None], unconditional, text.features[labels].type_as(unconditional))
        return self.transformer.embed_captions(features), text.mask[labels]

    def _guided_at(self, token: int) -> bool:
        return self.guided and (self.guidance_interval < 0 or token <= self.guidance_interval + 1)
