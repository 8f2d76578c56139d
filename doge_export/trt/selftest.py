"""`doge-export trt --selftest`: build and check engines of the bundled models on this machine, and write a report."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.console import log
from doge_export.errors import DogeExportError
from doge_export.package.atomic_file import written_file
from doge_export.package.disk import scratch_folder
from doge_export.paths import check_apart, check_file
from doge_export.runtime.engine import installation
from doge_export.runtime.engine.kinds import RTX, TENSORRT, kind_of
from doge_export.trt.builder import BuilderSettings
from doge_export.trt.make import EngineResult, Gpu, gpu_here, make_engine
from doge_export.version import __version__


@dataclasses.dataclass(frozen=True)
class Engine:
    """An engine to build. All have `max_batch` 3, so that every check can run."""

    model: str
    precision: str
    attention: str = "plugin"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name in the report, such as "doge-nano fp16 plugin"."""
        return f"{self.model} {self.precision} {self.attention}" + (" bounded" if "cache" in self.options else "")


_WINDOW = 64
"""keep_window_size of the bundled models, the longest row of native attention."""

_BOUNDED = {"cache": "bounded", "max_length": 320}
_MOE = {"cdmoe_routing": "per-token", "max_length": 160}

ENGINES = (
    Engine("doge-nano", "fp32", options={"max_length": 320}),
    Engine("doge-nano", "fp16", options={"max_length": 320}),
    Engine("doge-nano", "bf16", options={"max_length": 320}),
    Engine("doge-nano", "fp32", options=_BOUNDED),
    Engine("doge-nano", "fp16", options=_BOUNDED),
    Engine("doge-nano", "fp32", "native", {"max_length": _WINDOW}),
    Engine("doge-nano", "fp16", "native", {"max_length": _WINDOW}),
    Engine("doge-nano-moe", "fp32", options=_MOE),
    Engine("doge-nano-moe", "fp16", options=_MOE),
)
"""Rows are longer than keep_window_size and, without experts, than the trained length of 256."""


def selftest(
    report: Path,
    *,
    builder: str | None = None,
    plugin: Path | None = None,
    engines: tuple[Engine, ...] = ENGINES,
) -> dict[str, Any]:
    """Build, validate, run and time every engine; a failure does not stop the others.

    Without a GPU TensorRT for RTX builds the engines, and the rest is not run.

    Args:
        report: file to write the result to, as JSON.
        builder: "tensorrt" or "rtx". None: see `installation.choose`.
        plugin: the plugin's library. None: as `find_plugin` finds it.
        engines: to build.

    Returns:
        "machine" (versions, GPU) and "cases", each with "name", "ok", "said" (one line), "seconds" and, if it failed
        unexpectedly, "traceback".

    Raises:
        DogeExportError: nothing can be tested on this machine.
    """
    check_file("report", report)
    check_apart({"report": report}, {"--plugin": plugin})
    trt = installation.choose(builder)
    kind = kind_of(trt)
    if kind == TENSORRT:
        installation.require_cuda(kind)
    gpu = gpu_here()
    facts = {
        "doge_export": __version__,
        "builder": kind.name,
        "tensorrt": trt.__version__,
        "gpu": "none: engines are built and not run" if gpu is None else gpu.name,
        "compute_capability": None if gpu is None else list(gpu.compute_capability),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    result: dict[str, Any] = {"machine": facts, "cases": []}
    with scratch_folder() as folder:
        for number, engine in enumerate(engines):
            for case in _cases(engine, Path(folder) / str(number), plugin, kind.name, gpu):
                log(f"{'ok' if case['ok'] else 'FAILED'}: {case['name']}: {case['said']}")
                result["cases"].append(case)
                # After every case: a GPU that hangs must not take the report with it.
                with written_file("the report", report) as stream:
                    stream.write(f"{json.dumps(result, indent=2, default=str)}\n".encode())
    return result


def _cases(
    engine: Engine, folder: Path, plugin: Path | None, builder: str, gpu: Gpu | None
) -> Iterator[dict[str, Any]]:
    """Build an engine and, if that succeeds and a GPU is here, check it."""
    built: list[EngineResult] = []
    here = (gpu.compute_capability,) if gpu is not None and builder == RTX.name else ()

    def build() -> str:
        options = {"precision": engine.precision, "attention": engine.attention, "max_batch": 3, **engine.options}
        options |= {"builder": builder, "settings": BuilderSettings(compute_capabilities=here)}
        built.append(make_engine(engine.model, folder, plugin=plugin, validate=False, **options))
        return f"{built[0].sidecar.plugin_layers} plugin layers, {built[0].sidecar.settings['seconds']} s"

    yield _case(f"{engine.name}: build", build)
    if built and gpu is not None:
        yield _case(f"{engine.name}: validate", lambda: _validated(folder))
        yield _case(f"{engine.name}: generate", lambda: _generated(folder))
        yield _case(f"{engine.name}: bench", lambda: _timed(folder))


def _case(name: str, run: Callable[[], str]) -> dict[str, Any]:
    started = time.monotonic()
    try:
        said, ok, trace = run(), True, None
    except Exception as error:  # any failure belongs into the report
        said, ok = " ".join(f"{type(error).__name__}: {error}".split()), False
        trace = None if isinstance(error, DogeExportError) else traceback.format_exc()
    case = {"name": name, "ok": ok, "said": said, "seconds": round(time.monotonic() - started, 2)}
    return case | ({"traceback": trace} if trace else {})


def _session(folder: Path) -> Any:
    from doge_export.runtime.loading import load

    return load(folder, allow_host_code=True)  # built here and now


def _validated(folder: Path) -> str:
    from doge_export.errors import RunFailed
    from doge_export.validation import validate

    with _session(folder) as session:
        verdict = validate(folder, session=session)
    if not verdict.passed:
        raise RunFailed(verdict.summary_line())
    return verdict.summary_line()


def _generated(folder: Path) -> str:
    """Check that a batch of prompts of different lengths generates what each prompt generates alone."""
    from doge_export.errors import RunFailed
    from doge_export.runtime.generation_config import GenerationConfig

    with _session(folder) as session:
        prompts = ["Once upon a time", "There was a little", "One day"]
        settings: dict[str, Any] = {"max_new_tokens": 24, "defaults": GenerationConfig()}
        alone = [session.generate(prompt, **settings) for prompt in prompts]
        together = session.generate(prompts, **settings)
    same = sum(a.token_ids == b.token_ids for a, b in zip(alone, together, strict=True))
    if same < len(prompts) - 1:  # a near tie may be decided otherwise in 16 bits
        raise RunFailed(f"{same} of {len(prompts)} prompts give in a batch what they give alone: {together[0].text!r}")
    return repr(alone[0].text)


def _timed(folder: Path) -> str:
    """Time the steps of decoding, and check that they ran from a recorded CUDA graph."""
    from doge_export.errors import RunFailed

    with _session(folder) as session:
        decoder = session.decoder
        steps = min(40, decoder.max_length - 20)
        decoder.forward(np.ones((1, 16), np.int64), None, 1)
        token = np.ones((1, 1), np.int64)
        for _ in range(3):
            decoder.forward(token, None, 1)
        started = time.perf_counter()
        for _ in range(steps):
            decoder.forward(token, None, 1)
        rate = steps / (time.perf_counter() - started)
        recorded = decoder.recorded
    if not recorded:
        raise RunFailed(f"{rate:.0f} tokens a second, but decoding was not recorded in a CUDA graph")
    return f"{rate:.0f} tokens a second"
