"""Files that runs write, and that people and other programs write to."""

from pathlib import Path

import pytest

from sfumato.files import read_metrics


def test_foreign_lines_are_left_out_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n\n{"step": 2, "text": "\u2028"}\n{"step": 3, "kl"')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert capsys.readouterr().err == ""
    foreign = [b"slurmstepd: error: {x}", b"[1]", b"{}", b'{"step": "x"}', b"7", b"\xff}", b"[" * 5000]
    file.write_bytes(b"\n".join([b'{"step": 1}', *foreign, b'{"step": 2}', b""]))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert capsys.readouterr().err == (f"sfumato: {file}: left out 7 lines that no run wrote, the first in line 2\n")
