"""Plan of an export, decided before anything is written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast, get_args

from doge_export.console import log
from doge_export.errors import DogeExportError
from doge_export.installing import need
from doge_export.package.manifest import UNLIMITED, Cache

if TYPE_CHECKING:
    import onnx_ir as ir

    from doge_export.checkpoint import Checkpoint
    from doge_export.checkpoint.architecture import Architecture, CdmoeRouting, Generation, MoeVariant, Task
    from doge_export.checkpoint.identify import RatioScope
    from doge_export.package import GraphEntry, Manifest
    from doge_export.package.manifest import Interface
    from doge_export.quantization.request import QuantizationRequest
    from doge_export.targets import Target, Traits


@dataclasses.dataclass(frozen=True)
class ExportPlan:
    """The decisions of an export.

    Attributes:
        checkpoint: the checkpoint to export.
        architecture: architecture of the checkpoint, without a ratio mask that `max_length` cannot reach.
        target: target of the lowering.
        max_length: most tokens of a sequence, prompt and answer together.
        cdmoe_routing: "reference" or "per-token"; None for a model whose experts mix no tokens.
        key_selection: True if `max_length` exceeds keep_window_size, so that the graph selects keys.
        rope_scaling: True if `max_length` exceeds the trained length, so that the graph scales RoPE.
        parameters: number of weights.
        quantization: graphs to add in fewer bits; None for the fp32 one alone.
        cache: keys that the cache holds, see `package.manifest.Cache`.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    target: Target
    max_length: int
    cdmoe_routing: CdmoeRouting | None
    key_selection: bool
    rope_scaling: bool
    parameters: int
    quantization: QuantizationRequest | None = None
    cache: Cache = "unbounded"

    @property
    def chunkable_length(self) -> int:
        """Length up to which a prompt gives the same logits when it is read in pieces.

        It is 0 with reference CDMoE routing and with tokens that may see no key (`Architecture.may_fully_mask_rows`):
        both depend on the tokens of the same run. Scaled RoPE, which rotates each piece by the length so far, limits it
        to the trained length.
        """
        if self.cdmoe_routing == "reference" or self.architecture.may_fully_mask_rows:
            return 0
        trained = self.architecture.trained_length
        return trained if trained is not None and self.rope_scaling else self.max_length

    @property
    def traits(self) -> Traits:
        """Traits of the model that decide the lowering."""
        from doge_export.targets import Traits

        architecture = self.architecture
        return Traits(
            cached=architecture.task == "text-generation",
            fully_masked_rows=self.cdmoe_routing == "reference" or architecture.may_fully_mask_rows,
            static_rope=architecture.rotates_keys and not self.rope_scaling,
            max_length=self.max_length,
            bounded=self.cache == "bounded",
        )

    @property
    def interface(self) -> Interface:
        """Protocol of the graph's inputs and outputs."""
        if not self.traits.cached:
            return "one-call"
        bounded = self.cache == "bounded"
        return cast("Interface", self.target.bounded_interface if bounded else self.target.interface)

    @property
    def bytes(self) -> int:
        """Size of the float32 weights."""
        return 4 * self.parameters

    def manifest(self, graphs: dict[str, GraphEntry], *, skipped: str) -> Manifest:
        """Return the manifest of this export before validation, which is recorded as skipped for the reason given."""
        from doge_export.package import Manifest
        from doge_export.package.provenance import source_of, versions
        from doge_export.version import __version__

        checkpoint = self.checkpoint
        return Manifest(
            doge_export=__version__,
            source=source_of(checkpoint),
            architecture=checkpoint.architecture.to_dict(),
            task=checkpoint.architecture.task,
            assumptions=checkpoint.assumed.to_dict(),
            target=self.target.name,
            max_length=self.max_length,
            chunkable_length=self.chunkable_length,
            cdmoe_routing=self.cdmoe_routing,
            graphs=graphs,
            versions=versions(),
            validation={"skipped": skipped},
            cache=self.cache,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        source = self.checkpoint.source
        return {
            "model": source.name,
            "revision": source.revision,
            "adapter": None if self.checkpoint.adapter is None else self.checkpoint.adapter.source.name,
            "target": self.target.name,
            "task": self.checkpoint.architecture.task,
            "max_length": self.max_length,
            "cache": self.cache,
            "cdmoe_routing": self.cdmoe_routing,
            "key_selection": self.key_selection,
            "rope_scaling": self.rope_scaling,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "quantization": None if self.quantization is None else self.quantization.to_dict(),
            "notes": list(self.checkpoint.notes),
            "identity": dataclasses.asdict(self.checkpoint.identity),
            "architecture": self.checkpoint.architecture.to_dict(),
        }


class Options(TypedDict, total=False):
    """Keywords of `plan` and `export`.

    Attributes:
        target: "onnxruntime" (the default) for our own runtime, "portable" for anything that reads ONNX, "canonical"
            for compilers with a plugin for the two operators, "native" for onnxruntime with the native decoder as its
            one operator.
        task: "text-generation", "feature-extraction" or "text-classification"; by default the task of the checkpoint's
            head.
        max_length: most tokens of a sequence, prompt and answer together; max_position_embeddings by default.
            "unlimited", with a bounded cache, is as many as RoPE has exact float32 positions, 16777216.
        cache: "unbounded" (the default) holds the keys of all tokens, "bounded" only those that a later token may
            attend to, keep_window_size of each layer and head: exact, and of constant size.
        cdmoe_routing: "reference" (the default) mixes tokens as transformers does, "per-token" does not; without effect
            on a model without CDMoE.
        generation, cdmoe, ratio_mask: facts that the files of an old checkpoint leave open, see `Assumptions`.
        precisions: "int8", "int4", "fp16", "q4f16": graphs to add to the fp32 one, each with a limit on its losses
            against it.
        max_kl, calibration, eval_text, float_cache, expand_weights: see `quantization.request.QuantizationRequest`.
        revision: branch, tag or commit of a hub repository.
        token: access token for a private hub repository.
        cache_dir: folder for downloads.
        offline: use the cache only.
        trust_remote_code: always refused.
        adapter, adapter_revision: LoRA adapter to merge, see `open_checkpoint`.
    """

    target: str
    task: Task | None
    max_length: int | Literal["unlimited"] | None
    cache: Cache
    cdmoe_routing: CdmoeRouting
    generation: Generation | None
    cdmoe: MoeVariant | None
    ratio_mask: RatioScope | None
    precisions: Sequence[str]
    max_kl: float | None
    calibration: str | Path | None
    eval_text: str | Path | None
    float_cache: bool
    expand_weights: bool
    revision: str | None
    token: str | None
    cache_dir: str | Path | None
    offline: bool
    trust_remote_code: bool
    adapter: str | Path | None
    adapter_revision: str | None


_WHERE = ("revision", "token", "cache_dir", "offline", "trust_remote_code", "adapter", "adapter_revision")
_QUANTIZATION = ("precisions", "max_kl", "calibration", "eval_text", "float_cache", "expand_weights")
_RENAMED = {"quantize": "precisions", "dtype": "precisions"}


def plan(model: str | Path, **options: Unpack[Options]) -> ExportPlan:
    """Plan an export: read the checkpoint and write nothing.

    Args:
        model: a local folder, a bundled name or a hub id.
        options: see `Options`.

    Raises:
        DogeExportError: the arguments or the checkpoint are wrong, or the extra `export` is not installed.
        TypeError: there is no option of that name.
    """
    need("export", "torch", "safetensors")
    from doge_export.checkpoint import open_checkpoint
    from doge_export.checkpoint.identify import Assumptions
    from doge_export.checkpoint.naming import expected_tensors
    from doge_export.pipeline.bounded import check_bounded
    from doge_export.quantization.request import QuantizationRequest
    from doge_export.runtime.generation_config import GenerationConfig
    from doge_export.targets import TARGETS

    given: dict[str, Any] = dict(options)
    unknown = given.keys() - Options.__annotations__.keys()
    if unknown:
        renamed = "".join(f"; {name} is called {_RENAMED[name]}" for name in sorted(unknown & _RENAMED.keys()))
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}{renamed}")
    target, cdmoe_routing = given.get("target", "onnxruntime"), given.get("cdmoe_routing", "reference")
    is_native = target == "native"
    if is_native:  # a form of what is exported for onnxruntime
        target = "onnxruntime"
    if target not in TARGETS:
        raise DogeExportError(f"unknown target {target!r}; choose one of {', '.join([*TARGETS, 'native'])}")
    if cdmoe_routing not in ("reference", "per-token"):
        raise DogeExportError(f"unknown CDMoE routing {cdmoe_routing!r}; choose reference or per-token")
    assumed, _ = Assumptions.taken_from(given)
    quantization = QuantizationRequest.of(
        **{name: given[name] for name in _QUANTIZATION if name in given}, target=target
    )
    log(f"reading {model}")
    checkpoint = open_checkpoint(model, assumed=assumed, **{name: given[name] for name in _WHERE if name in given})
    architecture = checkpoint.architecture
    for note in (*checkpoint.identity.notes, *checkpoint.notes):
        log(f"note: {note}")
    if architecture.task == "text-generation":  # told now, and not by the first answer of the folder
        for note in GenerationConfig.from_folder(checkpoint.source.folder, architecture.vocab_size).notes:
            log(f"note: {note}")
    if quantization is not None:
        _check_texts(quantization, checkpoint)
    cache = given.get("cache", "unbounded")
    max_length = _checked_length(given.get("max_length"), cache, architecture)
    if cache == "bounded":
        check_bounded(TARGETS[target], architecture, max_length)
    architecture = architecture.within(max_length)
    _check_operators(TARGETS[target], architecture)
    if is_native:
        from doge_export.pipeline.native_folder import check_native

        check_native(architecture, tuple(given.get("precisions") or ()))
    return ExportPlan(
        checkpoint=checkpoint,
        architecture=architecture,
        target=TARGETS[target],
        max_length=max_length,
        cdmoe_routing=cdmoe_routing if architecture.moe and architecture.moe.mixes_tokens else None,
        key_selection=architecture.selects_keys(max_length),
        rope_scaling=architecture.scales_rope(max_length),
        parameters=sum(math.prod(shape) for shape in expected_tensors(architecture).values()),
        quantization=quantization,
        cache=cache,
    )


