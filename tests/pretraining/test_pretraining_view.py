"""Progress of pre-training at 80 columns and in files."""

import io
import re

from rich.console import Console

from sfumato.pretraining.pretraining_view import PretrainingView, figures

STATS = {"loss": 0.065817, "psnr": 23.3, "quantization_error": 0.1, "grad_norm": 0.5, "codes_used": 1.0}
MEASURED = {**STATS, "val_loss": 0.071234, "val_psnr": 22.95}


def test_figures():
    assert figures(STATS) == "loss 0.06582  PSNR 23.3 dB  codes used 100 %"
    assert figures({"codes_used": 0.12, "loss": 0.1}) == "loss 0.1  codes used 12 % (low)"
    assert figures({"accuracy": 0.414, "val_accuracy": 0.3}) == "accuracy 41 %  validation 30 %"


def test_80_columns():
    file = io.StringIO()
    view = PretrainingView(Console(file=file, force_terminal=True, width=80, markup=False))
    with view.open():
        view.show("tokenizer", 12_345, 12_700, MEASURED)
        view.show("tokenizer", 12_346, 12_700, STATS)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).replace("\r", "\n").splitlines()
    bars = [line for line in lines if "tokenizer" in line]
    assert re.search(r"━{10}.* 12346/12700 \S+ left", bars[-1])
    # The validation figures stay until they are measured again.
    assert any("validation 0.07123" in line and "PSNR 23.3 dB" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_lines_in_a_file():
    file = io.StringIO()
    view = PretrainingView(Console(file=file, width=80, markup=False))
    with view.open():
        for step in range(1, 121):
            view.show("tokenizer", step, 120, MEASURED if step == 50 else STATS)
        view.show("generator", 1, 3, {"loss": 6.0})
    lines = file.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "tokenizer 1/120", "tokenizer 50/120", "tokenizer 100/120", "tokenizer 120/120", "generator 1/3",
    ]  # fmt: skip
    assert "validation 0.07123" in lines[2]
    assert lines[2].endswith("0:00:00 left")
    assert lines[4] == "generator 1/3  loss 6"  # nothing of the other stage, and no time left yet
