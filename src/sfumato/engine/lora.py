"""Low-rank adapters (LoRA, Hu et al. 2021) through peft: only they are trained, and without them the network is the
reference."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from sfumato.errors import UserError


def add_adapters(network: nn.Module, targets: Sequence[str], rank: int, alpha: int) -> None:
    """Add an adapter to each target layer, in place, and freeze everything else.

    A layer y = W x becomes y = W x + alpha/rank · B A x. B starts at zero, so nothing changes yet.

    Args:
        network: network whose linear layers get adapters.
        targets: last parts of the names of these layers.
        rank: rank of the product B A.
        alpha: scale of the adapters.

    Raises:
        UserError: peft is not installed, or no layer has one of these names.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError('lora_rank: adapters need peft; install it with pip install "sfumato[lora]"') from error
    names = {name.rpartition(".")[2] for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    unknown = [target for target in targets if target not in names]
    if unknown or not targets:
        raise UserError(
            f"lora_targets: {unknown or '()'} are not linear layers of this network; choose from {sorted(names)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # all processes, and all runs, start from the same A
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)), network)


@contextmanager
def without_adapters(network: nn.Module) -> Iterator[None]:
    """Turn the adapters off.

    peft's own switch also changes `requires_grad`, which sharded parameters must never do after the first pass.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
