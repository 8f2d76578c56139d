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
from doge_export.quantization.precision import QUANTIZED, Precision
from doge_export.quantization.quality import Quality, measure
from doge_export.quantization.texts import Texts, texts_for
from doge_export.runtime.graph import FLOAT32


@dataclasses.dataclass(frozen=True)
class Request:
    """Which precisions, and how they are made and judged.

    Attributes:
        precisions: of `QUANTIZED`.
        max_kl: mean KL divergence that each may have; by default what its precision allows.
        calibration, eval_text: UTF-8 files; by default the float32 model writes these texts itself.
    """

    precisions: tuple[Precision, ...]
    max_kl: float | None = None
    calibration: Path | None = None
    eval_text: Path | None = None

    @classmethod
    def checked(
        cls,
        precisions: Sequence[str],
        max_kl: float | None = None,
        calibration: str | Path | None = None,
        eval_text: str | Path | None = None,
    ) -> Request:
        """Raises DogeExportError for a precision that is not known, a limit below 0, and files that are not there."""
        unknown = [name for name in precisions if name not in QUANTIZED]
        if unknown or not precisions:
            raise DogeExportError(
                f"cannot quantise to {', '.join(unknown) or 'nothing'}; choose {' or '.join(QUANTIZED)}"
            )
        if max_kl is not None and not (max_kl >= 0 and math.isfinite(max_kl)):
            raise DogeExportError(f"max KL is {max_kl}, expected a number from 0")
        files = [None if name is None else Path(name).expanduser() for name in (calibration, eval_text)]
        for file in files:
            if file is not None and not file.is_file():
                raise DogeExportError(f"text {file} is not a file; give one in UTF-8")
        return cls(tuple(QUANTIZED[name] for name in dict.fromkeys(precisions)), max_kl, *files)


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
    force: bool = False,
) -> QuantizeResult:
    """Add graphs in fewer bits to an exported folder. Needs its float32 graph, neither the checkpoint nor torch.

    Args:
        folder: as `export` wrote it. It changes whole at the end, or not at all.
        precisions: "int8", "int4".
        max_kl, calibration, eval_text: see `Request`.
        force: make graphs anew that are there already.

    Raises:
        DogeExportError: the arguments or the folder are wrong.
        RunFailed: a graph loses more than the limit; the folder is as it was.
    """
    folder = Path(folder)
    request = Request.checked(precisions, max_kl, calibration, eval_text)
    manifest = verify(folder)
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

    if FLOAT32 not in manifest["graphs"]:
        raise DogeExportError(f"{folder} has no {FLOAT32} to quantise; export the model again")
    if manifest["target"] == "canonical":
        raise DogeExportError(
            "a graph for target canonical is quantised by the compiler it is for: export for onnxruntime or portable"
        )
    gc.collect()  # traced programs are full of cycles, which would keep their weights
    evaluation, calibration = _texts(folder, request)
    qualities = {}
    for precision in request.precisions:
        started = time.monotonic()
        log(f"writing {precision.file}")
        described = _write_graph(folder, precision, calibration)
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


def _texts(folder: Path, request: Request) -> tuple[Texts, Texts | None]:
    """To judge by, and to calibrate with where a precision needs it."""
    from doge_export.runtime.loading import load

    session = load(folder, precision="float32")
    log("writing text with the float32 model" if request.eval_text is None else f"reading {request.eval_text}")
    evaluation = texts_for("evaluation", session, request.eval_text)
    if all(precision.bits == 8 for precision in request.precisions):
        return evaluation, None
    return evaluation, texts_for("calibration", session, request.calibration)


def _write_graph(folder: Path, precision: Precision, calibration: Texts | None) -> dict[str, Any]:
    """One quantised graph, and what the manifest says of it."""
    import onnx_ir as ir

    from doge_export.package.onnx_file import describe_graph, write_onnx
    from doge_export.quantization.recipe import store
    from doge_export.quantization.sites import sites_of
    from doge_export.targets.passes.quantize_weights import ACCURACY_LEVEL, QuantizeWeights

    model = ir.load(folder / FLOAT32)
    sites = sites_of(model.graph)
    stored = store(sites, precision, folder / FLOAT32, calibration)
    QuantizeWeights(sites, stored)(model)
    write_onnx(model, folder / precision.file)
    quantization: dict[str, Any] = {
        "bits": precision.bits,
        "block": precision.block,
        "accuracy_level": ACCURACY_LEVEL,
        "method": "nearest" if calibration is None or precision.bits == 8 else "gptq",
        "exceptions": stored.exceptions,
    }
    if precision.bits < 8 and calibration is not None:
        quantization["calibration"] = {"text": calibration.origin, "tokens": calibration.tokens}
    return {**describe_graph(model, precision.name), "quantization": quantization}
