"""Make graphs in fewer bits beside a float32 one, each held to a limit of what it may lose."""

from __future__ import annotations

import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export.console import log, progress
from doge_export.errors import RunFailed
from doge_export.package.disk import scratch_folder
from doge_export.package.manifest import MODEL, GraphEntry, Manifest
from doge_export.quantization.advice import advice
from doge_export.quantization.quality import Quality, measure
from doge_export.quantization.reduced_precision import ReducedPrecision
from doge_export.quantization.request import QuantizationRequest
from doge_export.quantization.stretches import Limits
from doge_export.quantization.texts import Texts, of_all_lengths, texts_for

if TYPE_CHECKING:
    import onnx_ir as ir

    from doge_export.quantization.caches import Ranges
    from doge_export.quantization.recipe import Stored
    from doge_export.targets.half.extremes import Extreme


def add_graphs(folder: Path, manifest: Manifest, request: QuantizationRequest) -> tuple[Manifest, dict[str, Quality]]:
    """Write the requested graphs into a folder that is being written.

    Args:
        folder: with its fp32 graph and its manifest on disk.
        manifest: of the folder.
        request: what to add.

    Returns:
        The manifest with the new graphs, and the quality of each by its file.

    Raises:
        RunFailed: a graph loses more than its limit; the message names the first.
    """
    gc.collect()  # traced programs are full of cycles, which would keep their weights
    evaluation, calibration, ranges = _material(folder, manifest, request)
    extremes = functools.cache(lambda: _extremes(folder / MODEL, evaluation[-1]))
    qualities = {}
    for precision in request.precisions:
        started = time.monotonic()
        log(f"writing {precision.file}")
        entry = _write(folder, manifest, precision, extremes, calibration, ranges, request.expand_weights)
        limits = Limits.of(precision, request.max_kl, manifest)
        began = time.monotonic()
        quality = _measured(folder, precision, evaluation, limits)
        quality = dataclasses.replace(quality, max_length=manifest.max_length)
        log(f"{precision.name}: {quality.summary_line()}")
        for line in quality.stretch_lines():
            log(f"{precision.name}: {line}")
        log(f"{precision.name}: measured in {time.monotonic() - began:.1f} s")
        if not quality.passed:
            unrounded = None
            if ranges is not None and not precision.is_half:
                _write(folder, manifest, precision, extremes, calibration, None, request.expand_weights)
                unrounded = _measured(folder, precision, evaluation[-1:], limits)
            raise RunFailed(
                f"{precision.name} loses too much: KL of "
                f"{advice(precision, quality, limits, manifest.max_length, unrounded)}"
            )
        seconds = round(time.monotonic() - started, 1)
        manifest = manifest.with_graph(
            precision.file, dataclasses.replace(entry, quality=quality.to_dict(), seconds=seconds)
        )
        qualities[precision.file] = quality
    return manifest, qualities


def _measured(folder: Path, precision: ReducedPrecision, texts: Sequence[Texts], limits: Limits) -> Quality:
    """Compare a graph with the fp32 one on texts of several lengths."""
    from doge_export.quantization.whole import WholeTexts

    with progress(f"measuring {precision.name}", sum(len(group.rows) for group in texts)) as advance:
        reference = WholeTexts(folder / MODEL, packs=False)
        return measure(reference, WholeTexts(folder / precision.file), texts, limits, advance)


def _material(
    folder: Path, manifest: Manifest, request: QuantizationRequest
) -> tuple[list[Texts], Texts | None, Ranges | None]:
    """Return texts of all lengths to judge by; and, as far as needed, text to calibrate with and ranges of caches."""
    from doge_export.quantization.caches import cache_ranges, slot_ranges
    from doge_export.runtime.loading import load
    from doge_export.runtime.session import Session

    session = load(folder, precision="fp32", backend="graph")
    log("writing text with the float32 model" if request.eval_text is None else f"reading {request.eval_text}")
    evaluation = of_all_lengths(texts_for("evaluation", session, request.eval_text), manifest)
    quantised = [precision for precision in request.precisions if precision.bits < 16]
    # Portable graphs are fed by other programs, which bring float caches.
    is_ours = isinstance(session, Session) and manifest.target == "onnxruntime"
    caches = not all(precision.is_half for precision in quantised) and is_ours and not request.float_cache
    if not caches and all(precision.bits == 8 for precision in quantised):
        return evaluation, None, None
    calibration = of_all_lengths(texts_for("calibration", session, request.calibration), manifest)
    every = Texts(calibration[0].origin, tuple(row for texts in calibration for row in texts.rows))
    if not (caches and isinstance(session, Session)):
        return evaluation, calibration[-1], None
    is_bounded = manifest.cache == "bounded"
    ranges = slot_ranges(folder / MODEL, every) if is_bounded else cache_ranges(session.decoder, every)
    return evaluation, calibration[-1], ranges


