"""The tensors of a checkpoint folder, read one at a time from a safetensors file or from shards named by an index."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open

from doge_export.checkpoint.fields import shown
from doge_export.checkpoint.files import INDEX, WEIGHTS
from doge_export.errors import DogeExportError
from doge_export.json_file import read_object
from doge_export.regular_file import is_there

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class _Stored:
    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"
    merge: Change | None = None
    change: Change | None = None


class Tensors(Mapping[str, torch.Tensor]):
    """A mapping of name -> float32 tensor that reads a tensor from its file at each access and keeps none in memory.

    A tensor stored in float32 is a private view of the mapped file: cheap to read, safe to write to, freed with its
    last reference.

    Attributes:
        shared: name -> name of the tensor in the files that has the same values, for tensors that
            `safetensors.torch.save_model` left out.
    """

    def __init__(self, stored: Mapping[str, _Stored], shared: Mapping[str, str] | None = None) -> None:
        self._stored = dict(stored)
        self.shared = dict(shared or {})

    def __getitem__(self, name: str) -> torch.Tensor:
        change = self._stored[name].change
        tensor = self.raw(name).to(torch.float32)
        return tensor if change is None else change(tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def raw(self, name: str) -> torch.Tensor:
        """Read a tensor as it is stored, in its own dtype and layout; a merged one is float32.

        Raises:
            DogeExportError: the file cannot be read.
        """
        file, merge = self._stored[name].file, self._stored[name].merge
        try:
            with safe_open(file, framework="pt") as opened:
                tensor: torch.Tensor = opened.get_tensor(self._stored[name].name)
        except (SafetensorError, OSError) as error:
            raise _unreadable(file, error) from error
        return tensor if merge is None else merge(tensor.to(torch.float32))

    @property
    def files(self) -> list[Path]:
        """Paths of the safetensors files that hold these tensors, sorted."""
        return sorted({stored.file for stored in self._stored.values()})

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self._stored[name].shape

    def stored_name(self, name: str) -> str:
        """Return the name of a tensor in its file."""
        return self._stored[name].name

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor."""
        return {name: stored.shape for name, stored in self._stored.items()}

    def without(self, names: Collection[str]) -> Tensors:
        """Return all tensors but `names`."""
        return Tensors({key: stored for key, stored in self._stored.items() if key not in names})

    def renamed(self, names: Mapping[str, str]) -> Tensors:
        """Return the tensors under new names; `names` maps new -> old."""
        return Tensors({new: self._stored[old] for new, old in names.items()})

    def changed(self, name: str, shape: tuple[int, ...], change: Change) -> Tensors:
        """Return the tensors with `change` applied to one of them at each read, which gives it `shape`."""
        return Tensors({**self._stored, name: replace(self._stored[name], shape=shape, change=change)})

    def merged(self, name: str, merge: Change) -> Tensors:
        """Return the tensors with `merge` applied to one of them at each read, before its layout is changed."""
        return Tensors({**self._stored, name: replace(self._stored[name], merge=merge)})

    def replaced(self, names: Mapping[str, str], other: Tensors) -> Tensors:
        """Return the tensors with some replaced or added; `names` maps their names here -> names in `other`."""
        return Tensors({**self._stored, **{new: other._stored[old] for new, old in names.items()}})

    def check_dtypes(self) -> list[str]:
        """Refuse tensors that are not of floating point, and return the names of those in float64.

        Raises:
            DogeExportError: a tensor has another dtype, such as that of a quantised weight.
        """
        for stored in self._stored.values():
            if stored.dtype not in _DTYPES:
                raise DogeExportError(
                    f"tensor {stored.name} in {stored.file} has dtype {stored.dtype}, expected one of"
                    f" {', '.join(_DTYPES.values())}: export the unquantised checkpoint"
                )
        return [name for name, stored in self._stored.items() if stored.dtype == "F64"]

    def check_values(self) -> None:
        """Read every tensor once, one at a time, and refuse values that no trained weight has.

        A magnitude whose square overflows float32 is refused like an infinity: training does not reach it, but a
        flipped exponent bit does. A flip of any other bit gives a plausible number and goes unnoticed.

        Raises:
            DogeExportError: a tensor, which the message names, has a NaN, an infinity or such a magnitude.
        """
        limit = torch.finfo(torch.float32).max ** 0.5
        for name, stored in self._stored.items():
            raw = self.raw(name)
            if raw.numel() == 0:
                continue
            low, high = (float(extreme) for extreme in torch.aminmax(raw))
            if not -limit < low <= high < limit:  # aminmax returns NaN for a tensor with NaN, which fails this too
                seen = "NaN" if low != low else f"{low if abs(low) > abs(high) else high:g}"
                raise DogeExportError(
                    f"tensor {stored.name} in {stored.file} holds {seen}: the training diverged or the file is damaged;"
                    " take another checkpoint or fetch the file again"
                )


