"""Workers: shares of the work, and devices."""

import pytest
import torch

from sfumato.engine.process import Workers, join
from sfumato.training.config import at_least

CPU = torch.device("cpu")


def test_shares_cover_everything_in_order():
    shares = [Workers(rank=rank, count=3, device=CPU).share(12) for rank in range(3)]
    assert [list(range(12))[share] for share in shares] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_one_process_alone():
    workers = join("cpu")
    assert (workers.rank, workers.count, workers.is_main) == (0, 1, True)
    tensor = torch.arange(3)
    assert workers.gather(tensor) is tensor
    assert workers.any(True)
    assert not workers.any(False)
    assert not Workers(rank=1, count=2, device=CPU).is_main


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_devices_that_are_not_there(device: str):
    with pytest.raises(ValueError, match=f"device: '{device}' is not to be had") as error:
        join(device)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [0, -1.5, float("nan")])
def test_at_least(value: float):
    with pytest.raises(ValueError, match="steps: .* is too small; give at least 1"):  # noqa: RUF043
        at_least("steps", value, 1)
    at_least("steps", 1, 1)
