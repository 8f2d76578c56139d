"""Further graphs beside a float32 one, in fewer bits, each held to a limit of what it may lose."""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doge_export.console import log, progress
from doge_export.errors import DogeExportError, RunFailed
from doge_export.package import staged_folder, verify, write_card, write_manifest
from doge_export.quantization.caches import Ranges, cache_ranges
from doge_export.quantization.precision import FP16, REDUCED, Precision
from doge_export.quantization.quality import Quality, measure
from doge_export.quantization.texts import Texts, texts_for
from doge_export.runtime.graph import FLOAT32


@dataclasses.dataclass(frozen=True)
class Request:
    """Which precisions, and how they are made and judged.

    Attributes:
        precisions: of `REDUCED`.
        max_kl: mean KL divergence that each may have; by default what its precision allows.
        calibration, eval_text: UTF-8 files; by default the float32 model writes these texts itself.
        float_cache: keys and values stay float32; else int8 and int4 graphs for onnxruntime cache them in 8 bits.
    """

    precisions: tuple[Precision, ...]
    max_kl: float | None = None
    calibration: Path | None = None
    eval_text: Path | None = None
    float_cache: bool = False

    def check_target(self, target: str | None) -> None:
        """Raises DogeExportError where a graph for `target` has no such form."""
        if target == "canonical" and any(precision is not FP16 for precision in self.precisions):
            raise DogeExportError(
                "a graph for target canonical is quantised by the compiler it is for: export for onnxruntime or "
                "portable, or leave it at --dtype fp16"
            )

    @classmethod
    def checked(
        cls,
        precisions: Sequence[str],
        max_kl: float | None = None,
        calibration: str | Path | None = None,
        eval_text: str | Path | None = None,
        float_cache: bool = False,
    ) -> Request:
        """Raises DogeExportError for a precision that is not known, a limit below 0, and files that are not there."""
        unknown = [name for name in precisions if name not in REDUCED]
        if unknown or not precisions:
            raise DogeExportError(
                f"cannot quantise to {', '.join(unknown) or 'nothing'}; choose {' or '.join(REDUCED)}"
            )
        if float_cache and all(REDUCED[name] is FP16 for name in precisions):
            raise DogeExportError(
                "a float32 cache is a choice of int8 and int4 only; add --quantize int8, or leave it out"
            )
        if max_kl is not None and not (max_kl >= 0 and math.isfinite(max_kl)):
            raise DogeExportError(f"max KL is {max_kl}, expected a number from 0")
        return cls(
            precisions=tuple(REDUCED[name] for name in dict.fromkeys(precisions)),
            max_kl=max_kl,
            calibration=_text(calibration),
            eval_text=_text(eval_text),
            float_cache=float_cache,
        )


def _text(name: str | Path | None) -> Path | None:
    """A text's file, if one was named. Raises DogeExportError where it is not there."""
    file = None if name is None else Path(name).expanduser()
    if file is not None and not file.is_file():
        raise DogeExportError(f"text {file} is not a file; give one in UTF-8")
    return file


@dataclasses.dataclass(frozen=True)
class QuantizeResult:
    """What `quantize` wrote: the quality of each new graph by its file."""

    folder: Path
    manifest: dict[str, Any]
    qualities: dict[str, Quality]


def quantize(
    folder: str | Path,
    precisions: Sequence[str],
    *,
    max_kl: float | None = None,
    calibration: str | Path | None = None,
    eval_text: str | Path | None = None,
    float_cache: bool = False,
    force: bool = False,
) -> QuantizeResult:
    """Add graphs in fewer bits to an exported folder. Needs its float32 graph, neither the checkpoint nor torch.

    Args:
        folder: as `export` wrote it. It changes whole at the end, or not at all.
        precisions: "int8", "int4", "fp16".
        max_kl, calibration, eval_text, float_cache: see `Request`.
        force: make graphs anew that are there already.

    Raises:
        DogeExportError: the arguments or the folder are wrong.
        RunFailed: a graph loses more than the limit; the folder is as it was.
    """
    folder = Path(folder)
    request = Request.checked(precisions, max_kl, calibration, eval_text, float_cache)
    manifest = verify(folder)
    if FLOAT32 not in manifest["graphs"]:
        raise DogeExportError(
            f"{folder} has no {FLOAT32} to quantise: it was made for {manifest['target']}; export the checkpoint with "
            f"`doge-export onnx {manifest['source']['model']} OUT`"
        )
    there = [precision.name for precision in request.precisions if precision.file in manifest["graphs"]]
    if there and not force:
        raise DogeExportError(f"{folder} has {', '.join(there)} already; make it anew with --force, or leave it out")
    if (folder / ".git").exists():
        raise DogeExportError(f"{folder} is a git repository, which is never replaced; quantise a copy of it")
    with staged_folder(folder, force=True) as staging:
        _copy(folder, staging)
        for precision in request.precisions:
            (staging / precision.file).unlink(missing_ok=True)
        qualities = add_graphs(staging, manifest, request)
        write_card(staging, manifest)
        manifest = write_manifest(staging, {name: value for name, value in manifest.items() if name != "files"})
    return QuantizeResult(folder, manifest, qualities)


