"""Base of the sessions of all tasks: folder, manifest, tokenizer, and the error of a request for another task."""

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
    "exclusive": "text-generation",
    "generate": "text-generation",
    "stream": "text-generation",
    "chat": "text-generation",
    "resume": "text-generation",
    "save": "text-generation",
    "load_state": "text-generation",
    "logits": "text-generation",  # a classifier has its own
    "hidden_states": "feature-extraction",
    "embed": "feature-extraction",
    "classify": "text-classification",
}


class WrongTask(DogeExportError, AttributeError):
    """A request that a folder of another task would serve; an AttributeError too, so that `hasattr` returns False.

    Args:
        folder: the exported folder.
        task: task that it was exported for.
        what: name of the command or method that was asked for.
        needed: task that serves it.
    """

    def __init__(self, folder: Path, task: Task, what: str, needed: Task) -> None:
        super().__init__(
            f"{what} needs a folder exported for {needed}, and {folder} was exported for {task}: use "
            f"`doge-export {COMMANDS[task]}`, or export the checkpoint with --task {needed}"
        )


class TaskSession:
    """An opened exported folder; as a context manager it closes at the end.

    Attributes:
        task: task that the folder was exported for.
        folder: path of the folder.
        manifest: content of its doge_export.json.
        tokenizer: its tokenizer; None if it has none.
    """

    task: ClassVar[Task]

    def __init__(self, folder: Path, manifest: Manifest, tokenizer: Tokenizer | None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tokenizer = tokenizer

    @property
    def max_length(self) -> int:
        """Most tokens of a row."""
        return self.manifest.max_length

    def close(self) -> None:
        """Free what the garbage collector does not see, such as memory of a GPU; the session cannot run after that."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name in _NEEDS:
            raise WrongTask(self.folder, self.task, name, _NEEDS[name])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
