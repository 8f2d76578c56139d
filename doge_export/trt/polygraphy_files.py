"""Save inputs and outputs of an engine as Polygraphy's files, to go on with its tools.

`polygraphy run` reads them: `--load-inputs inputs.json` feeds the same tokens, `--load-outputs pytorch.json` compares
with PyTorch; `polygraphy inspect data` shows either. Caches are zeros, as before the first token.

The outputs are those of the engine, of PyTorch in float32 and of the engine's graph in onnxruntime. If the engine
differs from both others, TensorRT or the plugin is wrong; if both differ from PyTorch, the graph or its types are.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.installing import install_command
from doge_export.package.disk import scratch_folder
from doge_export.runtime.engine.sidecar import ONNX, Sidecar, storage

if TYPE_CHECKING:
    from doge_export.checkpoint import Checkpoint
    from doge_export.runtime.session import Session

TOKENS = 16
"""Length of the prompt."""


def save(
    folder: Path, output: Path, *, session: Session | None = None, checkpoint: Checkpoint | None = None
) -> list[str]:
    """Run one prompt and write inputs.json, engine.json, pytorch.json and onnxruntime.json into `output`.

    onnxruntime.json is written only if the folder keeps its graph and that is not in bfloat16, which onnxruntime's CPU
    provider lacks.

    Args:
        folder: of the engine.
        output: a folder, made if it is missing; the files are replaced.
        session: open on `folder`. None: one is opened.
        checkpoint: from which the engine was made. None: the one that the manifest names is opened.

    Returns:
        the files, then a line for each pair of outputs with the difference of their logits.

    Raises:
        DogeExportError: polygraphy is not installed, or a folder cannot be read.
    """
    try:
        from polygraphy.comparator import RunResults
        from polygraphy.json import save_json
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise DogeExportError(f"polygraphy is not installed: {install_command('trt')}") from error
    from doge_export.runtime.engine.sidecar import read_sidecar
    from doge_export.runtime.loading import load_as
    from doge_export.runtime.session import Session
    from doge_export.validation.references import load_oracle
    from doge_export.validation.validator import open_recorded

    sidecar = read_sidecar(folder)
    opened = session or load_as(Session, folder, purpose="comparison", allow_host_code=True)  # built here and now
    manifest = opened.manifest
    checkpoint = checkpoint or open_recorded(manifest)
    length = min(TOKENS, sidecar.max_length, sidecar.max_logits)
    ids = np.random.default_rng(0).integers(opened.decoder.vocab_size, size=(1, length))
    oracle = load_oracle(checkpoint, manifest.cdmoe_routing)
    feeds = feed(sidecar, ids)
    answers = {
        "engine": opened.logits(ids),
        "pytorch": oracle.run(ids, np.ones_like(ids), (length,)).logits.astype(np.float32),
    }
    if session is None:
        opened.close()
    if (folder / ONNX).is_file() and sidecar.precision != "bf16":
        answers["onnxruntime"] = _in_onnxruntime(folder / ONNX, feeds)
    output.mkdir(parents=True, exist_ok=True)
    files = [output / "inputs.json", *(output / f"{runner}.json" for runner in answers)]
    with G_LOGGER.verbosity(G_LOGGER.ERROR):  # Polygraphy logs to stdout, where our results go
        save_json([feeds], str(files[0]), description="inputs of a prompt")
        for file, (runner, logits) in zip(files[1:], answers.items(), strict=True):
            results = RunResults()
            results.add([{"logits": logits}], runner_name=runner)
            results.save(str(file))
    return [*map(str, files), *_differences(answers)]


def _in_onnxruntime(file: Path, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the logits of the graph that the engine was built from, by onnxruntime on the CPU."""
    import onnx_ir as ir
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator
    from polygraphy.logger import G_LOGGER

    from doge_export.package.onnx_file import write_onnx
    from doge_export.trt.on_cpu import runnable

    with scratch_folder() as scratch, G_LOGGER.verbosity(G_LOGGER.ERROR):
        graph = Path(scratch) / "model.onnx"
        write_onnx(runnable(ir.load(file)), graph)
        runner = OnnxrtRunner(SessionFromOnnx(str(graph), providers=["cpu"]))
        ((_, (outputs,)),) = Comparator.run([runner], data_loader=[feeds]).items()
        logits: np.ndarray = outputs["logits"]
    return logits


def _differences(answers: Mapping[str, np.ndarray]) -> list[str]:
    """Return lines such as "engine, pytorch: logits apart by 0.0012 on average, 0.0094 at most (...)"."""
    lines = []
    for (one, left), (other, right) in itertools.combinations(answers.items(), 2):
        apart, spread = np.abs(left - right), answers["pytorch"].std()
        lines.append(
            f"{one}, {other}: logits apart by {apart.mean():.2g} on average, {apart.max():.2g} at most "
            f"(of a deviation of {spread:.2g})"
        )
    return lines


def feed(sidecar: Sidecar, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return every input of the engine for a prompt that is read whole, with the logits of all its tokens.

    Args:
        sidecar: of the engine.
        ids: int64 [B, S].

    Returns:
        arrays by name of input. numpy lacks bfloat16: such caches are uint16 zeros.
    """
    batch, new = ids.shape
    places = np.broadcast_to(np.arange(new), ids.shape)
    values: dict[str, Any] = {
        "input_ids": ids,
        "past_lengths": np.zeros(batch),
        "new_lengths": np.full(batch, new),
        "logits_tokens": places,
        "position_ids": places,
    }
    feeds = {name: values[name].astype(np.int32) for name in sidecar.inputs if name in values}
    caches = {pair.past: np.zeros((batch, *pair.shape[1:]), storage(pair.dtype)) for pair in sidecar.caches}
    return feeds | caches
