"""`validate`: run the checks on an exported folder and on its checkpoint, and say whether they agree."""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export.errors import DogeExportError
from doge_export.validation.greedy import check_greedy
from doge_export.validation.logits import check_logits
from doge_export.validation.plan import Limits, plan
from doge_export.validation.verdict import Verdict

if TYPE_CHECKING:
    from doge_export.checkpoint.source import Source
    from doge_export.runtime import Session
    from doge_export.validation.oracle import Oracle


PER_TOKEN_NOTE = (
    "per-token CDMoE routing: transformers, which mixes the tokens of a call, was fed one token of one row at a time, "
    "where both routings agree"
)


def validate(
    folder: str | Path,
    *,
    model: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    session: Session | None = None,
    source: Source | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Verdict:
    """Hold an exported folder against its checkpoint run by transformers: eager attention, float32.

    folder: what `export` wrote.
    model: the checkpoint, a folder or hub id; by default the one the manifest names, at the revision it names.
    source: the checkpoint already located, instead of model and its options.
    session: a session already open on the folder.
    on_progress(done, total, name) is called before each check, and once at the end with an empty name.

    Returns a Verdict; a failed check is a Verdict that has not passed, not an error. Raises DogeExportError where the
    folder, the checkpoint or transformers cannot be read.
    """
    started = time.perf_counter()
    if session is None:
        from doge_export.runtime import load

        session = load(folder)
    source = source or _locate(session.manifest, model, revision, token=token, cache_dir=cache_dir, offline=offline)
    from doge_export.validation.oracle import load_oracle

    oracle = load_oracle(source.folder, per_token=session.manifest.get("cdmoe_routing") == "per-token")
    limits = _limits(oracle, session)
    planned = plan(limits)
    total = len(planned) + 1
    checks = []
    for done, check in enumerate(planned):
        if on_progress is not None:
            on_progress(done, total, check.name)
        checks.append(check_logits(check, oracle, session, limits))
    if on_progress is not None:
        on_progress(total - 1, total, "greedy generation")
    checks.append(check_greedy(oracle, session, limits))
    if on_progress is not None:
        on_progress(total, total, "")
    notes = [PER_TOKEN_NOTE] if oracle.per_token else []
    if any(check.passed is False for check in checks):
        changed = _changed_files(session.manifest, source.folder)
        notes += [f"not the files the folder was exported from: {', '.join(changed)}"] if changed else []
    return Verdict(
        checks=tuple(checks),
        reference={
            "library": "transformers",
            "version": importlib.metadata.version("transformers"),
            "torch": importlib.metadata.version("torch"),
            "attention": "eager",
            "dtype": "float32",
            "model": source.name,
            "revision": source.revision,
            "note": "; ".join(notes),
        },
        subject=_subject(session),
        seconds=time.perf_counter() - started,
    )


def _locate(manifest: Mapping[str, Any], model: str | None, revision: str | None, **options: Any) -> Source:
    from doge_export.checkpoint import open_checkpoint

    # Opened as for an export: transformers answers a damaged or foreign checkpoint with a traceback, or takes it.
    if model is not None:
        return open_checkpoint(model, revision=revision, **options).source
    recorded = manifest["source"]
    try:
        return open_checkpoint(recorded["model"], revision=revision or recorded.get("revision"), **options).source
    except DogeExportError as error:
        raise DogeExportError(
            f"the checkpoint this folder was exported from is not to be had ({error}): "
            "pass --model with its folder or hub id"
        ) from error


def _limits(oracle: Oracle, session: Session) -> Limits:
    config = oracle.config
    special = [config.bos_token_id, config.eos_token_id, config.pad_token_id]
    flat = [item for entry in special for item in (entry if isinstance(entry, list) else [entry])]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Limits(
        max_length=session.max_length,
        vocab_size=config.vocab_size,
        keep_window_size=config.keep_window_size,
        trained_length=oracle.trained_length,
        num_hidden_layers=config.num_hidden_layers,
        attention_size=config.num_attention_heads * head_dim,
        multiplications_per_token=oracle.multiplications_per_token,
        reserved_ids=frozenset(item for item in flat if item is not None),
        pad_id=config.pad_token_id if config.pad_token_id is not None else 0,
        mixes_tokens=bool(config.is_moe) and not oracle.per_token,
    )


def _changed_files(manifest: Mapping[str, Any], folder: Path) -> list[str]:
    """Names of the recorded source files that `folder` holds with another content, or not at all."""
    changed = []
    for name, entry in manifest["source"].get("files", {}).items():
        path = folder / name
        if not path.is_file():
            changed.append(f"{name} (missing)")
            continue
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                changed.append(name)
    return changed


def _subject(session: Session) -> dict[str, Any]:
    manifest = session.manifest
    files = manifest.get("files", {})
    versions = {}
    for library in ("onnxruntime", "onnxruntime-gpu"):
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "target": manifest.get("target"),
        "max_length": session.max_length,
        "cdmoe_routing": manifest.get("cdmoe_routing"),
        "files": {name: entry["sha256"] for name, entry in files.items() if name.startswith("onnx/")},
        "runtime": versions,
    }
