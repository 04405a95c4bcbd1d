"""Generators small enough to train in a test, and runs with them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor

from sfumato.engine.engine_config import EngineConfig
from sfumato.engine.process import Process
from sfumato.engine.timing import PhaseTimer
from sfumato.engine.torch_engine import TorchEngine
from sfumato.families import load_generator
from sfumato.families.infinity.generator import Infinity
from sfumato.families.infinity.network import InfinityConfig
from sfumato.families.infinity.tokenizer import BSQConfig, BSQTokenizer
from sfumato.families.janus.generator import PADDING, Janus
from sfumato.families.janus.network import JanusConfig
from sfumato.families.janus.reasoning import ReasoningJanus
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.llamagen.network import LlamaGenConfig
from sfumato.families.simplear.generator import PADDING as END
from sfumato.families.simplear.generator import SimpleAR
from sfumato.families.simplear.network import SimpleARConfig
from sfumato.families.simplear.tokenizer import CosmosConfig, CosmosTokenizer
from sfumato.families.switti.generator import Switti
from sfumato.families.switti.network import SwittiConfig
from sfumato.families.var.generator import VAR
from sfumato.families.var.network import VARConfig
from sfumato.families.vq import VQConfig, VQModel
from sfumato.families.vqvae import MultiScaleVQVAE, VQVAEConfig
from sfumato.objectives import GRPO, Credit, Objective
from sfumato.policy import Card, Policy
from sfumato.request import Request, TokenInputs, Words
from sfumato.rewards import build_reward
from sfumato.rollout import Batch
from sfumato.rollouts.inline import InlineRollouts
from sfumato.settings import Settings
from sfumato.testing import class_request, text_request
from sfumato.text.encoders import WordVectors
from sfumato.training.hooks.hook import Progress
from sfumato.training.loop import learn
from sfumato.training.requests import build_sampler
from sfumato.training.train import build_engine, build_rollouts, learning_rate_of
from sfumato.training.train_config import TrainConfig

CPU = Process(rank=0, count=1, device=torch.device("cpu"))
"""A single process."""
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
BSQ_TOKENIZER = BSQConfig(
    scales=((1, 1), (2, 2), (3, 3)),
    latent_channels=3,
    base_channels=8,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    patch=2,
    norm_groups=4,
)
INFINITY = InfinityConfig(
    depth=2,
    width=16,
    num_heads=2,
    feed_forward_width=24,
    caption_width=6,
    num_caption_tokens=5,
    text_encoder="",
    rotary_grid=(3, 3),
    block_chunks=2,
)
JANUS = JanusConfig(
    depth=2,
    width=16,
    num_heads=2,
    num_kv_heads=1,
    feed_forward_width=24,
    text_vocab_size=20,
    code_width=4,
    num_prompt_tokens=12,
    text_tokenizer="",
)
SIMPLEAR = SimpleARConfig(
    depth=2,
    width=16,
    num_heads=2,
    num_kv_heads=1,
    feed_forward_width=24,
    text_vocab_size=20,
    num_prompt_tokens=60,
    text_tokenizer="",
)
COSMOS = CosmosConfig(
    grid_size=3,
    levels=(4, 3),
    latent_channels=4,
    base_channels=8,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    patch=2,
)

SWITTI = SwittiConfig(
    depth=2,
    width=16,
    num_heads=2,
    caption_width=64,
    pooled_width=32,
    num_caption_tokens=6,
    text_encoder=WordVectors.name,
)


def tiny_var(seed: int = 0) -> VAR:
    """Return a random VAR model of 8-pixel images with 5 tokens, in which all tokens and classes have an effect."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = VAR(TRANSFORMER, MultiScaleVQVAE(TOKENIZER), Card(family="var", class_names=CLASS_NAMES))
        with torch.no_grad():
            # Larger than at the start of training, so that omissions in a computation are noticed.
            for parameter in generator.network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            generator.tokenizer.decoder.conv_out.weight.mul_(4)
    return generator.eval()


