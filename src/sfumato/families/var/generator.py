"""VAR as a generator: labels and drawn scales in, guided logits and images out (Tian et al., 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from sfumato.families.shared import check_size, keep_top_k, name_classes
from sfumato.families.var.network import VARConfig, VARTransformer
from sfumato.families.var.tokenizer import MultiScaleVQVAE
from sfumato.nn.attention import KeyValueCache
from sfumato.policy import LogitsFilter
from sfumato.rollout import Conditions
from sfumato.settings import Inference


@dataclass(kw_only=True)
class VARState:
    """A decoding in progress. With guidance there are R = 2B rows: the conditions', then as many of the null class."""

    scale: int
    """number of scales whose logits were asked for"""
    embedding: Float[Tensor, "R C"]
    modulations: list[Tensor]
    caches: list[KeyValueCache]
    features: Float[Tensor, "B Z h w"]
    """accumulated feature map of the scales drawn"""


class VAR(nn.Module):
    """A next-scale generator: a trainable transformer and its frozen tokenizer.

    `guidance` g makes the policy (1 + t)·conditional - t·unconditional logits, t = g·i/(S - 1) at scale i of S,
    in sampling and in scoring. The published sampler computes the unconditional half even at g = 0; this one
    does not. The published forward drops labels at random even in eval mode; here that is the data's business.
    """

    def __init__(
        self,
        config: VARConfig,
        tokenizer: MultiScaleVQVAE,
        class_names: Sequence[str] | None = None,
        guidance: float = 0.0,
    ):
        super().__init__()
        self.config = config
        self.class_names = name_classes(class_names, config.num_classes)
        self.guidance = guidance
        self.inference = Inference()
        self.text_encoder, self.longest_caption = "", 0
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        shape = tokenizer.config
        self.transformer = VARTransformer(config, shape.scales, shape.vocab_size, shape.latent_channels)
        self.units = self.transformer.units

    @property
    def null_class(self) -> int:
        """The label that asks for no class in particular."""
        return self.config.num_classes

    def start(self, conditions: Conditions) -> VARState:
        """A fresh decoding state for these labels."""
        labels = self._rows(conditions)
        transformer, shape = self.transformer, self.tokenizer.config
        embedding = transformer.class_embedding(labels)
        modulations = transformer.modulations(embedding)
        caches = [KeyValueCache(sum(self.units)) for _ in transformer.blocks]
        side = shape.scales[-1]
        features = embedding.new_zeros(len(conditions), shape.latent_channels, side, side)
        return VARState(scale=0, embedding=embedding, modulations=modulations, caches=caches, features=features)

    def step(self, state: VARState, unit_tokens: Tensor | None) -> Float[Tensor, "B u V"]:
        """Guided logits of the next scale. `unit_tokens` are those drawn at the scale before, as indices (B, u) or
        as distributions over the vocabulary (B, u, V), whose mean code is then taken; None at the first scale."""
        transformer, quantizer = self.transformer, self.tokenizer.quantizer
        scale = state.scale
        if scale == len(self.units):
            raise ValueError(f"step: all {scale} scales are drawn; call start for a new image")
        if (unit_tokens is None) != (scale == 0):
            raise ValueError(f"unit_tokens: give None at the first scale and the tokens drawn after it (scale {scale})")
        if unit_tokens is None:
            x = transformer.embed_start(state.embedding)
        else:
            state.features = state.features + quantizer.upsample(scale - 1, quantizer.embed(unit_tokens))
            codes = quantizer.downsample(scale, state.features).flatten(2).transpose(1, 2)
            codes = codes.repeat(len(state.embedding) // len(codes), 1, 1)
            x = transformer.embed_codes(codes, sum(self.units[:scale]))
        for block, modulation, cache in zip(transformer.blocks, state.modulations, state.caches, strict=True):
            x = block(x, modulation, cache=cache)
        state.scale += 1
        logits = transformer.classify(x, state.embedding)
        return self._guide(logits, logits.new_tensor(self._guidance_at(scale)))

    def logits(self, conditions: Conditions, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
        """Guided logits of all scales, each given the true tokens of the coarser ones."""
        labels = self._rows(conditions)
        codes = self._inputs(tokens)
        codes = codes.repeat(len(labels) // len(codes), 1, 1)
        logits = self.transformer(labels, codes)
        ramp = logits.new_tensor([self._guidance_at(scale) for scale in range(len(self.units))])
        return self._guide(logits, ramp[self.transformer.levels, None])

    def decode(self, tokens: Tensor) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1] of tokens (B, L), or of distributions over the vocabulary (B, L, V)."""
        quantizer = self.tokenizer.quantizer
        parts = [quantizer.upsample(i, quantizer.embed(t)) for i, t in enumerate(tokens.split(self.units, dim=1))]
        return self.tokenizer.reconstruct(torch.stack(parts).sum(0))

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B L"]:
        """Tokens of images in [0, 1]; the side must be the tokenizer's."""
        check_size(images, self.tokenizer.config.image_size)
        return self.tokenizer.encode(images)

    @staticmethod
    def filter(logits: Float[Tensor, "*N V"], top_k: int = 0, top_p: float = 0.0) -> Float[Tensor, "*N V"]:
        """VAR's top-k and nucleus filter: removed logits become -inf; 0 turns either off.

        Top-k keeps ties with the k-th. The nucleus removes the least likely tokens whose probabilities add up to at
        most 1 - top_p, and always keeps the likeliest (LlamaGen's rule at the boundary is the opposite one).
        """
        logits = keep_top_k(logits, top_k)
        if top_p > 0:
            ascending, order = logits.sort(dim=-1)
            removed = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
            removed[..., -1] = False
            logits = logits.masked_fill(removed.scatter(-1, order, removed), -torch.inf)
        return logits

    def _rows(self, conditions: Conditions) -> Int[Tensor, " R"]:
        """The transformer's labels: with guidance the null class follows."""
        labels = conditions.labels
        if conditions.null is not None:
            labels = labels.masked_fill(conditions.null, self.null_class)
        return torch.cat([labels, torch.full_like(labels, self.null_class)]) if self.guidance else labels

    def _guidance_at(self, scale: int) -> float:
        return self.guidance * scale / max(1, len(self.units) - 1)

    def _guide(self, logits: Float[Tensor, "R T V"], strength: Tensor) -> Float[Tensor, "B T V"]:
        if not self.guidance:
            return logits
        conditional, unconditional = logits.chunk(2)
        return (1 + strength) * conditional - strength * unconditional

    def _inputs(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B T Z"]:
        """Teacher-forcing input: for every scale but the first, the feature map so far at that scale's side."""
        quantizer = self.tokenizer.quantizer
        features, inputs = None, []
        for scale, unit in enumerate(tokens.split(self.units, dim=1)[:-1]):
            added = quantizer.upsample(scale, quantizer.embed(unit))
            features = added if features is None else features + added
            inputs.append(quantizer.downsample(scale + 1, features).flatten(2).transpose(1, 2))
        return torch.cat(inputs, dim=1)


@torch.no_grad()
def sample_smooth(
    generator: VAR,
    conditions: Conditions,
    seeds: Integer[Tensor, " B"],
    filter: LogitsFilter | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "B 3 H W"]:
    """VAR's "more smooth" images in [0, 1], for pictures, not for numbers: instead of a token each position takes
    the mean code under a Gumbel-softmax sample, which sharpens from scale to scale. As in all sampling here, logits are
    divided by the temperature before they are filtered; VAR's own code has none."""
    rngs = [np.random.default_rng(seed) for seed in seeds.tolist()]
    state = generator.start(conditions)
    weights: list[Tensor] = []
    for scale in range(len(generator.units)):
        logits = generator.step(state, weights[-1] if weights else None) / temperature
        if filter is not None:
            logits = filter(logits)
        progress = scale / max(1, len(generator.units) - 1)
        noise = np.stack([rng.gumbel(size=logits.shape[1:]).astype(np.float32) for rng in rngs])
        perturbed = logits * (1 + progress) + torch.from_numpy(noise).to(logits.device)
        weights.append((perturbed / max(0.27 * (1 - 0.95 * progress), 0.005)).softmax(-1))
    return generator.decode(torch.cat(weights, dim=1))
