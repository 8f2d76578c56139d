"""Checkpoints and exported folders that tests share; an export takes seconds, so each is made once."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# A shell starts background jobs with Ctrl-C ignored, and nohup with SIGHUP; their children inherit it, and then no test
# could send these signals.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# What can be made again, such as native forms of weights, is kept in the checkout (ignored by git), not at the user's.
os.environ.setdefault("DOGE_EXPORT_CACHE", str(Path(__file__).parents[1] / "build" / "cache"))

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several workers with a thread for each core would only wait for each other. Read by torch when it is imported, and
    # by doge_export.processors.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


LONGEST = (
    "plugins/test_ctest.py",
    "validation/test_validate.py",
    "trt/test_command.py",
    "cli/test_export_commands.py",
    "validation/test_export.py",
    "plugins/test_build.py",
)
"""Files that take longest. They begin first, so that no worker is left with one of them when the others have ended; and
two that compile the plugin not at once, since one would wait for the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def _leaves_no_trace() -> Iterator[None]:
    """Find what slows all later tests of the process.

    With more threads than a worker's share PyTorch's small operations take five times as long. Objects that live on are
    taken out of the garbage collector's sight, since `gc.collect()`, which an export calls, would walk through those of
    thousands of tests.
    """
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    if before is not None:
        assert sys.modules["torch"].get_num_threads() == before, "PyTorch's number of threads was changed"
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a random checkpoint once per configuration: `checkpoint(**changes)` gives its folder."""
    from random_doge import random_model

    folders: dict[str, Path] = {}

    def folder(seed: int = 0, **changes: Any) -> Path:
        key = repr((seed, sorted(changes.items())))
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("checkpoint")
            random_model(seed, **changes).save_pretrained(folders[key])
        return folders[key]

    return folder


@pytest.fixture(scope="session")
def exported(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Export a random checkpoint of two layers once per configuration; gives the folder, which is read only.

    `changes` are those of `random_doge.random_model`.
    """
    from random_doge import MAX_LENGTH, MOE

    from doge_export import export

    folders: dict[str, Path] = {}

    def folder(
        *,
        target: str = "onnxruntime",
        moe: bool = False,
        cdmoe_routing: str = "reference",
        max_length: int = MAX_LENGTH,
        **changes: Any,
    ) -> Path:
        changes = {"num_hidden_layers": 2} | (MOE if moe else {}) | changes
        key = repr((target, cdmoe_routing, max_length, sorted(changes.items())))
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("exported") / "out"
            export(
                checkpoint(**changes),
                folders[key],
                target=target,
                cdmoe_routing=cdmoe_routing,
                max_length=max_length,
                validate=False,
            )
        return folders[key]

    return folder


@pytest.fixture(scope="session")
def task_export(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Export a random model of two layers with a tokenizer, once per task and configuration.

    Gives transformers' model and the folder, both read only: `task_export("text-classification", num_labels=3)`.
    """
    from task_models import TaskExport, saved

    from doge_export import export

    made: dict[str, TaskExport] = {}

    def make(
        task: str, *, target: str = "onnxruntime", cdmoe_routing: str = "reference", seed: int = 0, **changes: Any
    ) -> TaskExport:
        key = repr((task, target, cdmoe_routing, seed, sorted(changes.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(task)
            model = saved(task, folder / "checkpoint", seed, **changes)
            options = {"target": target, "cdmoe_routing": cdmoe_routing, "max_length": 72, "validate": False}
            export(folder / "checkpoint", folder / "out", task=task, **options)
            made[key] = TaskExport(model, folder / "checkpoint", folder / "out")
        return made[key]

    return make


@pytest.fixture
def shared_references(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make `validate` share its references between tests, by content of the checkpoint; gives the real `load_oracle`.

    Computing them takes most of a validation's time.
    """
    import shared_references

    from doge_export.validation import references

    monkeypatch.setattr(references, "load_oracle", shared_references.load_shared)
    return shared_references.load_oracle


@pytest.fixture(scope="session")
def bundled_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Export a bundled checkpoint once per target, for all workers: `bundled_folder(name, target)` is read only."""
    temporary = tmp_path_factory.getbasetemp()
    shared = temporary.parent if hasattr(request.config, "workerinput") else temporary

    def folder(name: str, target: str = "onnxruntime") -> Path:
        from doge_export import export
        from doge_export.assets import bundled

        out = shared / f"{name}-{target}" / "out"
        with (shared / f"{name}-{target}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not out.exists():  # a folder appears complete or not at all
                out.parent.mkdir(exist_ok=True)
                export(bundled(name), out, target=target, validate=False)
        return out

    return folder


@pytest.fixture(scope="session")
def native_file() -> Path:
    """The library of the native decoder: the installed or built one, else compiled once for all tests."""
    from native_library import native_file

    return native_file()


@pytest.fixture
def native_library(
    native_file: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Let the native decoder be found, and keep its forms of weights in a folder of the tests."""
    monkeypatch.setenv("DOGE_EXPORT_CPU_LIBRARY", str(native_file))
    monkeypatch.setenv("DOGE_EXPORT_CACHE", str(tmp_path_factory.getbasetemp() / "native-cache"))
    return native_file


@pytest.fixture(scope="session")
def nano_folder(bundled_folder: Callable[..., Path]) -> Path:
    """The bundled dense checkpoint, exported; read only."""
    return bundled_folder("doge-nano")


@pytest.fixture(scope="session")
def nano_moe_folder(bundled_folder: Callable[..., Path]) -> Path:
    """The bundled mixture of experts, exported; read only."""
    return bundled_folder("doge-nano-moe")
