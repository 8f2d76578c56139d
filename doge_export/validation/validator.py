"""`validate`: run the checks on an exported folder and its checkpoint, and decide whether they agree."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export import console
from doge_export.errors import DogeExportError
from doge_export.installing import need
from doge_export.package.fingerprint import fingerprint
from doge_export.package.manifest import Manifest, read_manifest
from doge_export.paths import exists
from doge_export.validation.check_plan import SubjectTraits, plan_checks
from doge_export.validation.greedy import NAME as GREEDY
from doge_export.validation.greedy import check_greedy
from doge_export.validation.logits import check_logits
from doge_export.validation.one_call import OneCall, answer_scale, plan_one_call
from doge_export.validation.tolerance import tolerance_of
from doge_export.validation.verdict import CheckResult, Verdict

if TYPE_CHECKING:
    from doge_export.checkpoint import Checkpoint
    from doge_export.runtime import ClassificationSession, FeatureSession, Session
    from doge_export.runtime.native.support import Backend
    from doge_export.validation.oracle import Oracle


def validate(
    folder: str | Path,
    *,
    model: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    backend: Backend | None = None,
    allow_host_code: bool = False,
    adapter: str | Path | None = None,
    session: Session | FeatureSession | ClassificationSession | None = None,
    checkpoint: Checkpoint | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Verdict:
    """Compare an exported folder with its checkpoint, run in PyTorch with eager attention in float32.

    The reference is transformers, or doge-export's own module for generations that transformers does not have.

    Args:
        folder: a folder that `export` wrote.
        model: the checkpoint, a folder or hub id; by default the one that the manifest names, at its revision.
        revision: branch, tag or commit of a hub repository.
        token: access token for private and gated repositories.
        cache_dir: folder of downloads; by default the cache of huggingface_hub.
        offline: use cached files only.
        backend: what computes the folder's answers on a CPU, see `load`. None: its graph, which is what it holds.
        allow_host_code: see `load`.
        adapter: LoRA adapter to merge into the checkpoint's weights; by default the one that the manifest names.
        session: a session already open on the folder.
        checkpoint: the checkpoint already opened, instead of `model` and the options of the hub.
        on_progress: called with (done, total, name) before each check, and at the end with an empty name.

    Returns:
        The verdict; a failed check gives a verdict that has not passed, and no exception.

    Raises:
        DogeExportError: the folder, the checkpoint or transformers cannot be read, or the extra `export` is not
            installed.
    """
    need("export", "torch", "safetensors")
    from doge_export.runtime import Session, load

    started = time.perf_counter()
    if session is None:
        is_native = read_manifest(folder).target == "native"
        session = load(folder, backend=backend or (None if is_native else "graph"), allow_host_code=allow_host_code)
    manifest = session.manifest
    if checkpoint is None:
        checkpoint = open_recorded(
            manifest, model, revision, token=token, cache_dir=cache_dir, offline=offline, adapter=adapter
        )
    from doge_export.validation.references import load_oracle

    oracle = load_oracle(checkpoint, manifest.cdmoe_routing)
    traits = dataclasses.replace(
        SubjectTraits.of(checkpoint, session.max_length, manifest.cdmoe_routing),
        max_batch=session.decoder.max_batch if isinstance(session, Session) else None,
        tolerance=tolerance_of(manifest),
    )
    planned = _planned(oracle, session, traits)
    checks = []
    for done, (name, check) in enumerate(planned):
        if on_progress is not None:
            on_progress(done, len(planned), name)
        checks.append(check())
    if on_progress is not None:
        on_progress(len(planned), len(planned), "")
    described = oracle.describe()
    notes = [described["note"]] if described["note"] else []
    if any(check.passed is False for check in checks):
        changed = _changed_files(manifest, checkpoint.source.folder)
        notes += [f"not the files the folder was exported from: {', '.join(changed)}"] if changed else []
    return Verdict(
        checks=tuple(checks),
        reference={
            "library": described["library"],
            "version": described["version"],
            "torch": importlib.metadata.version("torch"),
            "attention": "eager",
            "dtype": "float32",
            "model": checkpoint.source.name,
            "revision": checkpoint.source.revision,
            "note": "; ".join(notes),
        },
        subject=_subject(session),
        seconds=time.perf_counter() - started,
        tolerance=traits.tolerance,
    )


def _planned(oracle: Oracle, session: Any, traits: SubjectTraits) -> list[tuple[str, Callable[[], CheckResult]]]:
    """Return the task's checks as (name, function to run it), in order."""
    if traits.task == "text-generation":
        checks = [(check.name, partial(check_logits, check, oracle, session, traits)) for check in plan_checks(traits)]
        return [*checks, (GREEDY, partial(check_greedy, oracle, session, traits))]
    subject, scale = OneCall(session), answer_scale(oracle, traits)
    return [
        (check.name, partial(check_logits, check, oracle, subject, traits, scale)) for check in plan_one_call(traits)
    ]


def open_recorded(
    manifest: Manifest, model: str | None = None, revision: str | None = None, **options: Any
) -> Checkpoint:
    """Open the checkpoint that a manifest names, or `model` in its place.

    Args:
        manifest: content of an exported folder's manifest.
        model: a folder or hub id; by default the manifest's.
        revision: branch, tag or commit; by default the manifest's.
        options: further keyword arguments of `open_checkpoint`.

    Raises:
        DogeExportError: the checkpoint cannot be opened.
    """
    from doge_export.checkpoint import open_checkpoint

    # The assumptions and the task must be those of the export.
    assumed = dataclasses.replace(manifest.assumed, task=manifest.task)
    adapter = manifest.source.adapter
    moved = model is not None and adapter is not None and not adapter.revision and not exists(Path(adapter.model))
    if options.get("adapter") is None and not moved:  # a moved folder may have its adapter beside it still
        options |= manifest.source.adapter_options
    if model is not None:
        return open_checkpoint(model, revision=revision, assumed=assumed, **options)
    recorded = manifest.source
    try:
        revision = revision or recorded.revision
        # A manifest of somebody else's may name any folder and any repository.
        console.log(f"reading the checkpoint {recorded.model}{f' at revision {revision}' if revision else ''}")
        return open_checkpoint(recorded.model, revision=revision, assumed=assumed, **options)
    except DogeExportError as error:
        raise DogeExportError(
            f"the checkpoint this folder was exported from is not to be had ({error}): "
            "pass --model with its folder or hub id"
        ) from error


def _changed_files(manifest: Manifest, folder: Path) -> list[str]:
    """Return the names of source files in the manifest that differ from those in `folder` or are missing there."""
    changed = []
    for name, entry in manifest.source.files.items():
        path = folder / name
        if not path.is_file():
            changed.append(f"{name} (missing)")
        elif fingerprint(path).sha256 != entry.sha256:
            changed.append(name)
    return changed


def _subject(session: Any) -> dict[str, Any]:
    manifest = session.manifest
    versions = {}
    for library in ("onnxruntime", "onnxruntime-gpu"):
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "target": manifest.target,
        "task": manifest.task,
        "max_length": session.max_length,
        "cdmoe_routing": manifest.cdmoe_routing,
        "files": {
            name: entry.sha256 for name, entry in manifest.files.items() if name.startswith(("onnx/", "engine/"))
        },
        "runtime": versions,
    }
