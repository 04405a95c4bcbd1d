"""The meter: bytes, kernels, operations and waiting, on real tensors and on those of a fake GPU."""

import pytest
import torch
import torch.nn.functional as F

from sfumato.engine.fake_cuda import fake_cuda
from sfumato.engine.meter import HostSyncError, Meter

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_memory_of_real_tensors():
    with Meter(CPU) as meter:
        a = torch.ones(100)  # 400 bytes
        b = a[10:20]  # a view takes no memory
        with meter.phase("sum"):
            c = (a + 1) + 1  # the first sum is freed after the second
        assert (meter.live, meter.phases["sum"].peak) == (800, 1200)
        del a
        assert meter.live == 800  # `b` holds the memory
        del b
        assert meter.live == 400
        del c
    assert meter.live == 0


def test_memory_that_autograd_holds():
    weight = torch.ones(10, requires_grad=True)
    with Meter(CPU) as meter:
        loss = (weight * 2).exp().sum()
        assert meter.live == 40 + 4  # the exponential is kept for the backward pass, the product is not
        loss.backward()
        del loss
        assert meter.live == 40  # the gradient


def test_parameters_from_before_count_once_they_are_added():
    layer = torch.nn.Linear(3, 2)
    meter = Meter(CPU)
    meter.add(layer)
    meter.add(layer)
    assert meter.live == 4 * (6 + 2)
    del layer
    assert meter.live == 0


def test_memory_of_a_fake_gpu_is_rounded_to_its_blocks():
    with fake_cuda(), Meter(CUDA) as meter:
        a = torch.ones(100, device="cuda")
        b = torch.ones(100)  # on the CPU
        assert meter.live == 512
        c = a.view(10, 10).t().contiguous()
        assert meter.live == 1024
        del a, b, c
    assert meter.live == 0


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_kernels_and_operations_by_phase(device: torch.device):
    with fake_cuda(), Meter(device) as meter:
        a = torch.ones(4, 3, device=device)
        with meter.phase("product"):
            b = a @ a.t()  # 2 · 4 · 3 · 4 operations; the transposed view runs no kernel
        with meter.phase("others"):
            c = b.view(-1).unflatten(0, (2, 8))[1].detach()
            torch.empty(3, device=device)
            _ = F.relu(c) + 1
        with meter.phase("product"):
            _ = a @ a.t()
    product, others = meter.phases["product"], meter.phases["others"]
    assert (product.kernels, product.flops) == (2, 2 * 96)
    assert (others.kernels, others.flops) == (2, 0)


def wait_for_a_number(x: torch.Tensor) -> float:
    return x.sum().item()


@pytest.mark.parametrize(
    "waiting",
    [
        wait_for_a_number,
        lambda x: bool((x > 0).all()),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.unique(),
        lambda x: x.nonzero(),
        lambda x: torch.empty(3).copy_(x),
        lambda x: torch.tensor([1, 2], device="cuda"),
        lambda x: x.new_tensor(1.0),
        lambda x: torch.ones(3).to(x.device),
    ],
)
def test_the_cpu_must_not_wait(waiting):
    with fake_cuda(), Meter(CUDA) as meter:
        x = torch.ones(3, device="cuda")
        assert meter.phases == {}
        with meter.phase("free"):
            waiting(x)
        assert len(meter.phases["free"].syncs) == 1
        with meter.phase("forbidden"), meter.without_sync(), pytest.raises(HostSyncError, match=r"test_meter.py:\d+"):
            waiting(x)


@pytest.mark.parametrize(
    "independent",
    [
        lambda x: x[torch.ones(3, dtype=torch.int64, device="cuda")],
        lambda x: torch.ones(3).to("cuda", non_blocking=True),
        lambda x: torch.arange(3, device="cuda"),
        lambda x: torch.ones(3).unique(),  # on the CPU
        lambda x: x.to(torch.bfloat16),
        lambda x: x.masked_fill(x > 0, 0.0),
    ],
)
def test_the_cpu_need_not_wait(independent):
    with fake_cuda(), Meter(CUDA) as meter, meter.without_sync():
        independent(torch.ones(3, device="cuda"))


def test_recorded_kernels_count_when_they_are_replayed():
    with fake_cuda(), Meter(CUDA) as meter:
        a = torch.ones(4, 3, device="cuda")
        with meter.phase("drawing") as phase:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                _ = a @ a.t() + 1
            assert (phase.kernels, phase.flops) == (0, 0)
            for _ in range(3):
                graph.replay()
    assert (phase.kernels, phase.flops) == (6, 3 * 96)
