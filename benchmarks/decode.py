"""Compare the decoding speed of a LlamaGen model: this package's decoder against the method of the published one.

    python benchmarks/decode.py                  # GPT-B at 256 pixels with random weights, 8 images, guidance 2
    python benchmarks/decode.py --profile        # a profile of single steps

Both decoders have the same weights and take the most likely token at every step, so their tokens must agree. Each runs
in its own process, as a user would run it. The published decoder copies its cache at every token. By default, glibc may
return the memory of these copies to the system, which causes page faults at the next token, or may keep it, depending
on the state of its heap. Work counts only necessary operations: matrix products with the weights, and attention to the
positions so far.
"""

import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro
from measuring import matmul_peak
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato.data.imagenet_classes import imagenet_class_names
from sfumato.engine.memory import keep_freed_memory
from sfumato.families.llamagen.generator import LlamaGen
from sfumato.families.llamagen.network import Block, LlamaGenConfig
from sfumato.families.vq import VQConfig, VQModel
from sfumato.policy import Card
from sfumato.request import ClassInputs
from sfumato.settings import Settings


@dataclass(frozen=True)
class Arguments:
    """Settings of the benchmark."""

    depth: int = 12
    """number of blocks; the defaults are those of GPT-B"""
    width: int = 768
    """width of the residual stream"""
    num_heads: int = 12
    """number of attention heads"""
    feed_forward_width: int = 2048
    """hidden width of the feed-forward network"""
    grid_size: int = 16
    """side of the token map"""
    images: int = 8
    """number of images drawn at once"""
    guidance: float = 2.0
    """scale of classifier-free guidance"""
    threads: int = 2
    """number of torch threads"""
    repeats: int = 3
    """number of processes per decoder; the median of their times counts"""
    profile: bool = False
    """print a profile of 8 steps in the middle of the sequence instead of timings"""


def random_generator(arguments: Arguments) -> LlamaGen:
    """Build a class-conditional LlamaGen with random weights, including its head, which would start at zero."""
    torch.manual_seed(0)
    config = LlamaGenConfig(
        depth=arguments.depth,
        width=arguments.width,
        num_heads=arguments.num_heads,
        feed_forward_width=arguments.feed_forward_width,
    )
    tokenizer = VQModel(VQConfig(grid_size=arguments.grid_size))
    generator = LlamaGen(config, tokenizer, Card(family="llamagen", class_names=tuple(imagenet_class_names()))).eval()
    torch.nn.init.normal_(generator.network.head.weight, std=0.02)
    return generator


class PublishedDecoder:
    """A plain implementation of the published sampler's method.

    It has a static cache of the full length, rounded up to a multiple of 8, for the doubled batch. At every token and
    layer, it copies the whole cache (a repeat over key heads, by 1) and attends to it under a mask, with the plain
    attention kernel, because the sampler disables the fused ones. It always computes the unconditional half.
    """

    def __init__(self, generator: LlamaGen, labels: Tensor, guidance: float):
        self.network, config = generator.network, generator.config
        self.guidance, self.num_heads = guidance, config.num_heads
        self.labels = torch.cat([labels, torch.full_like(labels, config.num_classes)])
        self.rotation = self.network.positions(1, 1 + len(self.network.rotation))
        length = -(-len(self.rotation) // 8) * 8
        shape = (config.depth, len(self.labels), config.num_heads, length, config.head_width)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)
        self.mask = torch.ones(length, length, dtype=torch.bool).tril()
        self.position = torch.tensor([0])

    def step(self, tokens: Tensor | None) -> Tensor:
        """Return guided logits (B, 1, V) of the next token, given the previous token (None for the first token)."""
        if tokens is None:
            x = self.network.class_embedding(self.labels)[:, None]
        else:
            x = self.network.token_embedding(torch.cat([tokens, tokens]))
        for layer, block in enumerate(self.network.blocks):
            assert isinstance(block, Block)
            x = x + self.attend(block, layer, norm(x, block.attention_norm))
            gate, up = block.gate_up.weight.chunk(2)
            hidden = norm(x, block.feed_forward_norm)
            x = x + block.down(F.silu(F.linear(hidden, gate)) * F.linear(hidden, up))
        self.position = self.position + 1
        conditional, unconditional = self.network.head(norm(x, self.network.norm)).float().chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def attend(self, block: Block, layer: int, x: Tensor) -> Tensor:
        """Compute the attention of one position over the whole cache."""
        query, key, value = block.attention.qkv(x).unflatten(2, (3, self.num_heads, -1)).unbind(2)
        query, key, value = (h.transpose(1, 2) for h in (self.rotate(query), self.rotate(key), value))
        self.keys[layer][:, :, self.position] = key
        self.values[layer][:, :, self.position] = value
        keys, values = (cache[layer].repeat_interleave(1, dim=1) for cache in (self.keys, self.values))
        mask = self.mask[self.position].expand(len(x), 1, 1, -1)
        with sdpa_kernel(SDPBackend.MATH):
            out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return block.attention.proj(out.transpose(1, 2).flatten(2))

    def rotate(self, x: Tensor) -> Tensor:
        """Apply the rotary embedding, pair by pair."""
        pairs = x.float().unflatten(-1, (-1, 2))
        cosine, sine = self.rotation[self.position][:, None].unbind(-1)
        turned = [pairs[..., 0] * cosine - pairs[..., 1] * sine, pairs[..., 1] * cosine + pairs[..., 0] * sine]
        return torch.stack(turned, dim=-1).flatten(-2).type_as(x)