def tiny_llamagen(seed: int = 0, text: bool = False, guidance_interval: int = -1) -> LlamaGen:
    """Return a random LlamaGen model of 12-pixel images with 9 tokens, in which all inputs have an effect."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config, names = (LLAMAGEN_TEXT, ()) if text else (LLAMAGEN, CLASS_NAMES)
        card = Card(family="llamagen", class_names=names)
        generator = LlamaGen(config, VQModel(VQ_TOKENIZER), card, guidance_interval)
        with torch.no_grad():
            for parameter in generator.network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.25)
            generator.tokenizer.decoder.conv_out.weight.mul_(4)
    return generator.eval()


def tiny_infinity(seed: int = 0, words: bool = False) -> Infinity:
    """Return a random Infinity model of 12-pixel images with 42 bits, which reads `tiny_captions`, or captions in
    words."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = replace(INFINITY, caption_width=64, text_encoder="word-vectors") if words else INFINITY
        generator = Infinity(config, BSQTokenizer(BSQ_TOKENIZER))
        with torch.no_grad():
            for parameter in generator.network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            generator.tokenizer.decoder.conv_out.weight.mul_(4)
    return generator.eval()


def tiny_switti(causal: bool = False, seed: int = 0) -> Switti:
    """Return a random Switti model of 16-pixel images with 21 tokens that reads the bundled word vectors."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = replace(SWITTI, causal=causal)
        generator = Switti(shape, MultiScaleVQVAE(replace(TOKENIZER, scales=(1, 2, 4))))
        with torch.no_grad():
            for parameter in generator.network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            generator.tokenizer.decoder.conv_out.weight.mul_(4)
    return generator.eval()


def tiny_janus(tokenizer: Path | str = "", seed: int = 0) -> Janus:
    """Return a random Janus-Pro model of 12-pixel images with 9 tokens; see `prompt_tokenizer`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = Janus(replace(JANUS, text_tokenizer=str(tokenizer)), VQModel(VQ_TOKENIZER))
        with torch.no_grad():
            for parameter in generator.network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.25)
            generator.tokenizer.decoder.conv_out.weight.mul_(4)
    return generator.eval()


def tiny_reasoning(tokenizer: Path | str = "", seed: int = 7) -> ReasoningJanus:
    """Return a random Janus-Pro model that writes up to 8 text tokens before an image of 9, fewer with this seed for
    many prompts; its `prompt_tokenizer` has the END of texts."""
    shape = replace(JANUS, text_tokenizer=str(tokenizer), num_prompt_tokens=120, num_reasoning_tokens=8, end_token=19)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = ReasoningJanus(shape, VQModel(VQ_TOKENIZER), Card(family="janus"))
        with torch.no_grad():
            for parameter in generator.network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.25)
            generator.tokenizer.decoder.conv_out.weight.mul_(4)
    return generator.eval()


