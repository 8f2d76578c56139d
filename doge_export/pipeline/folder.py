"""Writer of every folder that a command makes: checked early, written aside, described, renamed into place."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from doge_export.errors import DogeExportError, RunFailed
from doge_export.memory import peak_resident_bytes
from doge_export.package import Manifest, refuse_output, staged_folder, write_card, write_manifest
from doge_export.package.provenance import copy_companions
from doge_export.package.refusals import Recorded, recorded_by_manifest
from doge_export.package.tool_files import write_tool_files
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
        recorded: tells what doge-export wrote into a folder; nothing else is ever replaced.
    """

    path: Path
    force: bool = False
    protected: tuple[Path, ...] = ()
    recorded: Recorded = recorded_by_manifest

    @classmethod
    def checked(
        cls,
        path: str | Path,
        *,
        force: bool = False,
        reads: str | Path | Iterable[str | Path | None] = (),
        recorded: Recorded = recorded_by_manifest,
    ) -> Self:
        """Return an output folder, or refuse it before the work begins.

        Args:
            path: path of the folder.
            force: replace the folder if it is not empty.
            reads: model and files that the run reads, which must not be deleted; None for none.
            recorded: tells what doge-export wrote into a folder.

        Raises:
            DogeExportError: the folder cannot be written, or must not be replaced.
        """
        check_path_text(path)
        several = [reads] if isinstance(reads, str | Path) else reads
        protected = tuple(place for name in several if name is not None for place in protected_by(name))
        output = cls(Path(path), force, protected, recorded)
        refuse_output(output.path, force=force, protected=protected, recorded=recorded)
        return output

    @contextlib.contextmanager
    def draft(self) -> Iterator[Draft]:
        """Yield a draft that takes this folder's name when the body ends, and is deleted when the body raises."""
        options: dict[str, Any] = {"force": self.force, "protected": self.protected, "recorded": self.recorded}
        with staged_folder(self.path, **options) as staging:
            yield Draft(staging, expanded(self.path))


class Draft:
    """A folder being written aside.

    Attributes:
        folder: temporary folder of its files.
        output: path that the folder will have.
    """

    def __init__(self, folder: Path, output: Path) -> None:
        self.folder, self.output = folder, output
        self.without_report: DogeExportError | None = None
        """Why the report of a validation that passed is not there."""
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

        A report that cannot be written does not undo the export; `without_report` says why it is not there.

        Raises:
            RunFailed: a check fails.
        """
        from doge_export.validation.gate import require_validation

        gc.collect()  # traced programs are full of cycles, which would keep the weights through the validation
        verdict, self.without_report = require_validation(self.folder, advice, **subject)
        self.describe(dataclasses.replace(self.manifest, validation=verdict.to_dict()))
        return verdict

    def require_report(self) -> None:
        """Tell that the report is missing, once the folder has its place.

        Raises:
            RunFailed: the report could not be written.
        """
        if self.without_report is not None:
            raise RunFailed(f"{self.without_report}; the export passed, and {self.output} is complete")

    def record_run(self, began: float) -> None:
        """Record the seconds since `began` (of time.monotonic) and the peak memory so far."""
        seconds = round(time.monotonic() - began, 1)
        self._manifest = dataclasses.replace(self.manifest, seconds=seconds, peak_memory_bytes=peak_resident_bytes())

    def finish(self, card: Callable[[Path, Manifest], None] = write_card) -> Manifest:
        """Write the model card and what other tools read, hash every file, and return the final manifest."""
        write_tool_files(self.folder, self.manifest)
        card(self.folder, self.manifest)
        self.describe(self.manifest)
        return self.manifest
