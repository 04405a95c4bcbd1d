"""VAR: a transformer that draws an image scale by scale (Tian et al., 2024).

Tokens of one scale are drawn in parallel, given all coarser scales. The model follows the published network to
the letter, so that released weights load; the two departures are noted where they are made.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.inference import Inference
from sfumato.models.generator import check_size, keep_top_k, name_classes
from sfumato.models.transformer import KeyValueCache, project
from sfumato.models.vqvae import MultiScaleVQVAE
from sfumato.policy import LogitsFilter
from sfumato.rollout import Conditions


@dataclass(frozen=True, kw_only=True)
class VARConfig:
    """Shape of a VAR transformer; the scales, the vocabulary and the code width are its tokenizer's."""

    depth: int = 16
    """number of blocks"""
    width: int = 1024
    """width of the residual stream"""
    num_heads: int = 16
    """attention heads"""
    mlp_ratio: float = 4.0
    """hidden width of the feed-forward network over `width`"""
    num_classes: int = 1000
    """classes, without the null class of guidance"""
    shared_adaln: bool = False
    """one projection of the class embedding for all blocks, with a learned offset each (d36)"""
    l2_attention: bool = True
    """unit-length queries and keys with a learned temperature a head"""
    norm_eps: float = 1e-6
    """epsilon of the layer norms"""

    def __post_init__(self):
        if self.width % self.num_heads:
            raise UserError(f"num_heads: {self.num_heads} does not divide the width {self.width}; give a divisor")


@dataclass(frozen=True)
class Span:
    """A stretch of the sequence, which sees the keys up to its own end."""

    start: int
    end: int
    mask: Bool[Tensor, "T N"] | None = None
    """which of these keys each position sees; all if None"""


def attend(
    query: Float[Tensor, "B H T d"],
    key: Float[Tensor, "B H T d"],
    value: Float[Tensor, "B H T d"],
    spans: Sequence[Span],
    softmax_scale: float,
) -> Float[Tensor, "B H T d"]:
    """Attention span by span: most scores that one mask over everything would throw away are never computed."""
    parts = [
        F.scaled_dot_product_attention(
            query[:, :, span.start : span.end],
            key[:, :, : span.end],
            value[:, :, : span.end],
            attn_mask=span.mask,
            scale=softmax_scale,
        )
        for span in spans
    ]
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention; keys have no bias."""

    MAX_LOG_SCALE = 4.605170185988092  # log 100: the published clamp of the learned temperature

    def __init__(self, config: VARConfig):
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.full((config.num_heads, 1, 1), 4.0).log()) if config.l2_attention else None
        # Without l2 normalisation the published softmax scale is a quarter of the usual 1/sqrt(d).
        self.softmax_scale = 1.0 if config.l2_attention else 0.25 / (width // config.num_heads) ** 0.5

    def forward(
        self, x: Float[Tensor, "B T C"], spans: Sequence[Span], cache: KeyValueCache | None
    ) -> Float[Tensor, "B T C"]:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = project(self.qkv, x, bias).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, d)
        if self.log_scale is not None:
            query = F.normalize(query, dim=-1) * self.log_scale.clamp_max(self.MAX_LOG_SCALE).exp()
            key = F.normalize(key, dim=-1)
        if cache is None:
            out = attend(query, key, value, spans, self.softmax_scale)
        else:
            key, value = cache.append(key, value)
            out = F.scaled_dot_product_attention(query, key, value, scale=self.softmax_scale)
        return project(self.proj, out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by the class (adaLN)."""

    def __init__(self, config: VARConfig):
        super().__init__()
        self.eps = config.norm_eps
        hidden = round(config.width * config.mlp_ratio)
        self.attention = Attention(config)
        self.fc1 = nn.Linear(config.width, hidden)
        self.fc2 = nn.Linear(hidden, config.width)
        self.modulation = None if config.shared_adaln else nn.Linear(config.width, 6 * config.width)
        self.modulation_offset = (
            nn.Parameter(torch.randn(6, config.width) / config.width**0.5) if config.shared_adaln else None
        )

    def modulate(self, embedding: Float[Tensor, "B C"], shared: Tensor | None) -> Float[Tensor, "B 6 C"]:
        """Gates (attention, feed-forward), scales and shifts of this block."""
        if self.modulation is not None:
            return self.modulation(F.silu(embedding)).unflatten(1, (6, -1))
        assert shared is not None
        assert self.modulation_offset is not None
        return shared + self.modulation_offset

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        modulation: Float[Tensor, "B 6 C"],
        spans: Sequence[Span] = (),
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "B T C"]:
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unsqueeze(2).unbind(1)
        x = torch.addcmul(x, gate1, self.attention(self.norm(x, scale1, shift1), spans, cache))
        hidden = F.gelu(project(self.fc1, self.norm(x, scale2, shift2)), approximate="tanh")
        return torch.addcmul(x, gate2, project(self.fc2, hidden))

    def norm(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Layer norm with the class's scale and shift."""
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=self.eps), 1 + scale)