def tiny_simplear(tokenizer: Path | str = "", tied: bool = True, seed: int = 0) -> SimpleAR:
    """Return a random SimpleAR model of 12-pixel images with 9 tokens; see `prompt_tokenizer`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = replace(SIMPLEAR, text_tokenizer=str(tokenizer), tied=tied)
        generator = SimpleAR(config, CosmosTokenizer(COSMOS))
        with torch.no_grad():
            for parameter in generator.network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.25)
            generator.tokenizer.decoder.conv_out.weight.mul_(4)
    return generator.eval()


def prompt_tokenizer(folder: Path, end: str = END) -> Path:
    """Write a text tokenizer of single words with the special tokens of the language models, the last of which is the
    end token; return its folder."""
    words = ["[UNK]", "a", "the", "old", "bright", "dark", "ant", "bee", "cat", "dog", "elk", ":"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    special = ["<｜begin▁of▁sentence｜>", PADDING, "<|User|>", "<|Assistant|>", "<begin_of_image>"]
    special += ["<|t2i|>", "<|soi|>", end]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def tiny_prompts(lengths: Sequence[int], rows: Sequence[int] | None = None, negative: bool = False) -> Request:
    """Return random prompts of these token counts; `rows` has the prompt of each image, one each by default. The last
    may be the negative prompt."""
    rng = torch.Generator().manual_seed(7)
    prompts = [[12, *torch.randint(1, 12, (length - 2,), generator=rng).tolist(), 16] for length in lengths]
    numbers = torch.arange(len(prompts)) if rows is None else torch.tensor(rows)
    words = Words(names=tuple(f"prompt {row}" for row in numbers.tolist()))
    null_row = len(prompts) - 1 if negative else None
    return Request(
        words=words, inputs=replace(TokenInputs.padded(prompts, padding=13), rows=numbers, null_row=null_row)
    )


def tiny_captions(lengths: Sequence[int], rows: Sequence[int] | None = None) -> Request:
    """Return random captions of these token counts; `rows` has the caption of each image, one each by default."""
    rng = torch.Generator().manual_seed(7)
    return text_request([torch.randn(8, 6, generator=rng)[:length] for length in lengths], rows=rows)


def tiny_request(labels: Sequence[int]) -> Request:
    """Return a request for the tiny generator, whose null class is 5."""
    return class_request(labels, [(*CLASS_NAMES, "null")[i] for i in labels])


def tiny_config(model: Path | str, **changes: Any) -> TrainConfig:
    """Return a run of two steps on the tiny generator; changes are fields of the config, its policy or its engine."""
    policy = Settings(temperature=0.7)
    engine = EngineConfig(learning_rate=1e-3, final_learning_rate=1e-3, micro_batch_size=4)
    names = {kind: {field.name for field in fields(kind)} for kind in (Settings, EngineConfig)}
    config = TrainConfig(
        model=str(model),
        policy=replace(policy, **{k: v for k, v in changes.items() if k in names[Settings]}),
        engine=replace(engine, **{k: v for k, v in changes.items() if k in names[EngineConfig]}),
        objective=GRPO(clip=0.2, kl_weight=0.1),
        reward={"brightness": 1.0},
        steps=2,
        groups_per_step=2,
        group_size=4,
        minibatch_size=4,
        sample_batch_size=8,
        device="cpu",
        eval_images=0,
    )
    others = {k: v for k, v in changes.items() if k not in names[Settings] | names[EngineConfig]}
    return replace(config, **others)


@dataclass
class Trainer:
    """The parts of a run in this process, without a run folder."""

    config: TrainConfig
    engine: TorchEngine
    rollouts: InlineRollouts
    objective: Objective
    rng: torch.Generator

    @property
    def policy(self) -> Policy:
        """The policy in training."""
        return self.engine.policy

    def step(self, step: int) -> dict[str, float]:
        """Run one step of the loop, counted from 0; return its metrics."""
        seen: dict[str, float] = {}

        def look(progress: Progress) -> None:
            seen.update(progress.metrics)

        learn(
            step, step + 1, self.rollouts, self.objective, self.engine, [look], self.rng,
            minibatch_size=self.config.minibatch_size, learning_rate=learning_rate_of(self.config),
        )  # fmt: skip
        return seen

    def collect(self, request: Request, seeds: Tensor | None = None) -> tuple[Batch, Credit]:
        """Return a batch of one image per request, and its credit."""
        seeds = torch.arange(len(request)) if seeds is None else seeds
        batch = self.rollouts.collect(request, seeds, PhaseTimer(torch.device("cpu")))
        return batch, self.objective.credit(batch)

    def update(self, batch: Batch, credit: Credit, minibatch: Tensor) -> dict[str, float]:
        """Run one optimizer update on these images."""
        rate = self.config.engine.learning_rate
        return self.engine.update(self.objective.loss, batch, credit, [minibatch], rate)


def trainer_of(config: TrainConfig) -> Trainer:
    """Return the parts of a run with this config."""
    config.validate()
    generator = load_generator(config.model)
    engine = build_engine(config, Policy(generator, config.policy), CPU)
    sampler = build_sampler(config, generator, CPU.device)
    rollouts = build_rollouts(config, engine, CPU, sampler, build_reward(config.reward))
    return Trainer(config, engine, rollouts, config.objective, torch.Generator().manual_seed(config.seed))
