"""The dense engine: every process holds all weights, and gradients are summed over the processes."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from sfumato.engine.checkpoint import fingerprint, load_state
from sfumato.engine.engine import Loss
from sfumato.engine.engine_config import EngineConfig
from sfumato.engine.optimizer import clip_and_step
from sfumato.engine.process import Process
from sfumato.engine.recomputation import recompute_blocks
from sfumato.errors import UserError
from sfumato.families.folder import read_tensors
from sfumato.families.library import find_family, save_model
from sfumato.objectives import Credit
from sfumato.policy import Policy
from sfumato.rollout import Batch
from sfumato.settings import Settings


class DenseEngine:
    """Replicated float32 weights, AdamW, and a frozen copy of the network as the reference."""

    def __init__(
        self,
        policy: Policy,
        config: EngineConfig,
        process: Process,
        *,
        keep_reference: bool = True,
        scoring: Settings | None = None,
    ):
        """Take over a policy's network.

        Args:
            policy: the policy that draws images; its network is trained.
            config: optimizer, precision and memory.
            process: this process among its peers.
            keep_reference: whether `reference` will be called.
            scoring: settings for ratios and the KL; the policy's by default.

        Raises:
            UserError: the family has no blocks whose activations could be recomputed.
        """
        self.policy, self.config, self.process = policy, config, process
        self.scorer = policy if scoring in (None, policy.settings) else Policy(policy.generator, scoring)
        network = policy.generator.network
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.base = fingerprint(network)
        self._reference: Policy | None = None
        if keep_reference:
            frozen = copy.deepcopy(network).requires_grad_(False).eval()
            self._reference = Policy(policy.generator.with_network(frozen), self.scorer.settings)
        if config.activation_checkpointing:
            family = policy.generator.card.family
            blocks = find_family(family).blocks(network)
            if not blocks:
                raise UserError(f"activation_checkpointing: the family {family} names no blocks; set it to 0")
            recompute_blocks(blocks, config.activation_checkpointing)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
        )

    @contextmanager
    def reference(self) -> Iterator[Policy]:
        """Provide the frozen copy of the network as it was before training."""
        if self._reference is None:
            raise RuntimeError("no reference is kept, because the objective needs none")
        yield self._reference

    def autocast(self) -> torch.autocast:
        """Return a context with bfloat16 arithmetic if the config asks for it; weights stay float32."""
        return torch.autocast(self.process.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def update(
        self,
        loss: Loss,
        batch: Batch,
        credit: Credit,
        minibatches: Iterable[Int[Tensor, " M"]],
        learning_rate: float,
    ) -> dict[str, float]:
        """Make one optimizer update per minibatch; every process takes an equal share of it, in micro-batches."""
        updates = [self._update(loss, batch, credit, minibatch, learning_rate) for minibatch in minibatches]
        means = {name: sum(update[name] for update in updates) / len(updates) for name in updates[0]}
        # Nothing was updated yet when the first minibatch was scored: what differs there is arithmetic, not learning.
        return {**means, "mismatch": updates[0]["mismatch"]}

    def _update(
        self, loss: Loss, batch: Batch, credit: Credit, minibatch: Int[Tensor, " M"], learning_rate: float
    ) -> dict[str, float]:
        """Make one optimizer update; return the loss's figures, the norm of the gradient, and the mismatch: the mean
        absolute difference (nats) of the log-probabilities from those of the rollout."""
        process, totals = self.process, {}
        mine = minibatch[process.rank :: process.count]
        for index in mine.to(process.device).split(self.config.micro_batch_size):
            part = batch[index]
            with self.autocast():
                log_probs = self.scorer.log_probs(part.rollout.request, part.rollout.tokens)
            value, figures = loss(log_probs, part, credit[index])
            share = len(index) / len(minibatch)
            (value * share).backward()
            mismatch = (log_probs.detach() - part.rollout.log_probs).abs().mean()
            for name, figure in {**figures, "mismatch": mismatch}.items():
                totals[name] = totals.get(name, 0.0) + share * figure.detach()
        process.sum_gradients(self.parameters)
        norm = clip_and_step(self.optimizer, learning_rate, self.config.max_grad_norm)
        summed = process.gather(torch.stack(list(totals.values()))[None]).sum(0).tolist()
        return {**dict(zip(totals, summed, strict=True)), "grad_norm": norm}

    def save(self, folder: Path, previous: Path | None = None) -> None:
        """Write `model/` and `engine.pt`. The frozen tokenizer is hard-linked to the previous checkpoint's file."""
        if not self.process.is_main:
            return
        tokenizer = None if previous is None else previous / "model/tokenizer.safetensors"
        save_model(folder / "model", self.policy.generator, tokenizer=tokenizer)
        torch.save({"optimizer": self.optimizer.state_dict(), "base": self.base}, folder / "engine.pt")

    def load(self, folder: Path) -> None:
        """Restore a checkpoint. Version 0.1 kept the optimizer in `state.pt`."""
        file = folder / "engine.pt"
        state = load_state(file if file.is_file() else folder / "state.pt")
        if self._reference is not None and state.get("base", self.base) != self.base:
            raise UserError("model: its weights differ from those that the run started with; restore them to resume")
        self.policy.generator.network.load_state_dict(read_tensors(folder / "model/transformer.safetensors"))
        self.optimizer.load_state_dict(state["optimizer"])

    def weights(self) -> Mapping[str, Tensor]:
        """Return the network's tensors by name."""
        return self.policy.generator.network.state_dict()
