"""Export to ONNX: checkpoint -> model -> graph -> target -> package -> verdict."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from doge_export.console import log
from doge_export.installing import need
from doge_export.package.manifest import MODEL, GraphEntry, Manifest
from doge_export.paths import check_apart, report_path
from doge_export.pipeline.folder import Draft, OutputFolder
from doge_export.pipeline.plan import ExportPlan, Options, plan, trace_plan

if TYPE_CHECKING:
    from doge_export.quantization.quality import Quality
    from doge_export.validation import Verdict


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """Result of `export`.

    Attributes:
        folder: the folder that was written.
        manifest: content of its doge_export.json.
        verdict: result of the comparison with PyTorch; None without `validate`.
        qualities: losses of each graph in fewer bits, by file name.
    """

    folder: Path
    manifest: Manifest
    verdict: Verdict | None
    qualities: dict[str, Quality] = dataclasses.field(default_factory=dict)


def export(
    model: str | Path,
    output: str | Path,
    *,
    validate: bool = True,
    report: str | Path | None = None,
    force: bool = False,
    **options: Unpack[Options],
) -> ExportResult:
    """Export a Doge checkpoint to a folder, and validate the folder against PyTorch.

    Args:
        model: a local folder, a bundled name or a hub id.
        output: the folder to write; it appears whole at the end, or not at all.
        validate: compare with PyTorch before the folder appears; if False, the manifest records that.
        report: also write the comparison as an HTML file.
        force: replace an output that is not empty.
        options: see `Options`.

    Raises:
        DogeExportError: the arguments or the checkpoint are wrong.
        RunFailed: the export does not agree with PyTorch, or a graph in fewer bits loses more than its limit; nothing
            is left at `output`. Or the report could not be written; the folder is whole then.
    """
    need("export", "torch", "onnx", "onnxscript", "safetensors")
    from doge_export.quantization.add_graphs import add_graphs

    began = time.monotonic()
    folder, report_file = checked_places(model, output, report, force, **options)
    planned = plan(model, **options)
    is_native = options.get("target") == "native"
    verdict: Verdict | None = None
    qualities: dict[str, Quality] = {}
    with folder.draft() as draft:
        graph = _write_graph(planned, draft.folder)
        draft.take_over(planned.checkpoint.companions, planned.checkpoint.tokenizer.made)
        draft.describe(planned.manifest({MODEL: graph}, skipped="--no-validate"))
        if is_native:  # what is validated is what the folder will hold, so the native form comes before
            manifest, qualities = _native(draft, planned)
            draft.describe(manifest)
        if validate:
            advice = "--report FILE shows more, --no-validate keeps the folder"
            verdict = draft.validate(advice, report=report_file, checkpoint=planned.checkpoint)
        if planned.quantization is not None and not is_native:
            manifest, qualities = add_graphs(draft.folder, draft.manifest, planned.quantization)
            draft.describe(manifest)
        draft.record_run(began)
        manifest = draft.finish()
    draft.require_report()
    return ExportResult(draft.output, manifest, verdict, qualities)


def _native(draft: Draft, planned: ExportPlan) -> tuple[Manifest, dict[str, Quality]]:
    """Add the graphs in fewer bits, judged as those for onnxruntime, and give all of them their native form."""
    from doge_export.pipeline.native_folder import make_native
    from doge_export.quantization.add_graphs import add_graphs

    qualities: dict[str, Quality] = {}
    if planned.quantization is not None:
        manifest, qualities = add_graphs(draft.folder, draft.manifest, planned.quantization)
        draft.describe(manifest)
    return make_native(draft.folder, draft.manifest), qualities


def checked_places(
    model: str | Path, output: str | Path, report: str | Path | None, force: bool, **options: Unpack[Options]
) -> tuple[OutputFolder, Path | None]:
    """Return the output folder and the path of the report of an export, or refuse them before the work.

    Raises:
        DogeExportError: one of them cannot be written, or would overwrite something that the run reads.
    """
    texts = {f"--{name.replace('_', '-')}": options.get(name) for name in ("calibration", "eval_text")}
    folder = OutputFolder.checked(output, force=force, reads=[model, *texts.values()])  # type: ignore[list-item]
    if report is None:
        return folder, None
    file = report_path(report, output)
    check_apart({"--report": file}, {"MODEL": model, **texts}, output)  # type: ignore[dict-item]
    return folder, file


def _write_graph(planned: ExportPlan, folder: Path) -> GraphEntry:
    """Trace, lower and write the fp32 graph; its weights are freed on return, before the validation."""
    from doge_export.package.onnx_file import describe_graph, write_onnx
    from doge_export.targets import lower

    graph = trace_plan(planned)
    log(f"lowering for {planned.target.name}")
    lower(graph, planned.target, planned.traits)
    log(f"writing {MODEL}, {planned.bytes / 1e6:.1f} MB of weights")
    (folder / MODEL).parent.mkdir()
    write_onnx(graph, folder / MODEL)
    return describe_graph(graph, "fp32", planned.interface)
