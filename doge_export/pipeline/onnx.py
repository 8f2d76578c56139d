"""From a checkpoint to a validated folder: checkpoint -> model -> graph -> targets -> package -> verdict."""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from doge_export.console import log
from doge_export.errors import DogeExportError
from doge_export.memory import peak_resident_bytes
from doge_export.version import __version__

if TYPE_CHECKING:
    import onnx_ir as ir

    from doge_export.checkpoint import Checkpoint
    from doge_export.checkpoint.architecture import Architecture, CdmoeRouting, Generation, MoeVariant, Task
    from doge_export.checkpoint.identify import RatioScope
    from doge_export.quantization.quality import Quality
    from doge_export.quantization.quantize import Request
    from doge_export.targets import Target, Traits
    from doge_export.validation import Verdict

GRAPH = "onnx/model.onnx"


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """What `export` wrote.

    `verdict` is None where validation was not asked for; `qualities` are those of quantised graphs, by their files.
    """

    folder: Path
    manifest: dict[str, Any]
    verdict: Verdict | None
    qualities: dict[str, Quality] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an export will contain, decided before anything is written.

    `architecture` is that of the checkpoint without a ratio mask that `max_length` cannot reach. `key_selection` and
    `rope_scaling` say whether `max_length` can reach beyond keep_window_size and beyond the trained length, so that the
    graph needs these mechanisms. `bytes` is the size of the float32 weights.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    output: Path
    target: Target
    max_length: int
    cdmoe_routing: CdmoeRouting | None
    key_selection: bool
    rope_scaling: bool
    parameters: int

    @property
    def chunkable_length(self) -> int:
        """Up to which length a prompt gives the same logits when it is read in pieces.

        Reference CDMoE routing depends on what is read together, as does the place of a token that may see no key
        (`Architecture.may_fully_mask_rows`), and scaled RoPE turns each piece by the length so far.
        """
        if self.cdmoe_routing == "reference" or self.architecture.may_fully_mask_rows:
            return 0
        trained = self.architecture.trained_length
        return trained if trained is not None and self.rope_scaling else self.max_length

    @property
    def traits(self) -> Traits:
        """What the lowering must know."""
        from doge_export.targets import Traits

        architecture = self.architecture
        return Traits(
            cached=architecture.task == "text-generation",
            fully_masked_rows=self.cdmoe_routing == "reference" or architecture.may_fully_mask_rows,
            static_rope=architecture.rotates_keys and not self.rope_scaling,
            max_length=self.max_length,
        )

    @property
    def bytes(self) -> int:
        """Size of the weights in the file."""
        return 4 * self.parameters

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        source = self.checkpoint.source
        return {
            "model": source.name,
            "revision": source.revision,
            "output": str(self.output),
            "target": self.target.name,
            "task": self.checkpoint.architecture.task,
            "max_length": self.max_length,
            "cdmoe_routing": self.cdmoe_routing,
            "key_selection": self.key_selection,
            "rope_scaling": self.rope_scaling,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "identity": dataclasses.asdict(self.checkpoint.identity),
            "architecture": self.checkpoint.architecture.to_dict(),
        }


class Options(TypedDict, total=False):
    """What `plan` and `export` take by keyword.

    Attributes:
        target: "onnxruntime" (the default) for our own runtime, "portable" for anything that reads ONNX, "canonical"
            for compilers with a plugin for the two operators.
        task: "text-generation", "feature-extraction" or "text-classification"; by default what the checkpoint has a
            head for.
        max_length: tokens a sequence may have, prompt and answer together; max_position_embeddings by default.
        cdmoe_routing: "reference" (the default) mixes tokens as transformers does, "per-token" does not; of no meaning
            without CDMoE.
        generation, cdmoe, ratio_mask: what the files of an old checkpoint leave open, see `Assumptions`.
        revision: branch, tag or commit of a hub repository.
        token: for a private hub repository.
        cache_dir: where downloads are kept.
        offline: use the cache only.
        force: replace a non-empty output.
        trust_remote_code: always refused.
    """

    target: str
    task: Task | None
    max_length: int | None
    cdmoe_routing: CdmoeRouting
    generation: Generation | None
    cdmoe: MoeVariant | None
    ratio_mask: RatioScope | None
    revision: str | None
    token: str | None
    cache_dir: str | Path | None
    offline: bool
    force: bool
    trust_remote_code: bool


