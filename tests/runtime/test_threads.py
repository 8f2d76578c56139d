import pytest

from doge_export.runtime import threads
from doge_export.runtime.threads import BYTES_PER_THREAD, most_threads, thread_count


@pytest.fixture
def graph(tmp_path):
    """Write a graph of as many bytes as are worth some threads."""

    def write(threads_worth):
        graph = tmp_path / "model.onnx"
        graph.write_bytes(b"x")
        with (tmp_path / "model.onnx_data").open("wb") as data:
            data.truncate(threads_worth * BYTES_PER_THREAD - 1)
        return graph

    return write


def allow(monkeypatch, processors, allowed):
    monkeypatch.setattr(threads.os, "cpu_count", lambda: processors)
    monkeypatch.setattr(threads, "allowed_processors", lambda: allowed)
    monkeypatch.setattr(threads, "is_restricted", lambda: allowed < (processors or 1))


@pytest.mark.parametrize(
    ("threads_worth", "processors", "expected"),
    [(1, 2, 1), (2, 2, 0), (2, 16, 2), (8, 16, 8), (9, 16, 0), (1, 1, 0), (1, None, 0)],
)
def test_a_thread_for_so_many_weights_and_never_more_than_cores(
    graph, monkeypatch, threads_worth, processors, expected
):
    allow(monkeypatch, processors, processors or 1)
    assert thread_count(graph(threads_worth)) == expected
    assert most_threads() == 0


@pytest.mark.parametrize(
    ("threads_worth", "processors", "allowed", "expected"), [(1, 2, 1, 1), (9, 2, 1, 1), (9, 16, 4, 4), (3, 16, 12, 3)]
)
def test_never_more_than_this_process_may_use(graph, monkeypatch, threads_worth, processors, allowed, expected):
    """onnxruntime counts the machine's cores, so it is not left to choose."""
    allow(monkeypatch, processors, allowed)
    assert thread_count(graph(threads_worth)) == expected
    assert most_threads() == allowed