class VARTransformer(nn.Module):
    """The network: class labels and codes of the scales before in, logits out."""

    levels: Tensor
    mask: Tensor

    def __init__(self, config: VARConfig, scales: Sequence[int], vocab_size: int, latent_channels: int):
        super().__init__()
        self.config = config
        width = config.width
        self.units = tuple(side * side for side in scales)
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)  # the last row is the null class
        self.start_position = nn.Parameter(torch.empty(self.units[0], width))
        self.positions = nn.Parameter(torch.empty(sum(self.units), width))
        self.level_embedding = nn.Embedding(len(self.units), width)
        self.code_projection = nn.Linear(latent_channels, width)
        self.shared_modulation = nn.Linear(width, 6 * width) if config.shared_adaln else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, vocab_size)
        # On the CPU whatever the default device, so that a model built on "meta" is complete once its weights are in.
        levels = torch.arange(len(self.units), device="cpu").repeat_interleave(torch.tensor(self.units, device="cpu"))
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("mask", levels[:, None] >= levels[None, :], persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The published initialisation: std sqrt(1 / 3C), shallower output projections, small gates and head."""
        std = (1 / self.config.width / 3) ** 0.5
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for weight in (self.class_embedding.weight, self.level_embedding.weight, self.positions, self.start_position):
            nn.init.trunc_normal_(weight, std=std)
        with torch.no_grad():
            self.head.weight.mul_(0.02)
            self.head_modulation.weight.mul_(0.5)
            gates = 2 * self.config.width
            for block in self.blocks:
                assert isinstance(block, Block)
                block.attention.proj.weight.div_((2 * self.config.depth) ** 0.5)
                block.fc2.weight.div_((2 * self.config.depth) ** 0.5)
                if block.modulation is not None:
                    block.modulation.weight[gates:].mul_(0.5)
                    block.modulation.weight[:gates].mul_(1e-5)
                if block.modulation_offset is not None:
                    block.modulation_offset[2:].mul_(0.5)
                    block.modulation_offset[:2].mul_(1e-5)

    def modulations(self, embedding: Float[Tensor, "R C"]) -> list[Float[Tensor, "R 6 C"]]:
        """Every block's gates, scales and shifts for the class embeddings; the same at all positions."""
        shared = None
        if self.shared_modulation is not None:
            shared = self.shared_modulation(F.silu(embedding)).unflatten(1, (6, -1))
        return [block.modulate(embedding, shared) for block in self.blocks]  # pyright: ignore[reportCallIssue]

    def embed_start(self, embedding: Float[Tensor, "R C"]) -> Float[Tensor, "R u C"]:
        """Input of the first scale: the class itself."""
        return embedding[:, None] + self.start_position + self._place(slice(0, self.units[0]))

    def embed_codes(self, codes: Float[Tensor, "R T Z"], first: int) -> Float[Tensor, "R T C"]:
        """Input of the later scales, whose first position in the sequence is `first`."""
        return self.code_projection(codes) + self._place(slice(first, first + codes.shape[1]))

    def _place(self, span: slice) -> Float[Tensor, "T C"]:
        return self.positions[span] + self.level_embedding(self.levels[span])

    def spans(self) -> list[Span]:
        """The two finest scales, most of all tokens, on their own; the coarser ones together under a mask."""
        coarse = sum(self.units[:-2])
        spans = [Span(0, coarse, self.mask[:coarse, :coarse])] if coarse else []
        for unit in self.units[-2:]:
            start = spans[-1].end if spans else 0
            spans.append(Span(start, start + unit))
        return spans

    def classify(self, x: Float[Tensor, "R T C"], embedding: Float[Tensor, "R C"]) -> Float[Tensor, "R T V"]:
        """Logits, in float32 even under autocast. The raw class embedding modulates, also with shared adaLN."""
        with torch.autocast(x.device.type, enabled=False):
            scale, shift = self.head_modulation(F.silu(embedding.float())).unsqueeze(1).chunk(2, dim=-1)
            normed = F.layer_norm(x.float(), x.shape[-1:], eps=self.config.norm_eps)
            return project(self.head, normed * (1 + scale) + shift)

    def forward(self, labels: Int[Tensor, " R"], codes: Float[Tensor, "R T Z"]) -> Float[Tensor, "R L V"]:
        """Teacher-forced logits of all scales; `codes` are the inputs of all but the first."""
        embedding = self.class_embedding(labels)
        x = torch.cat([self.embed_start(embedding), self.embed_codes(codes, self.units[0])], dim=1)
        spans = self.spans()
        for block, modulation in zip(self.blocks, self.modulations(embedding), strict=True):
            x = block(x, modulation, spans=spans)
        return self.classify(x, embedding)


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
