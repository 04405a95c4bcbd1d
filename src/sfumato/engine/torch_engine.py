"""The engine: it trains the policy's network with PyTorch, replicated or sharded, whole or through adapters."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.utils._pytree import tree_map_only

from sfumato.capabilities import ReducesLogits
from sfumato.engine.checkpoint import ShardWriter, fingerprint, load_state
from sfumato.engine.ema import Average
from sfumato.engine.engine import Loss
from sfumato.engine.engine_config import EngineConfig
from sfumato.engine.graphs import GraphedSampler, Recordable
from sfumato.engine.lora import add_adapters, without_adapters
from sfumato.engine.optimizer import build_optimizer, clip, step
from sfumato.engine.precision import autocast
from sfumato.engine.process import Process
from sfumato.engine.recomputation import compile_blocks, recompute_blocks
from sfumato.engine.replicated import Replicated, full, like, snapshot
from sfumato.engine.sharded import Sharded
from sfumato.errors import UserError
from sfumato.families.adapters import Adapter, saved_name
from sfumato.families.family import Family
from sfumato.families.folder import load_shards, read_tensors
from sfumato.families.library import find_family, save_model
from sfumato.objectives import Credit
from sfumato.policy import Policy
from sfumato.request import Request
from sfumato.rollout import Batch, Fork, Rollout
from sfumato.settings import Settings

BY_POSITION = ("ratio_mean", "clip_fraction")
"""Figures that change from update to update within a step, so they are also logged for each."""


class TorchEngine:
    """Float32 weights, AdamW, and a frozen reference.

    The layout of the parameters is `Replicated` or `Sharded`. The reference is a copy of the network as it was before
    training, or with adapters the network without them.
    """

    def __init__(
        self,
        policy: Policy,
        config: EngineConfig,
        process: Process,
        *,
        base: Mapping[str, str | None],
        keep_reference: bool = True,
        with_entropy: bool = False,
        scoring: Settings | None = None,
    ):
        """Take over a policy's network.

        Args:
            policy: the policy that draws images; its network is trained.
            config: optimizer, precision, memory and processes.
            process: this process among its peers.
            base: the arguments of `load_generator` that the policy was loaded with; saved adapters refer to it.
            keep_reference: whether `reference` will be called.
            with_entropy: whether the loss gets the entropy too.
            scoring: settings for ratios and the KL; the policy's by default.

        Raises:
            UserError: the family has no blocks or layers for what the config asks for, or an extra is missing.
        """
        self.policy, self.config, self.process = policy, config, process
        self.scorer = self._scoring(policy, scoring or policy.settings)
        generator, network = policy.generator, policy.generator.network
        family = find_family(generator.card.family)
        self.base = fingerprint(network)
        self.layout = build_layout(config, process)
        self.adapter: Adapter | None = None
        self._frozen: nn.Module | None = None
        if config.lora_rank:
            targets = config.lora_targets or family.lora_targets
            add_adapters(network, targets, config.lora_rank, config.lora_alpha)
            if config.precision == "bf16":
                halve(family.blocks(network))
            self.adapter = Adapter(base=base, rank=config.lora_rank, alpha=config.lora_alpha, targets=targets)
        elif keep_reference:
            self._frozen = copy.deepcopy(network).requires_grad_(False).eval()
        self._has_reference, self._with_entropy = keep_reference, with_entropy
        if self._frozen is not None:
            if config.precision == "bf16":
                halve(family.blocks(self._frozen))
            if config.offload_reference:
                self._frozen.to("cpu")
            else:
                self.layout.place(self._frozen, family.blocks(self._frozen))
        blocks = family.blocks(network)
        self._drawer = self._build_drawer(family)
        if not blocks and (config.activation_checkpointing or config.compile):
            field = "activation_checkpointing" if config.activation_checkpointing else "compile"
            raise UserError(f"{field}: the family {family.name} names no blocks; turn it off")
        if config.activation_checkpointing:
            recompute_blocks(blocks, config.activation_checkpointing)
        if config.compile:
            compile_blocks(blocks)
        self.layout.place(network, blocks)
        self.trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.parameters = list(self.trained.values())
        self.optimizer = build_optimizer(config, self.parameters)
        self.average = Average(self.trained, config.ema_decay, config.ema_start) if config.ema_decay else None
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.shards = ShardWriter()

    def _build_drawer(self, family: Family) -> GraphedSampler | None:
        """Return a sampler that replays CUDA graphs, if the policy's steps can be recorded.

        Under autocast it has a copy of the network whose linear layers hold bfloat16: the same numbers, ready to use.
        """
        policy, config = self.policy, self.config
        constant = not isinstance(policy.settings.temperature, tuple) and not policy.settings.truncates
        able = isinstance(policy.generator, Recordable) and isinstance(self.layout, Replicated) and constant
        if not (config.cuda_graphs and able and self.process.device.type == "cuda"):
            return None
        if config.precision != "bf16":
            return GraphedSampler(policy)
        twin = copy.deepcopy(policy.generator.network).requires_grad_(False).eval()
        halve(family.blocks(twin))
        if config.compile:
            compile_blocks(family.blocks(twin))
        self.layout.place(twin, ())
        return GraphedSampler(Policy(policy.generator.with_network(twin), policy.settings))

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights to the network that draws, if that is another one."""
        if self._drawer is None:
            return
        ours, theirs = self.policy.generator.network, self._drawer.policy.generator.network
        if theirs is not ours:
            for parameter, copied in zip(ours.parameters(), theirs.parameters(), strict=True):
                copied.copy_(parameter)

    def sample(
        self, request: Request, seeds: Int[Tensor, " B"], fork: Fork | None = None, count: int | None = None
    ) -> Rollout:
        """Draw as `policy.sample` does; CUDA graphs, whose memory has as many rows at every token, draw no trees and no
        first units alone."""
        if fork or count or self._drawer is None:
            return self.policy.sample(request, seeds, fork, count)
        return self._drawer.sample(request, seeds)

    def _scoring(self, policy: Policy, settings: Settings) -> Policy:
        """Return the policy for ratios and the KL."""
        positions = self.config.logit_positions
        if positions and not isinstance(policy.generator, ReducesLogits):
            raise UserError(f"logit_positions: {policy.generator.card.family} cannot score in parts; set it to 0")
        if settings == policy.settings and not positions:
            return policy
        return Policy(policy.generator, settings, positions)

    @property
    def reference_beside(self) -> bool:
        """Whether the reference is a network of its own, and neither moves nor communicates."""
        alone = self._frozen is not None and not self.config.offload_reference
        return alone and isinstance(self.layout, Replicated)

    @contextmanager
    def reference(self) -> Iterator[Policy]:
        """Provide the model as it was before training."""
        generator, settings = self.policy.generator, self.scorer.settings
        if not self._has_reference:
            raise RuntimeError("no reference is kept, because the objective needs none")
        if self._frozen is None:
            with without_adapters(generator.network):
                yield self.scorer
            return
        frozen = Policy(generator.with_network(self._frozen), settings, self.config.logit_positions)
        if not self.config.offload_reference:
            yield frozen
            return
        self._frozen.to(self.process.device)
        try:
            yield frozen
        finally:
            self._frozen.to("cpu")

    def drawing(self) -> AbstractContextManager[None]:
        """Return a context for drawing images: sharded parameters stay gathered, if the config says so."""
        self.refresh()
        if not self.config.gather_for_rollouts:
            return nullcontext()
        return self.layout.gathered(self.policy.generator.network)

    def autocast(self) -> torch.autocast:
        """Return a context with bfloat16 arithmetic if the config asks for it; weights stay float32."""
        return autocast(self.process.device, self.config.precision)

    def update(
        self,
        loss: Loss,
        batch: Batch,
        credit: Credit,
        minibatches: Sequence[Int[Tensor, " M"]],
        learning_rate: float,
    ) -> dict[str, float]:
        """Make one optimizer update per minibatch; every process takes an equal share of it, in micro-batches."""
        # With a single update nothing changes before it, so the log-probabilities of its own pass are the old ones.
        on_policy = self.config.recompute_log_probs and len(minibatches) == 1
        taught = None if credit.taught is None else credit.taught.cpu()
        updates = []
        for minibatch in minibatches:
            part = taught_images(minibatch, taught, self.process.count)
            updates.append(self._update(loss, batch, credit, part, len(minibatch), learning_rate, on_policy))
        means = {name: sum(update[name] for update in updates) / len(updates) for name in updates[0]}
        if len(updates) > 1:
            means |= {
                f"{name}/{number}": update[name]
                for name in BY_POSITION
                if name in means
                for number, update in enumerate(updates, 1)
            }
        # Nothing was updated yet when the first minibatch was scored: what differs there is arithmetic, not learning.
        return {**means, **{name: value for name, value in updates[0].items() if name.startswith("mismatch/")}}

    def _update(
        self,
        loss: Loss,
        batch: Batch,
        credit: Credit,
        taught: Int[Tensor, " N"],
        size: int,
        learning_rate: float,
        on_policy: bool,
    ) -> dict[str, float]:
        """Make one optimizer update with the images that teach something, of a minibatch of `size`.

        Returns the means of the loss's figures, and the norm of the gradient.
        """
        process, totals, largest = self.process, {}, []
        mine = taught[process.rank :: process.count].split(self.config.micro_batch_size)
        for number, index in enumerate(mine, 1):
            part = batch[index]
            drawn, scorer = part.rollout, self.scorer
            entropy: Sequence[Tensor] = ()
            with self.autocast():
                scored = (drawn.request, drawn.tokens, drawn.units, drawn.context)
                if self._with_entropy:
                    log_probs, *entropy = scorer.log_probs_and_entropy(*scored)
                else:
                    log_probs = scorer.log_probs(*scored)
            change = log_probs.detach() - drawn.log_probs
            if on_policy:
                part = replace(part, rollout=replace(drawn, log_probs=log_probs.detach()))
            value, figures = loss(log_probs, part, credit[index], *entropy)
            self.layout.backward(value * (len(index) / size), last=number == len(mine))
            mismatch = {"mismatch/mean": change.abs().mean(), "mismatch/ratio": change.exp().mean()}
            largest.append(change.abs().max())
            for name, figure in {**figures, **mismatch}.items():
                totals[name] = totals.get(name, 0.0) + len(index) / len(taught) * figure.detach()
        norm = clip(self.optimizer, self.config.max_grad_norm)
        seen = torch.stack([*totals.values(), torch.stack(largest).max(), norm])
        rows = process.gather(seen[None]).tolist()  # the only time that the CPU waits for the GPU
        step(self.optimizer, learning_rate, rows[0][-1])
        if self.average is not None:
            self.average.update()
        *sums, _, _ = (sum(column) for column in zip(*rows, strict=True))
        extremes = {"mismatch/max": max(row[-2] for row in rows), "grad_norm": rows[0][-1]}
        skipped = {} if credit.taught is None else {"skipped_images": 1 - len(taught) / size}
        return {**dict(zip(totals, sums, strict=True)), **extremes, **skipped}

    def save(self, folder: Path, previous: Path | None = None) -> Callable[[], None]:
        """Write `model/`, and `engine.pt` or, if whole parameters are sharded, `shards/`."""
        generator, parts = self.policy.generator, {}
        state: dict[str, Any] = {"base": self.base}
        if self.average is not None:
            state["updates"] = self.average.updates
        sharded = isinstance(self.layout, Sharded) and self.adapter is None
        if not sharded:
            trained = generator.network.state_dict() if self.adapter is None else self.trained
            averages = {} if self.average is None else {**trained, **self.average.tensors}
            stem, name_of = ("transformer", str) if self.adapter is None else ("adapter", saved_name)
            for name, tensors in ((stem, trained), (f"{stem}_ema", averages)):
                if tensors:
                    parts[name] = {name_of(key): snapshot(tensor) for key, tensor in tensors.items()}
            state["optimizer"] = tree_map_only(Tensor, snapshot, self.optimizer.state_dict())
        tokenizer = None if previous is None else previous / "model/tokenizer.safetensors"

        def write() -> None:
            save_model(folder / "model", generator, tokenizer=tokenizer, parts=parts, adapter=self.adapter)
            torch.save(state, folder / "engine.pt")

        waits: list[Callable[[], object]] = []
        if self.process.is_main:
            waits.append(self.pool.submit(write).result)
        if sharded:
            waits.append(self.shards.save(self._sharded_state(), folder / "shards"))

        def finish() -> None:
            for wait in waits:
                wait()

        return finish

    def load(self, folder: Path) -> None:
        """Restore a checkpoint, sharded or whole, whatever the layout is now. Version 0.1 kept all in `state.pt`."""
        file, network = folder / "engine.pt", self.policy.generator.network
        state = load_state(file if file.is_file() else folder / "state.pt")
        depends = self._has_reference or self.adapter is not None
        if depends and state.get("base", self.base) != self.base:
            raise UserError("model: its weights differ from those that the run started with; restore them to resume")
        if (folder / "shards").is_dir():
            restored = self._sharded_state()
            load_shards(restored, folder / "shards", together=self.process.count > 1)
            set_state_dict(
                network,
                self.optimizer,
                model_state_dict=restored["network"],
                optim_state_dict=restored["optimizer"],
            )
            if self.average is not None:
                self.average.updates = state["updates"]
            return
        stem, own = "transformer", network.state_dict()
        if self.adapter is not None:
            stem, own = "adapter", {saved_name(name): parameter for name, parameter in self.trained.items()}
        with torch.no_grad():
            for name, tensor in read_tensors(folder / f"model/{stem}.safetensors").items():
                own[name].copy_(like(own[name], tensor))
        restore_optimizer(self.optimizer, state["optimizer"])
        if self.average is not None:
            tensors = read_tensors(folder / f"model/{stem}_ema.safetensors")
            name_of = str if self.adapter is None else saved_name
            averages = {name: tensors[name_of(name)] for name in self.average.tensors}
            self.average.load(averages, state["updates"])

    def _sharded_state(self) -> dict[str, Any]:
        """Return the parts of this process, in the form that distributed checkpoints have for any number of them."""
        network, optimizer = get_state_dict(self.policy.generator.network, self.optimizer)
        averages = {} if self.average is None else {"ema": self.average.tensors}
        return {"network": network, "optimizer": optimizer, **averages}

    def weights(self) -> Mapping[str, Tensor]:
        """Return the network's tensors by name, whole."""
        return {name: full(tensor) for name, tensor in self.policy.generator.network.state_dict().items()}


def build_layout(config: EngineConfig, process: Process) -> "Replicated | Sharded":
    """Return the layout of the parameters; a single process holds all of them."""
    if config.sharding == "none" or process.count == 1:
        return Replicated(process)
    return Sharded(process, hybrid=config.sharding == "hybrid", half=config.precision == "bf16")


def halve(blocks: Iterable[nn.Module]) -> None:
    """Keep frozen weights of linear layers in bfloat16, as autocast would use them: the numbers are the same."""
    for block in blocks:
        for module in block.modules():
            if isinstance(module, nn.Linear) and not module.weight.requires_grad:
                module.to(torch.bfloat16)


def taught_images(minibatch: Int[Tensor, " M"], taught: Tensor | None, count: int) -> Int[Tensor, " N"]:
    """Return the images of a minibatch that teach something, first, and as many others as an equal division needs."""
    if taught is None:
        return minibatch
    useful = taught[minibatch]
    kept, others = minibatch[useful], minibatch[~useful]
    padding = -len(kept) % count or (0 if len(kept) else count)
    return torch.cat([kept, others[:padding]])


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimizer, whose tensors are whole; each process keeps its part of them."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim:
                values[name] = like(parameters[number], value)
    optimizer.load_state_dict(state)