def trace_plan(planned: ExportPlan) -> ir.Model:
    """Trace the float32 graph of a plan, with the two operators as nodes of domain `doge`, before any lowering."""
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


def _check_texts(request: QuantizationRequest, checkpoint: Checkpoint) -> None:
    """Refuse texts that are too short in the tokenizer that the folder will have."""
    import tokenizers

    from doge_export.quantization.texts import check_files
    from doge_export.runtime.tokenizer import Tokenizer

    if request.calibration is None and request.eval_text is None:
        return
    made = checkpoint.tokenizer.made.get("tokenizer.json")
    file = next((file for file in checkpoint.tokenizer_files if file.name == "tokenizer.json"), None)
    tokenizer = None
    if made is not None:
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_buffer(made), special_tokens={}, chat_templates={})
    elif file is not None:
        tokenizer = Tokenizer.from_folder(file.parent)
    check_files(request, tokenizer)


def _check_operators(target: Target, architecture: Architecture) -> None:
    """Refuse a mask that may hide all keys from a token, a case that a plugin's two operators do not define."""
    if target.keeps_operators and architecture.may_fully_mask_rows:
        which = "dynamic_mask_ratio" if architecture.ratio_mask else "a hard mask of negative A"
        raise DogeExportError(
            f"target {target.name} has no operator for {which} ({architecture.generation}), where a token may"
            " see no key: export for onnxruntime or portable"
        )


def _checked_length(max_length: int | str | None, cache: str, architecture: Architecture) -> int:
    if cache not in get_args(Cache):
        raise DogeExportError(f"unknown cache {cache!r}; choose {' or '.join(get_args(Cache))}")
    if max_length == "unlimited":
        if cache != "bounded":
            raise DogeExportError(
                "max length unlimited needs a cache of constant size: add --cache bounded, or give a number of tokens"
            )
        return UNLIMITED
    if max_length is None:
        max_length = architecture.max_position_embeddings
    if not isinstance(max_length, int) or isinstance(max_length, bool) or not 1 <= max_length <= UNLIMITED:
        raise DogeExportError(f"max length {max_length!r} is not a number of tokens from 1 to {UNLIMITED}")
    return max_length