def _unreadable(file: Path, error: Exception) -> DogeExportError:
    if isinstance(error, FileNotFoundError):
        return DogeExportError(f"{file} is missing: fetch the checkpoint again")
    if isinstance(error, OSError):
        return DogeExportError(f"{file} cannot be read: {error.strerror or error}")
    with file.open("rb") as opened:
        if opened.read(12) == b"version http":
            return DogeExportError(f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder")
    reason = str(error).removeprefix("Error while deserializing header: ").splitlines()[0]
    return DogeExportError(f"{file} is not a whole safetensors file ({reason}): truncated or damaged, fetch it again")


def _stored_in(file: Path) -> tuple[dict[str, _Stored], dict[str, str]]:
    """Return the tensors of a file, and its metadata, where `save_model` names the tensors that share values."""
    found = {}
    is_there(file)  # refuses a named pipe, on which the library would wait
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - safe_open is not a mapping
                header = opened.get_slice(name)
                found[name] = _Stored(file, name, tuple(header.get_shape()), header.get_dtype())
            return found, opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DogeExportError(f"{index} has no weight_map of tensor names to files: fetch the checkpoint again")
    for file in weight_map.values():
        # An index must not name files outside its folder.
        if not isinstance(file, str) or file != PurePosixPath(file).name or "\\" in file or file in ("", ".."):
            raise DogeExportError(f"{index} names the file {shown(file)}, expected a file in the same folder")
    return weight_map


def _stored_in_shards(index: Path) -> dict[str, _Stored]:
    weight_map = _weight_map(index)
    stored: dict[str, _Stored] = {}
    for shard in sorted(set(weight_map.values())):
        found, _ = _stored_in(index.parent / shard)
        for name in found.keys() & stored.keys():
            raise DogeExportError(
                f"tensor {name} is in both {stored[name].file.name} and {shard} of {index.parent}: the shards of two"
                " checkpoints are mixed, fetch them again"
            )
        stored |= found
    for name, shard in weight_map.items():
        if name not in stored or stored[name].file.name != shard:
            raise DogeExportError(f"{index} promises tensor {name} in {shard}, which lacks it: fetch both files again")
    return stored


def open_tensors(folder: Path) -> Tensors:
    """Open the tensors of `model.safetensors`, or without that file, of the shards that the index names.

    Raises:
        DogeExportError: a file is damaged or missing, or the shards disagree with their index.
    """
    if is_there(folder / INDEX) and not is_there(folder / WEIGHTS):
        return Tensors(_stored_in_shards(folder / INDEX))
    return open_file(folder / WEIGHTS)


def open_file(file: Path) -> Tensors:
    """Open the tensors of one safetensors file.

    Raises:
        DogeExportError: the file is damaged or missing.
    """
    stored, metadata = _stored_in(file)
    return Tensors(stored, {new: kept for new, kept in metadata.items() if kept in stored})
