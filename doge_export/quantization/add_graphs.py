"""Make graphs in fewer bits beside a float32 one, each held to a limit of what it may lose."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doge_export.console import log, progress
from doge_export.errors import RunFailed
from doge_export.package.manifest import MODEL, GraphEntry, Interface, Manifest
from doge_export.quantization.advice import advice
from doge_export.quantization.caches import Ranges, cache_ranges, slot_ranges
from doge_export.quantization.quality import Quality, measure
from doge_export.quantization.reduced_precision import FP16, ReducedPrecision
from doge_export.quantization.request import QuantizationRequest
from doge_export.quantization.stretches import Limits
from doge_export.quantization.texts import Texts, of_all_lengths, texts_for


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
    interface = manifest.graphs[MODEL].interface
    gc.collect()  # traced programs are full of cycles, which would keep their weights
    evaluation, calibration, ranges = _material(folder, manifest, request)
    qualities = {}
    for precision in request.precisions:
        started = time.monotonic()
        log(f"writing {precision.file}")
        if precision is FP16:
            entry = _write_half(folder, interface, evaluation[-1])
        else:
            entry = _write_quantised(folder, manifest, precision, calibration, ranges)
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
            if ranges is not None and precision is not FP16:
                _write_quantised(folder, manifest, precision, calibration, None)
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
    from doge_export.runtime.loading import load
    from doge_export.runtime.session import Session

    session = load(folder, precision="fp32", backend="graph")
    log("writing text with the float32 model" if request.eval_text is None else f"reading {request.eval_text}")
    evaluation = of_all_lengths(texts_for("evaluation", session, request.eval_text), manifest)
    quantised = [precision for precision in request.precisions if precision is not FP16]
    # Portable graphs are fed by other programs, which bring float caches.
    is_ours = isinstance(session, Session) and manifest.target == "onnxruntime"
    caches = bool(quantised) and is_ours and not request.float_cache
    if not caches and all(precision.bits == 8 for precision in quantised):
        return evaluation, None, None
    calibration = of_all_lengths(texts_for("calibration", session, request.calibration), manifest)
    every = Texts(calibration[0].origin, tuple(row for texts in calibration for row in texts.rows))
    if not (caches and isinstance(session, Session)):
        return evaluation, calibration[-1], None
    is_bounded = manifest.cache == "bounded"
    ranges = slot_ranges(folder / MODEL, every) if is_bounded else cache_ranges(session.decoder, every)
    return evaluation, calibration[-1], ranges


def _write_half(folder: Path, interface: Interface, texts: Texts) -> GraphEntry:
    """Write the graph in 16 bits; RunFailed where a value would not fit."""
    import onnx_ir as ir

    from doge_export.package.onnx_file import describe_graph, write_onnx
    from doge_export.quantization.extremes import extremes_of
    from doge_export.targets.half import HalfPrecision, operators_by_type, prepare
    from doge_export.targets.half.extremes import by_operator

    extremes = extremes_of(folder / MODEL, texts)
    beyond = next((extreme for extreme in extremes if extreme.overflows), None)
    if beyond is not None:
        raise RunFailed(
            f"fp16 cannot hold this model: on text, {beyond}; nothing was written (int8 and int4 compute in float32)"
        )
    model = ir.load(folder / MODEL)
    prepare(model)
    HalfPrecision()(model)
    write_onnx(model, folder / FP16.file)
    typing = {"operators": operators_by_type(model), "largest": by_operator(extremes)}
    return dataclasses.replace(describe_graph(model, FP16.name, interface), typing=typing)


def _write_quantised(
    folder: Path,
    manifest: Manifest,
    precision: ReducedPrecision,
    calibration: Texts | None,
    ranges: Ranges | None,
) -> GraphEntry:
    """Write one quantised graph."""
    import onnx_ir as ir

    from doge_export.package.onnx_file import describe_graph, write_onnx
    from doge_export.quantization.quantize_caches import QuantizeCaches
    from doge_export.quantization.quantize_slots import QuantizeSlots
    from doge_export.quantization.quantize_weights import ACCURACY_LEVEL, QuantizeWeights
    from doge_export.quantization.recipe import store
    from doge_export.quantization.weights import quantizable_weights
    from doge_export.targets.lowering import named

    model = ir.load(folder / MODEL)
    weights = quantizable_weights(model.graph)
    stored = store(weights, precision, folder / MODEL, calibration)
    QuantizeWeights(weights, stored, standard_lookups=manifest.target == "portable")(model)
    if ranges is not None:
        (QuantizeSlots if manifest.cache == "bounded" else QuantizeCaches)(ranges)(model)
    write_onnx(model, folder / precision.file)
    quantization: dict[str, Any] = {
        "bits": precision.bits,
        "block": precision.block,
        "accuracy_level": ACCURACY_LEVEL,
        "method": "nearest" if calibration is None or precision.bits == 8 else "gptq",
        "exceptions": stored.exceptions,
    }
    if named(model.graph.inputs, ".key"):
        quantization["cache"] = "fp32" if ranges is None else "int8"
    if calibration is not None and (precision.bits < 8 or ranges is not None):
        quantization["calibration"] = {"text": calibration.origin, "tokens": calibration.tokens}
    entry = describe_graph(model, precision.name, manifest.graphs[MODEL].interface)
    return dataclasses.replace(entry, quantization=quantization)
