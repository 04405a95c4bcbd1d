"""Sharded parameters: every process holds a part of each, and gathers a block only while it computes (FSDP2)."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from sfumato.engine.process import Process
from sfumato.errors import UserError


class Sharded:
    """Layout in which parameters, gradients and optimizer state are divided among the processes."""

    def __init__(self, process: Process, *, hybrid: bool = False, half: bool = False):
        """Define how parameters are divided.

        Args:
            process: this process among its peers.
            hybrid: divide among the processes of a machine, and replicate over the machines.
            half: gather the blocks in bfloat16, as autocast would use them, at half the traffic.

        Raises:
            UserError: the machines have different numbers of processes.
        """
        self.process, self.mesh = process, build_mesh(process, hybrid)
        # Inputs keep their type: autocast converts them where products are computed, as in a replicated network.
        precision = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        self.of_blocks, self.of_root = precision, MixedPrecisionPolicy(cast_forward_inputs=False)

    def place(self, network: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Divide the parameters of a network, block by block, and move this process's parts to its device."""
        for block in blocks:
            fully_shard(block, mesh=self.mesh, mp_policy=self.of_blocks)
        fully_shard(network, mesh=self.mesh, mp_policy=self.of_root)
        for module in fsdp_modules(network):
            module.set_gradient_divide_factor(1.0)  # losses are divided by the whole minibatch already
            module.set_force_sum_reduction_for_comms(True)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Back-propagate the loss of a micro-batch; gradients are summed and divided as blocks finish.

        This happens for every micro-batch: to wait for the last one would keep whole gradients in every process.
        """
        loss.backward()

    @contextmanager
    def gathered(self, network: nn.Module) -> Iterator[None]:
        """Keep all parameters of a network in memory, once they are gathered, so that each token need not."""
        modules = fsdp_modules(network)
        for module in modules:
            module.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for module in modules:
                module.set_reshard_after_forward(module is not network, recurse=False)
                module.reshard()


def build_mesh(process: Process, hybrid: bool) -> DeviceMesh:
    """Return the grid of processes: one axis, or with `hybrid` machines × processes of a machine."""
    kind, count = process.device.type, process.count
    if not hybrid:
        return init_device_mesh(kind, (count,), mesh_dim_names=("shard",))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if count % local:
        raise UserError(f"sharding: hybrid needs equally many processes on every machine, not {local} of {count}")
    return init_device_mesh(kind, (count // local, local), mesh_dim_names=("replicate", "shard"))


def fsdp_modules(network: nn.Module) -> list[FSDPModule]:
    """Return the modules of a network that gather their own parameters."""
    return [module for module in network.modules() if isinstance(module, FSDPModule)]
