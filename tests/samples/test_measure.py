import functools
import runpy
import shutil
import sys
from pathlib import Path

from doge_export.assets import bundled
from doge_export.benchmark import bench
from doge_export.pipeline.quantize import quantize

SAMPLE = Path(__file__).parents[2] / "samples" / "benchmark"


def test_a_row_for_each_precision(nano_folder, tmp_path, monkeypatch, capsys):
    """doge-nano stands in for a published size: its checkpoint and its export are there already."""
    monkeypatch.syspath_prepend(str(SAMPLE))
    # Whether it runs is what is asked here, not how fast.
    monkeypatch.setattr(bench, "bench", functools.partial(bench.bench, new_tokens=4, prefill_length=16))
    shutil.copytree(bundled("doge-nano"), tmp_path / "checkpoint-nano")
    shutil.copytree(nano_folder, tmp_path / "out-nano")
    text = tmp_path / "text"
    text.write_text("Once upon a time, there was a little cat named Tom. Tom liked to play in the garden. " * 8)
    quantize(tmp_path / "out-nano", ["int8", "int4"], calibration=text, eval_text=text, max_kl=10)
    arguments = ["nano", "--work", tmp_path, "--rounds", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["measure.py", *map(str, arguments)])
    try:
        runpy.run_path(str(SAMPLE / "measure.py"), run_name="__main__")
    finally:
        for script in SAMPLE.glob("*.py"):
            sys.modules.pop(script.stem, None)
    table = capsys.readouterr().out.splitlines()
    heading, _, *lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table]
    assert [line[1] for line in lines] == ["fp32", "int8", "int4", "transformers"]
    for line in lines[:3]:
        assert float(line[2]) > 0 and float(line[3].rstrip("x")) > 0
        assert float(line[heading.index("file MB")]) > 0.5
        assert float(line[heading.index("peak MB")]) > 20
