"""Comparison of a folder's files with its manifest."""

from __future__ import annotations

import hmac
import re
from pathlib import Path

from doge_export.errors import DogeExportError
from doge_export.package.fingerprint import fingerprint, names_in
from doge_export.package.manifest import Manifest, manifest_digest, read_manifest, stays_inside


def verify_files(folder: Path | str) -> list[str]:
    """Compare every file with the manifest.

    Differences are missing, changed and unexpected files, symbolic links, and names that leave the folder. In a
    snapshot of the hub's cache, links to files of the same repository count as files. The manifest itself carries no
    signature: this finds damage and edits; a forger who rewrites the manifest too is found by `check_digest` alone.

    Returns:
        One sentence for each difference.

    Raises:
        DogeExportError: the folder has no manifest that this version reads.
    """
    folder = Path(folder)
    recorded = read_manifest(folder).files
    present = names_in(folder)
    problems = []
    for name, expected in sorted(recorded.items()):
        if not stays_inside(name):
            problems.append(f"{name}: the manifest names a file outside the folder")
        elif name not in present:
            problems.append(f"{name}: missing")
        elif _passes_link(folder, name):
            problems.append(f"{name}: a symbolic link where a file was written")
        elif not (folder / name).is_file():
            problems.append(f"{name}: no regular file")
        else:
            found = fingerprint(folder / name)
            if found.sha256 != expected.sha256:
                problems.append(
                    f"{name}: changed (sha256 {found.sha256[:12]}…, {found.bytes} bytes; "
                    f"the manifest says {expected.sha256[:12]}…, {expected.bytes} bytes)"
                )
    problems += [f"{name}: unexpected, not in the manifest" for name in sorted(present - set(recorded))]
    return problems


def check_digest(folder: Path | str, digest: str) -> None:
    """Check that a folder's manifest is the one with that sha256, wherever the folder came from.

    Args:
        folder: an exported folder.
        digest: `manifest_digest` of the folder when it was exported, in hexadecimal digits, whole.

    Raises:
        DogeExportError: it is another manifest, or `digest` is no sha256.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise DogeExportError(f"{digest!r} is no sha256, expected 64 hexadecimal digits as `doge-export verify` prints")
    found = manifest_digest(folder)
    if not hmac.compare_digest(found, digest.lower()):
        raise DogeExportError(
            f"the manifest of {folder} has sha256 {found}, expected {digest.lower()}: it is not the folder that was "
            "meant; take it from who made it"
        )


def verify(folder: Path | str, digest: str | None = None) -> Manifest:
    """Return the manifest of a folder whose files are all as it says.

    Args:
        folder: an exported folder.
        digest: the sha256 that the manifest must have, see `check_digest`; None for any.

    Raises:
        DogeExportError: a file differs; the message names the first. Or the manifest cannot be read, or is another.
    """
    if digest is not None:
        check_digest(folder, digest)
    problems = verify_files(folder)
    if problems:
        others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DogeExportError(f"{folder} differs from its manifest: {problems[0]}{others}; export or download it again")
    return read_manifest(folder)


def _passes_link(folder: Path, name: str) -> bool:
    path = folder / name
    links = [p for p in (path, *path.parents) if p.is_relative_to(folder) and p != folder and p.is_symlink()]
    return bool(links) and not (links == [path] and in_cache(folder, path))


def in_cache(folder: Path, link: Path) -> bool:
    """Return whether a link of a snapshot in the hub's cache (snapshots/SHA) leads to a file of its own blobs/."""
    here = folder.resolve()
    blobs = here.parent.parent / "blobs"
    if here.parent.name != "snapshots" or not blobs.is_dir():
        return False
    target = link.resolve()
    return target.is_file() and target.parent == blobs.resolve()
