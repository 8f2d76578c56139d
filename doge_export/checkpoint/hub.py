"""Downloads from the Hugging Face hub: JSON, templates and safetensors only; every failure is a one-line error.

`huggingface_hub` resolves the revision, resumes broken transfers and keeps the cache. It compares sizes but not
contents (2026-11-21), so the weights are hashed here: a cache entry is named by the sha256 of its content.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub import utils as hub_utils
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging as hub_logging

from doge_export.checkpoint.files import COMPANIONS, CONFIG, INDEX, TEMPLATES, VOCABULARY_FILES
from doge_export.console import own_bars
from doge_export.errors import DogeExportError

METADATA = [*COMPANIONS, f"{TEMPLATES}/*.jinja", "adapter_config.json"]
_WITHOUT_TOKENIZER = [CONFIG, "generation_config.json", "adapter_config.json"]
_OTHERS = [TEMPLATES[:length] for length in range(1, len(TEMPLATES))]
IGNORED = ["*/*/*", f"[!{TEMPLATES[0]}]*/*", *(f"{name}/*" for name in _OTHERS), f"{TEMPLATES}?*/*"]
IGNORED += [f"{name}[!{TEMPLATES[len(name)]}]*/*" for name in _OTHERS]
"""Patterns of the files in all folders but TEMPLATES: patterns cannot say "but"."""
WEIGHTS = ["*.safetensors", INDEX]

# Base error of the HTTP library, which is requests or httpx depending on the version of huggingface_hub.
_TransportError: type[Exception] = HfHubHTTPError.__bases__[0]
# RuntimeError is what hf_xet raises when a transfer fails; ValueError comes of a revision or token that is no text.
_FAILURES = (HfHubHTTPError, EntryNotFoundError, HFValidationError, _TransportError, OSError, RuntimeError, ValueError)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings of huggingface_hub, and its progress bars unless stderr is a terminal."""
    verbosity = hub_logging.get_verbosity()
    hide_bars = not sys.stderr.isatty() and not hub_utils.are_progress_bars_disabled()
    hub_logging.set_verbosity_error()
    if hide_bars:
        hub_utils.disable_progress_bars()
    try:
        with own_bars():
            yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if hide_bars:
            hub_utils.enable_progress_bars()


@dataclass(frozen=True)
class Hub:
    """A model repository at a revision, and how to reach it."""

    repo_id: str
    revision: str | None = None
    token: str | None = None
    cache_dir: Path | None = None
    offline: bool = False

    def download(self, patterns: list[str], *, nested: bool = False) -> Path:
        """Download the files in the top folder of the repository, and in that of TEMPLATES, that match `patterns`.

        With `nested`, files in all folders.

        Returns:
            Folder of the cached snapshot, named by the full commit sha. It does not exist if no file matches.

        Raises:
            DogeExportError: the repository, its revision or the network cannot be reached, or the cache not written.
        """
        try:
            with _quiet():
                folder = snapshot_download(
                    self.repo_id,
                    revision=self.revision,
                    token=self.token,
                    cache_dir=self.cache_dir,
                    local_files_only=self.offline,
                    allow_patterns=patterns,
                    # "*" matches "/" too; of all folders, only that of TEMPLATES is wanted.
                    ignore_patterns=None if nested else [*IGNORED],
                )
        except _FAILURES as error:
            self._fail(error)
        return Path(folder)

    def download_model(self, weights: list[str]) -> Path:
        """Download the small files of a model, and the weights of these patterns.

        The vocabulary is fetched only where there is no tokenizer.json. Without network, a cache that lacks nothing but
        the tokenizer is enough.

        Returns:
            Folder of the cached snapshot.

        Raises:
            DogeExportError: as `download`.
        """
        try:
            snapshot = self.download(METADATA + weights)
            if snapshot.is_dir() and not (snapshot / "tokenizer.json").is_file():
                self.download([*METADATA, *VOCABULARY_FILES])
        except DogeExportError:
            if not (self.offline or constants.HF_HUB_OFFLINE):
                raise
            with contextlib.suppress(DogeExportError):
                return self.download(_WITHOUT_TOKENIZER + weights)
            raise
        return snapshot

    def list_files(self) -> list[str]:
        """Return the names of all files of the repository.

        Raises:
            DogeExportError: `offline` is set, or the repository cannot be reached.
        """
        if self.offline:
            raise self._not_cached()
        try:
            with _quiet():
                return HfApi(token=self.token).list_repo_files(self.repo_id, revision=self.revision)
        except _FAILURES as error:
            self._fail(error)

    def _not_cached(self) -> DogeExportError:
        revision = f" at revision {self.revision!r}" if self.revision else ""
        return DogeExportError(
            f"{self.repo_id!r}{revision} is not complete in the local cache and downloading is switched off:"
            " run once without --offline (or HF_HUB_OFFLINE), or check --cache-dir"
        )

    def _fail(self, error: Exception) -> NoReturn:
        raise DogeExportError(self._explain(error)) from error

    def _explain(self, error: BaseException) -> str:
        # LocalEntryNotFoundError only says that the cache has no copy; its cause says why the hub gave none.
        while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
            error = error.__cause__
        name = repr(self.repo_id)
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}"
        match error:
            case HFValidationError():
                return f"{name} is neither a folder nor a hub id: a hub id is owner/name"
            case GatedRepoError():
                return f"{name} is gated: accept its terms on its page of the hub, then pass --token"
            case RevisionNotFoundError():
                return (
                    f"{name} has no revision {self.revision!r} on the hub:"
                    " check --revision (a branch, a tag or a full commit sha)"
                )
            case _ if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
                if self.token is None:
                    return f"the hub shows no {name}: check the id, and pass --token if the repository is private"
                return f"the hub shows no {name} to this token: check the id and --token"
            case OfflineModeIsEnabled() | LocalEntryNotFoundError():
                return str(self._not_cached())
            case EntryNotFoundError():
                return f"a file of {name} is gone from the hub: run the command again, or pass another --revision"
            case HfHubHTTPError():
                return f"the hub answered {status} for {name} ({reason}): try again later"
            case UnicodeError() | ValueError():
                return f"{name} cannot be asked for ({reason}): check --revision and --token"
            case OSError() if error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT):
                return f"cannot keep the download of {name} ({error.strerror}): check --cache-dir and the space there"
        return (
            f"downloading {name} failed ({reason}):"
            " check the network and run the command again, or pass --offline to use a cached copy"
            " (or set HF_HUB_OFFLINE=1)"
        )


def check_blob(file: Path) -> None:
    """Compare a cached weight file with the sha256 that its cache entry is named by, if it is.

    Raises:
        DogeExportError: the content differs from that on the hub.
    """
    blob = file.resolve()
    if blob == file or len(blob.name) != 64:  # a cache without symlinks, or an entry named by another kind of etag
        return
    with blob.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != blob.name:
        raise DogeExportError(
            f"{file.name} in the download cache is damaged (its sha256 differs from the hub's):"
            f" delete {blob} and run the command again"
        )
