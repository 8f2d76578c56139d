import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[2] / "samples" / "benchmark"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_every_part_is_measured_with_either_selection(exported, target, monkeypatch, capsys):
    """72 tokens, of which a layer keeps 16 keys; random weights."""
    monkeypatch.syspath_prepend(str(SAMPLE))
    import quantization_parts

    monkeypatch.setattr(quantization_parts, "BLOCK", 16)
    folder = exported(target=target, keep_window_size=16)
    monkeypatch.setattr(sys, "argv", ["quantization_parts.py", str(folder), "--most", "2"])
    quantization_parts.main()
    _, _, head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| part | keys selected by | 0-71 | perplexity | keys exchanged |"
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    names = ["weights", "activations", *(["cache"] if target == "onnxruntime" else []), "all"]
    assert [row[0] for row in cells[::2]] == [*names, "weights of layer 0", "weights of layer 1", "embedding and head"]
    assert [row[1] for row in cells[:2]] == ["itself", "float32"]
    assert all(float(row[2]) > 0 for row in cells)
    assert [row[4].endswith("%") for row in cells[:2]] == [True, False]
