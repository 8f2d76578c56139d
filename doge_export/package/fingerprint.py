"""Names, sizes and sha256 hashes of the files of a folder."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

from doge_export.package import leftovers
from doge_export.paths import EXPORTED

# Files that git, the hub's client and the macOS Finder leave in a downloaded folder; none is ever loaded.
_NOT_OURS = {".git", ".gitattributes", ".cache", ".DS_Store"}


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Hash and size of a file.

    Attributes:
        sha256: in hexadecimal digits.
        bytes: size of the file.
    """

    sha256: str
    bytes: int


def fingerprint(file: Path) -> Fingerprint:
    """Hash a file without holding it in memory."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return Fingerprint(digest, stream.tell())


def fingerprint_all(folder: Path) -> dict[str, Fingerprint]:
    """Hash every file of a folder but the manifest, by relative name with slashes."""
    return {name: fingerprint(folder / name) for name in sorted(names_in(folder))}


def names_in(folder: Path) -> set[str]:
    """List the relative names of all files but the manifest. Links count as files and are not followed.

    What a run is writing inside the folder at this moment does not belong to it yet and is left out.
    """
    names = set()
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        linked = [name for name in folders if (here / name).is_symlink()]
        if here == folder:
            folders[:] = [name for name in folders if name not in _NOT_OURS and not leftovers.INSIDE.fullmatch(name)]
        names |= {(here / name).relative_to(folder).as_posix() for name in [*files, *linked]}
    return {name for name in names if name != EXPORTED and name not in _NOT_OURS}