def norm(x: Tensor, module: torch.nn.RMSNorm) -> Tensor:
    """Compute the RMS norm, operation by operation."""
    wide = x.float()
    return (wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + (module.eps or 0))).type_as(x) * module.weight


def draw(step: Callable[[Tensor | None], Tensor], count: int) -> Tensor:
    """Draw the first `count` tokens greedily."""
    tokens: list[Tensor] = []
    for _ in range(count):
        tokens.append(step(tokens[-1] if tokens else None).argmax(-1))
    return torch.cat(tokens, dim=1)


def needed_operations(generator: LlamaGen, images: int, guidance: float) -> float:
    """Return the floating-point operations of drawing: two per weight and row, attention to the positions so far, and
    the head once per image, because it is linear."""
    rows = images * (1 if guidance in (0, 1) else 2)
    length = len(generator.units)
    blocks = 2 * sum(p.numel() for p in generator.network.blocks.parameters()) * length
    attention = 4 * generator.config.width * generator.config.depth * length * (length + 1) // 2
    head = 2 * generator.network.head.weight.numel() * length
    return rows * (blocks + attention) + images * head


def profile(name: str, step: Callable[[Tensor | None], Tensor], length: int, images: int) -> None:
    """Print the operations that take the most time in 8 steps around the middle of the sequence."""
    draw(step, length // 2)
    token = torch.zeros(images, 1, dtype=torch.int64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(8):
            step(token)
    print(name, profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=40))


@dataclass(frozen=True)
class Drawing:
    """The measurement of one process."""

    seconds: float
    """time for all tokens"""
    page_faults: int
    """number of memory pages of 4 KiB that the system had to provide meanwhile"""
    tokens: Tensor
    """drawn tokens (B, L)"""
    peak: float
    """operations per second of square matrix products, measured afterwards"""


@torch.no_grad()
def measure(decoder: str, arguments: Arguments) -> Drawing | None:
    """Draw once with "published", "published, freed memory kept" or "sfumato", or print a profile and return None."""
    if decoder != "published":
        keep_freed_memory()  # as the `sfumato` command does, unlike the published sampler
    torch.set_num_threads(arguments.threads)
    generator = random_generator(arguments)
    length, labels = len(generator.units), torch.arange(arguments.images) * 97 % 1000
    if decoder == "sfumato":
        state = generator.start(ClassInputs(labels=labels), Settings(guidance=arguments.guidance))

        def step(tokens: Tensor | None) -> Tensor:
            return generator.step(state, tokens)
    else:
        step = PublishedDecoder(generator, labels, arguments.guidance).step
    if arguments.profile:
        return profile(decoder, step, length, arguments.images)
    faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    tokens = draw(step, length)
    seconds = time.perf_counter() - began
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return Drawing(seconds, faults, tokens, matmul_peak(torch.device("cpu"), torch.float32))


def main(arguments: Arguments) -> None:
    """Run each decoder in its own processes, compare their tokens, and print the table."""
    generator = random_generator(arguments)
    length, work = len(generator.units), needed_operations(generator, arguments.images, arguments.guidance)
    parameters = sum(p.numel() for p in generator.network.parameters())
    print(
        f"{parameters / 1e6:.0f} M parameters, {arguments.images} images of {length} tokens, guidance "
        f"{arguments.guidance}, float32: torch {torch.__version__}, {arguments.threads} threads, {platform.machine()}; "
        f"{work / 1e9:.0f} GFLOP needed\n\n"
        "| decoder | seconds | ms per token | page faults per token | images/s | GFLOP/s | share of peak |\n"
        "|---|---|---|---|---|---|---|",
        flush=True,
    )
    medians: dict[str, float] = {}
    drawn: list[Tensor] = []
    for decoder in ("published", "published, freed memory kept", "sfumato"):
        times: list[float] = []
        for _ in range(1 if arguments.profile else arguments.repeats):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                drawing = pool.submit(measure, decoder, arguments).result()
            if drawing is None:
                continue
            times.append(drawing.seconds)
            drawn.append(drawing.tokens)
            rate = work / drawing.seconds
            print(
                f"| {decoder} | {drawing.seconds:.1f} | {1000 * drawing.seconds / length:.0f} | "
                f"{drawing.page_faults / length:.0f} | {arguments.images / drawing.seconds:.3f} | {rate / 1e9:.0f} | "
                f"{rate / drawing.peak:.0%} of {drawing.peak / 1e9:.0f} |",
                flush=True,
            )
        medians[decoder] = statistics.median(times) if times else 0.0
    if drawn:
        plain, kept, ours = medians.values()
        same = min((tokens == drawn[0]).float().mean().item() for tokens in drawn)
        print(
            f"\n{plain / ours:.1f} and {kept / ours:.1f} times as fast; at least {same:.2%} of the tokens are the same"
        )


if __name__ == "__main__":
    main(tyro.cli(Arguments))