def _copy(folder: Path, staging: Path) -> None:
    """Graphs, which are large and never written to, as links where the file system has them."""

    def copy(source: str, target: str) -> None:
        if Path(source).suffix == ".onnx" or source.endswith(".onnx_data"):
            try:
                os.link(source, target)
                return
            except OSError:
                pass
        shutil.copyfile(source, target)

    shutil.copytree(folder, staging, dirs_exist_ok=True, symlinks=True, copy_function=copy)


def add_graphs(folder: Path, manifest: dict[str, Any], request: Request) -> dict[str, Quality]:
    """Write graphs into a folder that is being staged and into `manifest`. Gives the quality of each by its file.

    Raises RunFailed for the first that loses more than its limit.
    """
    from doge_export.quantization.whole import WholeTexts

    request.check_target(manifest["target"])
    gc.collect()  # traced programs are full of cycles, which would keep their weights
    evaluation, calibration, ranges = _material(folder, request)
    qualities = {}
    for precision in request.precisions:
        started = time.monotonic()
        log(f"writing {precision.file}")
        if precision is FP16:
            described = _write_half(folder, evaluation)
        else:
            described = _write_quantised(folder, precision, calibration, ranges)
        limit = precision.max_kl if request.max_kl is None else request.max_kl
        with progress(f"measuring {precision.name}", len(evaluation.rows)) as advance:
            reference = WholeTexts(folder / FLOAT32, packs=False)
            quality = measure(reference, WholeTexts(folder / precision.file), evaluation, limit, advance)
            del reference
        log(f"{precision.name}: {quality.summary_line()}")
        if not quality.passed:
            raise RunFailed(
                f"{precision.name} loses too much: {quality.summary_line()}; nothing was written "
                "(--max-kl sets another limit)"
            )
        described["quality"] = quality.to_dict()
        described["seconds"] = round(time.monotonic() - started, 1)
        manifest["graphs"][precision.file] = described
        qualities[precision.file] = quality
    return qualities


def _material(folder: Path, request: Request) -> tuple[Texts, Texts | None, Ranges | None]:
    """Text to judge by, text to calibrate with, and what is cached on that: as far as the request needs them."""
    from doge_export.runtime.loading import load
    from doge_export.runtime.session import Session

    session = load(folder, precision="float32")
    log("writing text with the float32 model" if request.eval_text is None else f"reading {request.eval_text}")
    evaluation = texts_for("evaluation", session, request.eval_text)
    quantised = [precision for precision in request.precisions if precision is not FP16]
    in_place = isinstance(session, Session) and session.manifest["target"] == "onnxruntime"
    caches = bool(quantised) and in_place and not request.float_cache
    if not caches and all(precision.bits == 8 for precision in quantised):
        return evaluation, None, None
    calibration = texts_for("calibration", session, request.calibration)
    return evaluation, calibration, cache_ranges(session.decoder, calibration) if caches else None


def _write_half(folder: Path, texts: Texts) -> dict[str, Any]:
    """The graph in 16 bits, and what the manifest says of it. Raises RunFailed where a value would not fit."""
    import onnx_ir as ir

    from doge_export.package.onnx_file import describe_graph, write_onnx
    from doge_export.quantization.extremes import extremes_of
    from doge_export.targets.half import HalfPrecision, operators_by_type, prepare
    from doge_export.targets.half.extremes import by_operator

    extremes = extremes_of(folder / FLOAT32, texts)
    beyond = next((extreme for extreme in extremes if extreme.overflows), None)
    if beyond is not None:
        raise RunFailed(
            f"fp16 cannot hold this model: on text, {beyond}; nothing was written (int8 and int4 compute in float32)"
        )
    model = ir.load(folder / FLOAT32)
    prepare(model)
    HalfPrecision()(model)
    write_onnx(model, folder / FP16.file)
    typing = {"operators": operators_by_type(model), "largest": by_operator(extremes)}
    return {**describe_graph(model, FP16.name), "typing": typing}


def _write_quantised(
    folder: Path, precision: Precision, calibration: Texts | None, ranges: Ranges | None
) -> dict[str, Any]:
    """One quantised graph, and what the manifest says of it."""
    import onnx_ir as ir

    from doge_export.package.onnx_file import describe_graph, write_onnx
    from doge_export.quantization.quantize_caches import QuantizeCaches
    from doge_export.quantization.quantize_weights import ACCURACY_LEVEL, QuantizeWeights
    from doge_export.quantization.recipe import store
    from doge_export.quantization.weights import quantizable_weights
    from doge_export.targets.lowering import named

    model = ir.load(folder / FLOAT32)
    weights = quantizable_weights(model.graph)
    stored = store(weights, precision, folder / FLOAT32, calibration)
    QuantizeWeights(weights, stored)(model)
    if ranges is not None:
        QuantizeCaches(ranges)(model)
    write_onnx(model, folder / precision.file)
    quantization: dict[str, Any] = {
        "bits": precision.bits,
        "block": precision.block,
        "accuracy_level": ACCURACY_LEVEL,
        "method": "nearest" if calibration is None or precision.bits == 8 else "gptq",
        "exceptions": stored.exceptions,
    }
    if named(model.graph.inputs, ".key"):
        quantization["cache"] = "float32" if ranges is None else "int8"
    if calibration is not None and (precision.bits < 8 or ranges is not None):
        quantization["calibration"] = {"text": calibration.origin, "tokens": calibration.tokens}
    return {**describe_graph(model, precision.name), "quantization": quantization}
