import shutil
import subprocess
import sys
from pathlib import Path

from doge_export.assets import bundled
from doge_export.pipeline.quantize import quantize

SAMPLE = Path(__file__).parents[2] / "samples" / "benchmark"


def test_a_row_for_each_precision(nano_folder, tmp_path):
    """doge-nano stands in for a published size: its checkpoint and its export are there already."""
    shutil.copytree(bundled("doge-nano"), tmp_path / "checkpoint-nano")
    shutil.copytree(nano_folder, tmp_path / "out-nano")
    text = tmp_path / "text"
    text.write_text("Once upon a time, there was a little cat named Tom. Tom liked to play in the garden. " * 8)
    quantize(tmp_path / "out-nano", ["int8", "int4"], calibration=text, eval_text=text, max_kl=10)
    command = [sys.executable, SAMPLE / "measure.py", "nano", "--work", tmp_path, "--rounds", "1", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    heading, _, *lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in done.stdout.splitlines()]
    assert [line[1] for line in lines] == ["fp32", "int8", "int4", "transformers"]
    for line in lines[:3]:
        assert float(line[2]) > 0 and float(line[3].rstrip("x")) > 0
        assert float(line[heading.index("file MB")]) > 0.5
        assert float(line[heading.index("peak MB")]) > 20
