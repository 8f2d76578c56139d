"""What the sessions of all tasks share: folder, manifest, tokenizer, and one answer to the wrong request."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

from doge_export.checkpoint.architecture import Task
from doge_export.errors import DogeExportError
from doge_export.package.manifest import Manifest
from doge_export.runtime.tokenizer import Tokenizer

COMMANDS: dict[Task, str] = {
    "text-generation": "generate",
    "feature-extraction": "embed",
    "text-classification": "classify",
}
_NEEDS: dict[str, Task] = {
    "decoder": "text-generation",
    "generate": "text-generation",
    "stream": "text-generation",
    "chat": "text-generation",
    "logits": "text-generation",  # a classifier has its own
    "hidden_states": "feature-extraction",
    "embed": "feature-extraction",
    "classify": "text-classification",
}


class WrongTask(DogeExportError, AttributeError):
    """A session was asked for what its folder was not exported for; `hasattr` says False, as it should."""

    def __init__(self, folder: Path, task: Task, what: str, needed: Task) -> None:
        super().__init__(
            f"{what} needs a folder exported for {needed}, and {folder} was exported for {task}: use "
            f"`doge-export {COMMANDS[task]}`, or export the checkpoint with --task {needed}"
        )


class TaskSession:
    """An exported folder, opened; a context manager that closes it.

    Attributes:
        task: what the folder was exported for.
        folder: where it is.
        manifest: of the folder.
        tokenizer: None where the folder has none.
    """

    task: ClassVar[Task]

    def __init__(self, folder: Path, manifest: Manifest, tokenizer: Tokenizer | None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tokenizer = tokenizer

    @property
    def max_length(self) -> int:
        """Tokens a row may hold."""
        return self.manifest.max_length

    def close(self) -> None:
        """Give back what the garbage collector does not know of, such as the memory of a GPU; nothing runs any more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name in _NEEDS:
            raise WrongTask(self.folder, self.task, name, _NEEDS[name])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
