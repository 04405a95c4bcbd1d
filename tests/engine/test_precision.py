"""Precision of the arithmetic by device."""

import pytest
import torch

from sfumato.engine import process
from sfumato.engine.fake_cuda import fake_cuda
from sfumato.engine.precision import Precision, autocast
from sfumato.engine.process import find_device

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_on_the_cpu(precision: Precision, dtype: torch.dtype):
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.bfloat16), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_on_a_gpu(precision: Precision, dtype: torch.dtype):
    with fake_cuda() as device, autocast(device, precision):
        assert (torch.ones(2, 2, device=device) @ torch.ones(2, 2, device=device)).dtype == dtype


def test_a_gpu_multiplies_float32_in_tf32(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        find_device("cpu")
        assert torch.get_float32_matmul_precision() == "highest"
        monkeypatch.setattr(process, "check_device", lambda field, device: torch.device(device))
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        find_device("cuda:0")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