def _write(
    folder: Path,
    manifest: Manifest,
    precision: ReducedPrecision,
    extremes: Callable[[], list[Extreme]],
    calibration: Texts | None,
    ranges: Ranges | None,
    expand_weights: bool,
) -> GraphEntry:
    """Write one graph: activations in 16 bits, then weights and caches in fewer, each as far as the precision has it.

    Args:
        extremes: measures the largest values, which 16 bits must hold.
        calibration: text for GPTQ.
        ranges: of caches of 8 bits; None leaves them in float32. Those of 16 bits stay as they are.
        expand_weights: see `QuantizationRequest`; only with activations in float32.

    Raises:
        RunFailed: a value does not fit into 16 bits.
    """
    import onnx_ir as ir

    from doge_export.package.onnx_file import describe_graph, write_onnx
    from doge_export.quantization.quantize_caches import QuantizeCaches
    from doge_export.quantization.quantize_slots import QuantizeSlots
    from doge_export.targets.half import HalfPrecision, operators_by_type, prepare
    from doge_export.targets.lowering import named

    model = ir.load(folder / MODEL)
    if precision.is_half:
        ranges, expand_weights = None, False
        largest = _largest(extremes(), precision)
        prepare(model)
    stored = None if precision.bits == 16 else _stored(model, folder / MODEL, precision, calibration)
    if precision.is_half:
        HalfPrecision()(model)
    quantization: dict[str, Any] | None = None
    if stored is not None:
        quantization = _quantize_weights(model, stored, precision, manifest, expand_weights)
        if named(model.graph.inputs, ".key"):
            quantization["cache"] = "fp16" if precision.is_half else "fp32" if ranges is None else "int8"
        if calibration is not None and (precision.bits < 8 or ranges is not None):
            quantization["calibration"] = {"text": calibration.origin, "tokens": calibration.tokens}
    if ranges is not None:
        (QuantizeSlots if manifest.cache == "bounded" else QuantizeCaches)(ranges)(model)
    write_onnx(model, folder / precision.file)
    typing = {"operators": operators_by_type(model), "largest": largest} if precision.is_half else None
    entry = describe_graph(model, precision.name, manifest.graphs[MODEL].interface)
    return dataclasses.replace(entry, typing=typing, quantization=quantization)


def _extremes(file: Path, texts: Texts) -> list[Extreme]:
    from doge_export.quantization.extremes import extremes_of

    return extremes_of(file, texts)


def _largest(extremes: list[Extreme], precision: ReducedPrecision) -> dict[str, Any]:
    """Return the largest values of the float32 graph by operator; RunFailed where 16 bits do not hold one."""
    from doge_export.targets.half.extremes import by_operator

    beyond = next((extreme for extreme in extremes if extreme.overflows), None)
    if beyond is not None:
        raise RunFailed(
            f"{precision.name} cannot hold this model: on text, {beyond}; nothing was written (int8 and int4 compute "
            "in float32)"
        )
    return by_operator(extremes)


def _stored(model: ir.Model, file: Path, precision: ReducedPrecision, calibration: Texts | None) -> Stored:
    """Return the storage of all weights of a float32 graph, which is in `file` unless it was prepared for 16 bits."""
    from doge_export.package.onnx_file import write_onnx
    from doge_export.quantization.recipe import store
    from doge_export.quantization.weights import quantizable_weights

    weights = quantizable_weights(model.graph)
    if not precision.is_half:
        return store(weights, precision, file, calibration)
    with scratch_folder() as scratch:
        write_onnx(model, scratch / "prepared.onnx")
        return store(weights, precision, scratch / "prepared.onnx", calibration)


def _quantize_weights(
    model: ir.Model, stored: Stored, precision: ReducedPrecision, manifest: Manifest, expand_weights: bool
) -> dict[str, Any]:
    """Rewrite the weights of a graph; return what the manifest says of them."""
    from doge_export.quantization.quantize_weights import ACCURACY_LEVEL, HALF_ACCURACY_LEVEL, QuantizeWeights
    from doge_export.quantization.weights import quantizable_weights

    weights = quantizable_weights(model.graph)
    standard_lookups = manifest.target == "portable"
    QuantizeWeights(weights, stored, standard_lookups=standard_lookups, expand=expand_weights)(model)
    level = HALF_ACCURACY_LEVEL if precision.is_half else ACCURACY_LEVEL
    return {
        "bits": precision.bits,
        "block": precision.block,
        **({"expanded": True} if expand_weights else {"accuracy_level": level}),
        "method": "nearest" if precision.bits == 8 else "gptq",
        "exceptions": stored.exceptions_of(weights),
    }
