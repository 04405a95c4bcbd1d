"""VAR as a generator: guided logits from labels and drawn scales, and images (Tian et al., 2024)."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from sfumato.capabilities import Reduction
from sfumato.families.shared import (
    check_size,
    check_step,
    check_tokens,
    class_inputs,
    keep_nucleus,
    keep_top_k,
    number_classes,
    ramped_guidance,
    with_parts,
)
from sfumato.families.var.network import BlockCache, VARConfig, VARTransformer
from sfumato.families.vqvae import MultiScaleVQVAE
from sfumato.nn.attention import KeyValueCache
from sfumato.policy import Card
from sfumato.request import ClassInputs, Request, Words, inputs_of
from sfumato.settings import PLAIN, Settings


@dataclass(kw_only=True)
class VARState:
    """State of decoding. With guidance there are R = 2B rows: B conditional ones, then B of the null class."""

    scale: int
    """number of scales whose logits have been computed"""
    labels: Int[Tensor, " R"]
    caches: list[BlockCache]
    features: Float[Tensor, "B Z h w"]
    """accumulated feature map of the scales drawn so far"""
    strengths: Float[Tensor, " S"] | None
    """strength of guidance at each scale; None without guidance"""


class VAR(nn.Module):
    """A next-scale generator: a trainable transformer and its frozen tokenizer.

    With guidance g, the logits are (1 + t)·conditional - t·unconditional, in sampling and in scoring. As published, a
    single number g is ramped linearly: t = g·i/(S - 1) at scale i of S. A list of S numbers sets t directly. The
    published sampler computes the unconditional half even at g = 0; this one does not. The published forward pass drops
    labels at random even in eval mode; here only pre-training does.
    """

    reduces_logits = True
    scores_prefixes = True
    decodes_prefixes = True

    def __init__(self, config: VARConfig, tokenizer: MultiScaleVQVAE, card: Card | None = None):
        super().__init__()
        self.config = config
        self.card = number_classes(card or Card(family="var"), config.num_classes)
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        shape = tokenizer.config
        self.network = VARTransformer(config, shape.scales, shape.vocab_size, shape.latent_channels)
        self.units = self.network.units

    def with_network(self, network: nn.Module) -> "VAR":
        """Return a copy of this generator with another network; everything else is shared."""
        return with_parts(self, network=network)

    def inputs(self, words: Words) -> ClassInputs:
        """Return the class numbers of these words."""
        return class_inputs(words, self.config.num_classes)

    def start(self, inputs: ClassInputs | Request, settings: Settings = PLAIN) -> VARState:
        """Return a new decoding state for these classes."""
        strengths, shape = ramped_guidance(settings, len(self.units)), self.tokenizer.config
        labels, side = self._rows(inputs, strengths), shape.scales[-1]
        return VARState(
            scale=0,
            labels=labels,
            caches=[BlockCache(KeyValueCache(sum(self.units))) for _ in range(self.config.depth)],
            features=torch.zeros(len(inputs), shape.latent_channels, side, side, device=labels.device),
            strengths=None if strengths is None else torch.tensor(strengths, device=labels.device),
        )

    def step(self, state: VARState, drawn: Tensor | None) -> Float[Tensor, "B u V"]:
        """Return guided logits of the next scale.

        `drawn` holds the tokens of the previous scale, as indices (B, u) or as distributions over the vocabulary
        (B, u, V), whose mean codes are used; None for the first scale.
        """
        quantizer, scale, codes = self.tokenizer.quantizer, state.scale, None
        check_step(scale, len(self.units), drawn, "scale", "tokens")
        if drawn is not None:
            state.features = state.features + quantizer.upsample(scale - 1, quantizer.embed(drawn))
            codes = quantizer.downsample(scale, state.features).flatten(2).transpose(1, 2)
            codes = codes.repeat(len(state.labels) // len(codes), 1, 1)
        state.scale += 1
        strength = None if state.strengths is None else state.strengths[scale]
        return self.network(state.labels, codes, state.caches, strength)

    def fork(self, state: VARState, repeats: int) -> VARState:
        """Return a state with each image `repeats` times, to go on in as many ways; copies are adjacent."""
        return replace(
            state,
            labels=state.labels.repeat_interleave(repeats),
            caches=[cache.fork(repeats) for cache in state.caches],
            features=state.features.repeat_interleave(repeats, dim=0),
        )

    def logits(
        self,
        inputs: ClassInputs | Request,
        tokens: Int[Tensor, "B L"],
        settings: Settings = PLAIN,
        reduction: Reduction | None = None,
        count: int | None = None,
    ) -> Float[Tensor, "B L *V"]:
        """Return guided logits of all scales, given the true tokens of the coarser scales, or a function of them.

        If there is a `count`, the tokens and the logits are those of the first `count` scales.
        """
        units = self.units[:count]
        check_tokens(tokens, units)
        strengths = ramped_guidance(settings, len(self.units))
        labels = self._rows(inputs, strengths)
        codes = self.tokenizer.quantizer.codes_before(tokens.split(units, dim=1))
        if codes is not None:
            codes = codes.repeat(len(labels) // len(codes), 1, 1)
        strength = None
        if strengths is not None:
            levels = self.network.levels[: sum(units)]
            strength = torch.tensor(strengths, device=tokens.device)[levels, None]
        return self.network(labels, codes, strength=strength, reduction=reduction)

    def decode(self, tokens: Tensor, count: int | None = None) -> Float[Tensor, "B 3 H W"]:
        """Decode tokens (B, L), or distributions over the vocabulary (B, L, V), to images in [0, 1].

        If there is a `count`, the tokens are those of the first `count` scales; the images are coarse.
        """
        scales = tokens.split(self.units[:count], dim=1)
        return self.tokenizer.reconstruct(self.tokenizer.quantizer.accumulate(scales))

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B L"]:
        """Encode images in [0, 1] as tokens; their size must be that of the tokenizer."""
        check_size(images, self.tokenizer.config.image_size)
        return self.tokenizer.encode(images)

    @staticmethod
    def filter(logits: Float[Tensor, "*N V"], top_k: int = 0, top_p: float = 0.0) -> Float[Tensor, "*N V"]:
        """Apply VAR's top-k and nucleus filter: removed logits become -inf; 0 turns either filter off.

        Top-k keeps ties with the k-th token. The nucleus filter removes the least likely tokens whose probabilities add
        up to at most 1 - top_p, and always keeps the most likely token. (LlamaGen's filter differs at the boundary.)
        """
        return keep_nucleus(keep_top_k(logits, top_k), top_p)

    @torch.no_grad()
    def sample_smooth(
        self, inputs: ClassInputs | Request, seeds: Integer[Tensor, " B"], settings: Settings
    ) -> Float[Tensor, "B 3 H W"]:
        """Draw images in [0, 1] with VAR's "more smooth" sampling, which is for display, not for evaluation.

        Each position uses the mean code under a Gumbel-softmax sample instead of the code of one token; the samples
        become sharper from scale to scale. As elsewhere in Sfumato, logits are divided by the temperature before they
        are filtered; VAR's own code has no temperature.
        """
        rngs = [np.random.default_rng(seed) for seed in seeds.tolist()]
        count = len(self.units)
        temperatures, top_ks, top_ps = (settings.at(name, count) for name in ("temperature", "top_k", "top_p"))
        state = self.start(inputs, settings)
        weights: list[Tensor] = []
        for scale in range(count):
            logits = self.step(state, weights[-1] if weights else None) / temperatures[scale]
            logits = self.filter(logits, int(top_ks[scale]), top_ps[scale])
            progress = scale / max(1, count - 1)
            noise = np.stack([rng.gumbel(size=logits.shape[1:]).astype(np.float32) for rng in rngs])
            perturbed = logits * (1 + progress) + torch.from_numpy(noise).to(logits.device)
            weights.append((perturbed / max(0.27 * (1 - 0.95 * progress), 0.005)).softmax(-1))
        return self.decode(torch.cat(weights, dim=1))

    def _rows(self, inputs: ClassInputs | Request, strengths: tuple[float, ...] | None) -> Int[Tensor, " R"]:
        """Return the labels for the network; with guidance, followed by as many null classes."""
        classes = inputs_of(inputs)
        assert isinstance(classes, ClassInputs)
        null_class, labels = self.config.num_classes, classes.labels
        if classes.null is not None:
            labels = labels.masked_fill(classes.null, null_class)
        return labels if strengths is None else torch.cat([labels, torch.full_like(labels, null_class)])