_WHERE = ("revision", "token", "cache_dir", "offline", "trust_remote_code")


def plan(model: str | Path, output: str | Path, **options: Unpack[Options]) -> Plan:
    """What `export` would do with these arguments. Reads the checkpoint and writes nothing; raises as `export` does."""
    from doge_export.checkpoint import open_checkpoint
    from doge_export.checkpoint.identify import Assumptions
    from doge_export.checkpoint.naming import expected_tensors
    from doge_export.package import refuse_output
    from doge_export.paths import protected_by
    from doge_export.targets import TARGETS

    given: dict[str, Any] = dict(options)
    unknown = given.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    target, cdmoe_routing = given.get("target", "onnxruntime"), given.get("cdmoe_routing", "reference")
    if target not in TARGETS:
        raise DogeExportError(f"unknown target {target!r}; choose one of {', '.join(TARGETS)}")
    if cdmoe_routing not in ("reference", "per-token"):
        raise DogeExportError(f"unknown CDMoE routing {cdmoe_routing!r}; choose reference or per-token")
    assumed, _ = Assumptions.taken_from(given)
    # Before any download.
    refuse_output(Path(output), force=given.get("force", False), protected=protected_by(model))
    log(f"reading {model}")
    checkpoint = open_checkpoint(model, assumed=assumed, **{name: given[name] for name in _WHERE if name in given})
    architecture = checkpoint.architecture
    for note in checkpoint.identity.notes:
        log(f"note: {note}")
    max_length = _checked_length(given.get("max_length"), architecture)
    architecture = architecture.within(max_length)
    _check_operators(TARGETS[target], architecture)
    return Plan(
        checkpoint=checkpoint,
        architecture=architecture,
        output=Path(output),
        target=TARGETS[target],
        max_length=max_length,
        cdmoe_routing=cdmoe_routing if architecture.moe and architecture.moe.mixes_tokens else None,
        key_selection=architecture.selects_keys(max_length),
        rope_scaling=architecture.scales_rope(max_length),
        parameters=sum(math.prod(shape) for shape in expected_tensors(architecture).values()),
    )


def _check_operators(target: Target, architecture: Architecture) -> None:
    """A plugin knows two operators, which leave open what a token that sees no key attends to."""
    if target.keeps_operators and architecture.may_fully_mask_rows:
        which = "dynamic_mask_ratio" if architecture.ratio_mask else "a hard mask of negative A"
        raise DogeExportError(
            f"target {target.name} has no operator for {which} ({architecture.generation}), where a token may"
            " see no key: export for onnxruntime or portable"
        )


