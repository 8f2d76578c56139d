"""Comparison of a folder's files with its manifest."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from doge_export.errors import DogeExportError
from doge_export.package.fingerprint import fingerprint, names_in
from doge_export.package.manifest import Manifest, read_manifest


def verify_files(folder: Path | str) -> list[str]:
    """Compare every file with the manifest.

    Differences are missing, changed and unexpected files, symbolic links, and names that leave the folder. In a
    snapshot of the hub's cache, links to files of the same repository count as files. The manifest itself carries no
    signature: this finds damage and edits, not a forger who rewrites the manifest too.

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
        if not _stays_inside(name):
            problems.append(f"{name}: the manifest names a file outside the folder")
        elif name not in present:
            problems.append(f"{name}: missing")
        elif _passes_link(folder, name):
            problems.append(f"{name}: a symbolic link where a file was written")
        else:
            found = fingerprint(folder / name)
            if found.sha256 != expected.sha256:
                problems.append(
                    f"{name}: changed (sha256 {found.sha256[:12]}…, {found.bytes} bytes; "
                    f"the manifest says {expected.sha256[:12]}…, {expected.bytes} bytes)"
                )
    problems += [f"{name}: unexpected, not in the manifest" for name in sorted(present - set(recorded))]
    return problems


def verify(folder: Path | str) -> Manifest:
    """Return the manifest of a folder whose files are all as it says.

    Raises:
        DogeExportError: a file differs; the message names the first. Or the manifest cannot be read.
    """
    problems = verify_files(folder)
    if problems:
        others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DogeExportError(f"{folder} differs from its manifest: {problems[0]}{others}; export or download it again")
    return read_manifest(folder)


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in name


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
