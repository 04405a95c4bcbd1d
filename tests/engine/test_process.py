"""Processes: division of the work, and devices."""

import pytest
import torch
from errors import bad_input

from sfumato.engine.process import Process, find_device, join

CPU = torch.device("cpu")


def test_shares_cover_everything_in_order():
    shares = [Process(rank=rank, count=3, device=CPU).share(12) for rank in range(3)]
    assert [list(range(12))[share] for share in shares] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("total", [1, 4, 5, 12])
def test_padded_shares_are_of_one_size_and_begin_with_everything(total: int, count: int):
    shares = [Process(rank=rank, count=count, device=CPU).padded_share(total).tolist() for rank in range(count)]
    assert len({len(share) for share in shares}) == 1
    joined = [position for share in shares for position in share]
    assert joined[:total] == list(range(total))
    assert set(joined[total:]) <= {total - 1}
    assert len(joined) < total + count


def test_one_process_alone():
    process = join("cpu")
    assert (process.rank, process.count, process.is_main) == (0, 1, True)
    tensor = torch.arange(3)
    assert process.gather(tensor) is tensor
    assert process.any(True)
    assert not process.any(False)
    assert not Process(rank=1, count=2, device=CPU).is_main


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_devices_that_are_not_there(device: str):
    for find in (join, find_device):
        with bad_input("device", repr(device), "auto", "cpu"):
            find(device)