def export(
    model: str | Path,
    output: str | Path,
    *,
    validate: bool = True,
    report: str | Path | None = None,
    quantize: Sequence[str] = (),
    dtype: Sequence[str] = (),
    max_kl: float | None = None,
    calibration: str | Path | None = None,
    eval_text: str | Path | None = None,
    float_cache: bool = False,
    **options: Unpack[Options],
) -> ExportResult:
    """Export a Doge checkpoint to a folder, and prove the folder against PyTorch.

    Args:
        model: a local folder or a hub id.
        output: the folder to write; it appears whole at the end, or not at all.
        validate: compare with PyTorch before the folder appears; the manifest records when this is False.
        report: also write the comparison as an HTML file.
        quantize, dtype: "int8", "int4"; "fp16": graphs to add in fewer bits, each held to a limit against the float32
            one, which is always there.
        max_kl, calibration, eval_text, float_cache: how, see `quantization.quantize.Request`.
        options: see `Options`.

    Raises:
        DogeExportError: the arguments or the checkpoint are wrong.
        RunFailed: the export does not agree with PyTorch, or a quantised graph loses more than its limit; nothing is
            left at `output`.
    """
    from doge_export.package import staged_folder, write_card, write_manifest
    from doge_export.package.provenance import copy_companions, source_of, versions
    from doge_export.paths import expanded, protected_by, report_path
    from doge_export.quantization.quantize import add_graphs
    from doge_export.validation.gate import require_validation

    started = time.monotonic()
    request = _request([*quantize, *dtype], max_kl, calibration, eval_text, float_cache, options.get("target"))
    report_file = None if report is None else report_path(report, output)  # refused now, written only at the end
    planned = plan(model, output, **options)
    checkpoint = planned.checkpoint
    verdict, qualities = None, {}
    with staged_folder(output, force=options.get("force", False), protected=protected_by(model)) as folder:
        graph = _write_graph(planned, folder)
        copy_companions(checkpoint.companions, folder)
        manifest = {
            "doge_export": __version__,
            "source": source_of(checkpoint),
            "architecture": checkpoint.architecture.to_dict(),
            "task": checkpoint.architecture.task,
            "assumptions": checkpoint.assumed.to_dict(),
            "target": planned.target.name,
            "max_length": planned.max_length,
            "chunkable_length": planned.chunkable_length,
            "cdmoe_routing": planned.cdmoe_routing,
            "graphs": {GRAPH: graph},
            "versions": versions(),
            "validation": {"skipped": "--no-validate"},
        }
        if validate:
            write_manifest(folder, manifest)
            gc.collect()  # traced programs are full of cycles, which would keep the weights through the validation
            advice = "--report FILE shows more, --no-validate keeps the folder"
            verdict = require_validation(folder, advice, report=report_file, checkpoint=checkpoint)
            manifest["validation"] = verdict.to_dict()
        if request is not None:
            write_manifest(folder, manifest)
            qualities = add_graphs(folder, manifest, request)
        manifest["seconds"] = round(time.monotonic() - started, 1)
        manifest["peak_memory_bytes"] = peak_resident_bytes()
        write_card(folder, manifest)
        manifest = write_manifest(folder, manifest)
    return ExportResult(expanded(output), manifest, verdict, qualities)


def _request(
    precisions: Sequence[str],
    max_kl: float | None,
    calibration: str | Path | None,
    eval_text: str | Path | None,
    float_cache: bool,
    target: str | None,
) -> Request | None:
    """What is to be quantised; refused before anything is read."""
    from doge_export.quantization.quantize import Request

    if not precisions:
        if float_cache or any(value is not None for value in (max_kl, calibration, eval_text)):
            raise DogeExportError(
                "a limit, a text or a cache is given, but no precision; add --quantize int8 or --dtype fp16"
            )
        return None
    request = Request.checked(precisions, max_kl, calibration, eval_text, float_cache)
    request.check_target(target)
    return request


def _checked_length(max_length: int | None, architecture: Architecture) -> int:
    if max_length is None:
        return architecture.max_position_embeddings
    if not isinstance(max_length, int) or isinstance(max_length, bool) or not 1 <= max_length <= 2**24:
        raise DogeExportError(f"max length {max_length!r} is not a number of tokens from 1 to {2**24}")
    return max_length


def trace_plan(planned: Plan) -> ir.Model:
    """The float32 graph of a plan, with the two operators as nodes of domain `doge`, before any lowering."""
    from doge_export.graph import trace
    from doge_export.model import MODULES

    log("tracing")
    module = MODULES[planned.architecture.task].from_tensors(
        planned.architecture,
        planned.checkpoint.tensors,
        planned.cdmoe_routing or "reference",
        planned.max_length,
    )
    return trace(module)


def _write_graph(planned: Plan, folder: Path) -> dict[str, Any]:
    """Trace, lower and write; every weight is freed on return. Gives the manifest's description of the graph."""
    from doge_export.package.onnx_file import describe_graph, write_onnx
    from doge_export.targets import lower

    model = trace_plan(planned)
    log(f"lowering for {planned.target.name}")
    lower(model, planned.target, planned.traits)
    log(f"writing {GRAPH}, {planned.bytes / 1e6:.1f} MB of weights")
    (folder / GRAPH).parent.mkdir()
    write_onnx(model, folder / GRAPH)
    return describe_graph(model)
