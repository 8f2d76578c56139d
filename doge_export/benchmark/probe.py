"""Time and memory of a fresh process: `python -m doge_export.benchmark.probe FOLDER THREADS NEW_TOKENS ...`.

Five arguments more are the precision of the graph, what computes it, its window, its device, and "host-code", as
`probe` passes them. The program prints one JSON object. It runs in a process of its own because a process can measure
its imports, its loading and its peak memory only once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from doge_export.errors import RunFailed
from doge_export.memory import peak_resident_bytes

if TYPE_CHECKING:
    from doge_export.runtime.native.support import Backend


def probe(
    folder: Path,
    threads: int | None,
    new_tokens: int,
    precision: str | None = None,
    backend: str | None = None,
    window: int | None = None,
    device: str | None = None,
    allow_host_code: bool = False,
) -> dict[str, Any]:
    """Measure a fresh process that loads a graph and decodes.

    Args:
        folder: an exported folder.
        threads: number of CPU threads; None for the default.
        new_tokens: number of tokens to decode after the first, cut to what the export holds.
        precision: precision of the graph; None for the one that `load` opens.
        backend: what computes it; None for what `load` takes.
        window, allow_host_code: see `load`.
        device: where onnxruntime runs it; None for the CPU.

    Returns:
        import_seconds, load_seconds and first_token_seconds (loading included); base_bytes and peak_bytes, the peak
        resident memory after the imports and at the end.

    Raises:
        RunFailed: the process failed; the message ends with its last line.
    """
    arguments = [
        str(folder),
        str(threads or 0),
        str(new_tokens),
        precision or "",
        backend or "",
        str(window or 0),
        device or "",
        *(["host-code"] if allow_host_code else []),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "doge_export.benchmark.probe", *arguments], capture_output=True, text=True
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        raise RunFailed(f"a fresh process could not run {folder}: {reason[0]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main(
    folder: str,
    threads: str,
    new_tokens: str,
    precision: str = "",
    backend: str = "",
    window: str = "0",
    device: str = "",
    host_code: str = "",
) -> None:
    """Measure this process and print the result."""
    start = time.perf_counter()
    import numpy as np
    import onnxruntime  # noqa: F401
    import tokenizers  # noqa: F401

    from doge_export.runtime import Session, load

    imported = time.perf_counter()
    base = peak_resident_bytes()
    session = load(
        folder,
        precision=precision or None,
        threads=int(threads) or None,
        backend=cast("Backend | None", backend or None),
        window=int(window) or None,
        device=device or None,
        allow_host_code=bool(host_code),
    )
    assert isinstance(session, Session)
    loaded = time.perf_counter()
    decoder = session.decoder
    prompt = np.arange(min(16, decoder.max_length), dtype=np.int64)[None] % decoder.vocab_size
    (prediction,) = decoder.predict(prompt)
    first = time.perf_counter()
    for _ in range(min(int(new_tokens), decoder.max_length - decoder.length)):
        (prediction,) = decoder.predict(np.array([[prediction.argmax()]]))
    answer = {
        "import_seconds": imported - start,
        "load_seconds": loaded - imported,
        "first_token_seconds": first - imported,
        "base_bytes": base,
        "peak_bytes": peak_resident_bytes(),
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
