"""Drawing of next-token images with CUDA graphs: one launch for each token instead of hundreds.

A step of a small batch takes less time on the GPU than its launches take on the CPU: LlamaGen-XL launches several
hundred kernels for each of 576 tokens. Steps that run the same kernels on the same memory are recorded once and
replayed.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int, Integer
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from sfumato.policy import DECODING_KERNELS, Policy, uniform_numbers
from sfumato.request import Request
from sfumato.rollout import Rollout


@runtime_checkable
class Recordable(Protocol):
    """A generator whose decoding steps can be recorded. Its states have `advance() -> numbers` (of rows and keys)."""

    def start(self, inputs: Any, settings: Any, reuse: Any, /) -> Any:
        """Return a state; it is `reuse` itself, with new contents, if that has the right memory."""
        ...

    def compute(self, state: Any, drawn: Int[Tensor, "B 1"], rows: int, end: int, /) -> Tensor:
        """Return the logits of the next token; equal numbers mean the same computation on the same memory."""
        ...


def record_cuda(function: Callable[[], None]) -> Callable[[], None]:
    """Record a function's kernels without running them; return a function that runs them with a single launch."""
    graph = torch.cuda.CUDAGraph()
    # One pool for all: they never run at the same time, and keep nothing in it from one launch to the next.
    with torch.cuda.graph(graph, pool=_pool()):
        function()
    return graph.replay


_pool = functools.cache(lambda: torch.cuda.graph_pool_handle())


class GraphedSampler:
    """Draws as `Policy.sample` does, and gives the same tokens.

    The weights that recorded kernels read must stay in place, and must not be converted: under autocast, float32
    weights would be converted again for every token.
    """

    def __init__(self, policy: Policy, record: Callable[[Callable[[], None]], Callable[[], None]] = record_cuda):
        """Prepare to draw.

        Args:
            policy: policy whose generator is `Recordable`, with the same settings for all tokens.
            record: see `record_cuda`; replaced in tests.
        """
        self.policy, self._record = policy, record
        self._state: Any = None
        self._graphs: dict[Hashable, Callable[[], None] | None] = {}

    @torch.no_grad()
    @sdpa_kernel(DECODING_KERNELS)
    def sample(self, request: Request, seeds: Integer[Tensor, " B"]) -> Rollout:
        """Sample one image per request, as tokens; see `Policy.sample`."""
        device, settings = self.policy.device, self.policy.settings
        generator: Any = self.policy.generator  # Recordable
        count = len(generator.units)
        uniforms = uniform_numbers(seeds, count).to(device)
        state = generator.start(request.inputs.to(device), settings, self._state)
        if state is not self._state:  # other memory: what was recorded is of no use
            self._state, self._graphs = state, {}
            self._uniforms, self._number = uniforms.clone(), torch.zeros(1, dtype=torch.int64, device=device)
            self._tokens = torch.zeros(uniforms.shape, dtype=torch.int64, device=device)
            self._log_probs, self._entropy = torch.zeros_like(uniforms), torch.zeros_like(uniforms)
        self._uniforms.copy_(uniforms)
        self._number.zero_()
        self._choose(generator.step(state, None))
        for _ in range(count - 1):
            self._advance(generator, state)
        return Rollout(
            request=request,
            tokens=self._tokens.clone(),
            log_probs=self._log_probs.clone(),
            entropy=self._entropy.clone(),
            units=tuple(generator.units),
        )

    def _advance(self, generator: Recordable, state: Any) -> None:
        """Draw the next token; the first step of its kind prepares the kernels, and the second is recorded."""
        numbers = state.advance()
        step = functools.partial(self._step, generator, state, *numbers)
        if numbers not in self._graphs:
            self._graphs[numbers] = None
            step()
            return
        graph = self._graphs[numbers]
        if graph is None:
            graph = self._graphs[numbers] = self._record(step)
        graph()

    def _step(self, generator: Recordable, state: Any, rows: int, end: int) -> None:
        drawn = self._tokens.index_select(1, self._number - 1)
        self._choose(generator.compute(state, drawn, rows, end))

    def _choose(self, logits: Tensor) -> None:
        """Draw the next token, and write it down."""
        uniforms = self._uniforms.index_select(1, self._number)
        drawn, log_prob, entropy = self.policy.choose(logits, 0, uniforms)
        for place, value in ((self._tokens, drawn), (self._log_probs, log_prob), (self._entropy, entropy)):
            place.index_copy_(1, self._number, value)
        self._number += 1
