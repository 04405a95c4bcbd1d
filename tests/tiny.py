"""A generator small enough to train in a test, and runs of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sfumato.engine.process import Workers
from sfumato.families.library import load
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.llamagen.network import LlamaGenConfig
from sfumato.families.llamagen.tokenizer import VQConfig, VQModel
from sfumato.families.var.generator import VAR
from sfumato.families.var.network import VARConfig
from sfumato.families.var.tokenizer import MultiScaleVQVAE, VQVAEConfig
from sfumato.objectives.grpo import LossConfig
from sfumato.rewards import build_reward
from sfumato.rollout import CaptionFeatures, Conditions
from sfumato.training.config import GRPOConfig
from sfumato.training.grpo import GRPO
from sfumato.training.requests import build_sampler

CLASS_NAMES = ("ant", "bee", "cat", "dog", "elk")
TOKENIZER = VQVAEConfig(
    scales=(1, 2),
    vocab_size=16,
    latent_channels=4,
    base_channels=8,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    patch=2,
    norm_groups=4,
)
TRANSFORMER = VARConfig(depth=1, width=16, num_heads=2, num_classes=len(CLASS_NAMES))
VQ_TOKENIZER = VQConfig(
    grid_size=3,
    vocab_size=16,
    code_width=4,
    latent_channels=4,
    base_channels=8,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    patch=2,
    norm_groups=4,
)
LLAMAGEN = LlamaGenConfig(depth=2, width=16, num_heads=2, feed_forward_width=24, num_classes=len(CLASS_NAMES))
LLAMAGEN_TEXT = replace(LLAMAGEN, num_classes=0, caption_width=6, num_caption_tokens=5)


def tiny_var(seed: int = 0, guidance: float = 0.0) -> VAR:
    """A random generator of 8-pixel images from 5 tokens, whose tokens and classes all make a difference."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = VAR(TRANSFORMER, MultiScaleVQVAE(TOKENIZER), CLASS_NAMES, guidance)
        with torch.no_grad():
            # Larger than at the start of training, so that what is left out of a computation shows.
            for parameter in generator.transformer.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            generator.tokenizer.decoder.conv_out.weight.mul_(4)
    return generator.eval()


def tiny_llamagen(seed: int = 0, guidance: float = 1.0, text: bool = False, guidance_interval: int = -1) -> LlamaGen:
    """A random generator of 12-pixel images from 9 tokens, class- or text-conditional, where all makes a difference."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config, names = (LLAMAGEN_TEXT, ()) if text else (LLAMAGEN, CLASS_NAMES)
        generator = LlamaGen(config, VQModel(VQ_TOKENIZER), names, guidance, guidance_interval)
        with torch.no_grad():
            for parameter in generator.transformer.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.25)
            generator.tokenizer.decoder.conv_out.weight.mul_(4)
    return generator.eval()


def tiny_captions(lengths: Sequence[int], rows: Sequence[int] | None = None) -> Conditions:
    """Random captions of so many text tokens each; `rows` says which caption each image has (one each by default)."""
    rng = torch.Generator().manual_seed(7)
    captions = [torch.randn(8, 6, generator=rng)[:length] for length in lengths]
    rows = range(len(lengths)) if rows is None else rows
    names = tuple(f"caption {row}" for row in rows)
    return Conditions(labels=torch.tensor(list(rows)), names=names, text=CaptionFeatures.padded(captions))


def tiny_conditions(labels: Sequence[int]) -> Conditions:
    """Conditions of the tiny generator; its null class is 5."""
    return Conditions(labels=torch.tensor(labels), names=tuple((*CLASS_NAMES, "null")[i] for i in labels))


def tiny_config(model: Path | str, **changes: Any) -> GRPOConfig:
    """A run of two steps on the tiny generator."""
    config = GRPOConfig(
        model=str(model),
        reward={"brightness": 1.0},
        steps=2,
        labels_per_step=2,
        group_size=4,
        minibatch_size=4,
        micro_batch_size=4,
        sample_batch_size=8,
        temperature=0.7,
        learning_rate=1e-3,
        final_learning_rate=1e-3,
        loss=LossConfig(clip=0.2, kl_weight=0.1),
        device="cpu",
        eval_images=0,
    )
    return replace(config, **changes)


def algorithm_of(config: GRPOConfig) -> GRPO:
    """The algorithm of a config, in this process alone and without a run folder."""
    config.validate()
    policy = load(config.model, guidance=config.guidance, temperature=config.temperature)
    sampler = build_sampler(config, policy.generator, torch.device("cpu"))
    workers = Workers(rank=0, count=1, device=torch.device("cpu"))
    return GRPO(config, policy, sampler, build_reward(config.reward), workers)
