"""The exported folder: written whole or not at all, described by a model card and by a manifest with file hashes."""

from doge_export.package.atomic import staged_folder
from doge_export.package.card import write_card
from doge_export.package.fingerprint import Fingerprint, fingerprint
from doge_export.package.manifest import (
    GraphEntry,
    Manifest,
    SourceEntry,
    is_exported,
    manifest_digest,
    read_manifest,
    validation_line,
    write_manifest,
)
from doge_export.package.refusals import refuse_output
from doge_export.package.verify import check_digest, verify, verify_files

__all__ = [
    "Fingerprint",
    "GraphEntry",
    "Manifest",
    "SourceEntry",
    "check_digest",
    "fingerprint",
    "is_exported",
    "manifest_digest",
    "read_manifest",
    "refuse_output",
    "staged_folder",
    "validation_line",
    "verify",
    "verify_files",
    "write_card",
    "write_manifest",
]
