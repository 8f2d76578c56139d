import pytest

from doge_export.runtime import threads
from doge_export.runtime.threads import BYTES_PER_THREAD, thread_count


@pytest.mark.parametrize(
    ("threads_worth", "processors", "expected"),
    [(1, 2, 1), (2, 2, 0), (2, 16, 2), (8, 16, 8), (9, 16, 0), (1, 1, 0), (1, None, 0)],
)
def test_a_thread_for_so_many_weights_and_never_more_than_cores(
    tmp_path, monkeypatch, threads_worth, processors, expected
):
    monkeypatch.setattr(threads.os, "cpu_count", lambda: processors)
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"x")
    with (tmp_path / "model.onnx_data").open("wb") as data:
        data.truncate(threads_worth * BYTES_PER_THREAD - 1)
    assert thread_count(graph) == expected
