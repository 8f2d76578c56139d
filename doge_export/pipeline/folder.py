"""Writer of every folder that a command makes: checked early, written aside, described, renamed into place."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from doge_export.memory import peak_resident_bytes
from doge_export.package import Manifest, refuse_output, staged_folder, write_card, write_manifest
from doge_export.package.provenance import copy_companions
from doge_export.paths import check_path_text, expanded, protected_by

if TYPE_CHECKING:
    from doge_export.validation import Verdict


@dataclasses.dataclass(frozen=True)
class OutputFolder:
    """The folder that a command is asked to write.

    Attributes:
        path: path as the user gave it.
        force: replace the folder if it is not empty.
        protected: folders and files that must outlive the run.
    """

    path: Path
    force: bool = False
    protected: tuple[Path, ...] = ()

    @classmethod
    def checked(cls, path: str | Path, *, force: bool = False, reads: str | Path | None = None) -> Self:
        """Return an output folder, or refuse it before the work begins.

        Args:
            path: path of the folder.
            force: replace the folder if it is not empty.
            reads: model that the run reads, which must not be deleted.

        Raises:
            DogeExportError: the folder cannot be written, or must not be replaced.
        """
        check_path_text(path)
        output = cls(Path(path), force, () if reads is None else tuple(protected_by(reads)))
        refuse_output(output.path, force=force, protected=output.protected)
        return output

    @contextlib.contextmanager
    def draft(self) -> Iterator[Draft]:
        """Yield a draft that takes this folder's name when the body ends, and is deleted when the body raises."""
        with staged_folder(self.path, force=self.force, protected=self.protected) as staging:
            yield Draft(staging, expanded(self.path))


class Draft:
    """A folder being written aside.

    Attributes:
        folder: temporary folder of its files.
        output: path that the folder will have.
    """

    def __init__(self, folder: Path, output: Path) -> None:
        self.folder, self.output = folder, output
        self._manifest: Manifest | None = None

    @property
    def manifest(self) -> Manifest:
        """The manifest that was written last; `convert` writes a checkpoint without one."""
        if self._manifest is None:
            raise RuntimeError("the draft has no manifest yet: call describe first")
        return self._manifest

    def take_over(self, companions: Iterable[Path], made: Mapping[str, bytes] | None = None) -> None:
        """Copy files of the checkpoint that tools look for beside a model, and write those `made` from others."""
        copy_companions(companions, self.folder, made)

    def describe(self, manifest: Manifest) -> None:
        """Write the manifest, so that the draft can be loaded like any exported folder."""
        self._manifest = write_manifest(self.folder, manifest)

    def validate(self, advice: str, **subject: Any) -> Verdict:
        """Compare the folder with PyTorch and record the verdict.

        Args:
            advice: what to do about a failure, for the message.
            subject: keywords of `validation.gate.require_validation`.

        Raises:
            RunFailed: a check fails.
        """
        from doge_export.validation.gate import require_validation

        gc.collect()  # traced programs are full of cycles, which would keep the weights through the validation
        verdict = require_validation(self.folder, advice, **subject)
        self.describe(dataclasses.replace(self.manifest, validation=verdict.to_dict()))
        return verdict

    def record_run(self, began: float) -> None:
        """Record the seconds since `began` (of time.monotonic) and the peak memory so far."""
        seconds = round(time.monotonic() - began, 1)
        self._manifest = dataclasses.replace(self.manifest, seconds=seconds, peak_memory_bytes=peak_resident_bytes())

    def finish(self, card: Callable[[Path, Manifest], None] = write_card) -> Manifest:
        """Write the model card, hash every file, and return the final manifest."""
        card(self.folder, self.manifest)
        self.describe(self.manifest)
        return self.manifest
