"""Inputs and answers of an engine in polygraphy's files, so that its tools go on from where we stop.

A file holds what `polygraphy run` takes: `--load-inputs inputs.json` feeds the same tokens, `--load-outputs
pytorch.json` compares with PyTorch, `polygraphy inspect data` shows either. Caches are zeros, as before any token.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.trt.sidecar import Sidecar, storage

if TYPE_CHECKING:
    from doge_export.checkpoint import Checkpoint
    from doge_export.runtime.session import Session

TOKENS = 16
"""Of each row."""


def save(
    folder: Path, output: Path, *, session: Session | None = None, checkpoint: Checkpoint | None = None
) -> list[Path]:
    """Runs one prompt in the engine and in PyTorch; writes inputs.json, engine.json and pytorch.json into `output`.

    Args:
        folder: with the engine.
        output: a folder, made where it is missing; the three files are replaced.
        session: one that is open on `folder`, else it is opened.
        checkpoint: the one it was made from, else the one that the manifest names is opened.

    Raises DogeExportError without polygraphy, and for folders that cannot be read.
    """
    try:
        from polygraphy.comparator import RunResults
        from polygraphy.json import save_json
    except ImportError as error:
        raise DogeExportError('polygraphy is not installed: pip install "doge-export[trt]"') from error
    from doge_export.runtime.loading import load_as
    from doge_export.runtime.session import Session
    from doge_export.trt.sidecar import read_sidecar
    from doge_export.validation.oracle import load_oracle
    from doge_export.validation.validator import _open

    sidecar = read_sidecar(folder)
    session = session or load_as(Session, folder, purpose="comparison")
    manifest = session.manifest
    checkpoint = checkpoint or _open(manifest, None, None)
    length = min(TOKENS, sidecar.max_length, sidecar.max_logits)
    ids = np.random.default_rng(0).integers(session.decoder.vocab_size, size=(1, length))
    oracle = load_oracle(checkpoint, manifest["cdmoe_routing"])
    answers = {
        "engine": session.logits(ids),
        "pytorch": oracle.run(ids, np.ones_like(ids), (length,)).logits.astype(np.float32),
    }
    output.mkdir(parents=True, exist_ok=True)
    files = [output / "inputs.json"]
    save_json([feed(sidecar, ids)], str(files[0]), description="inputs of a prompt")
    for runner, logits in answers.items():
        results = RunResults()
        results.add([{"logits": logits}], runner_name=runner)
        files.append(output / f"{runner}.json")
        results.save(str(files[-1]))
    return files


def feed(sidecar: Sidecar, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Every input of the engine for a prompt int64 [B, S] that is read whole, with the logits of all its tokens.

    bfloat16, which numpy lacks, is in 16 bits without a meaning: they are zeros.
    """
    batch, new = ids.shape
    places = np.broadcast_to(np.arange(new), ids.shape)
    values: dict[str, Any] = {
        "input_ids": ids,
        "past_lengths": np.zeros(batch),
        "logits_tokens": places,
        "position_ids": places,
    }
    feeds = {name: values[name].astype(np.int32) for name in sidecar.inputs if name in values}
    caches = {pair.past: np.zeros((batch, *pair.shape[1:]), storage(pair.dtype)) for pair in sidecar.caches}
    return feeds | caches
