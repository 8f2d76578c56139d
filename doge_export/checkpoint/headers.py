"""A look into a checkpoint without torch: config.json, and the headers of its safetensors files.

It sees names, shapes and dtypes. What depends on values (whether a tensor is inert, equal to another, or finite) is
left to `open_checkpoint`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.checkpoint.config import parse_config, parse_padding, parse_sizes
from doge_export.checkpoint.files import CONFIG, INDEX, WEIGHTS, companions
from doge_export.checkpoint.identify import NOTHING_ASSUMED, Assumptions, Identity, identify
from doge_export.checkpoint.labels import parse_labels
from doge_export.checkpoint.naming import CLASSIFIER, HEAD, canonical_names, first_layer
from doge_export.checkpoint.source import Source, locate
from doge_export.errors import DogeExportError
from doge_export.json_file import read_object
from doge_export.regular_file import is_there

_LARGEST_HEADER = 100_000_000
"""Bytes; the limit of safetensors itself."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What a safetensors file says of one of its tensors.

    Attributes:
        file: the file.
        dtype: as safetensors names it, such as F32.
        shape: sizes of the axes.
        offset: first byte of its values in the file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


def read_headers(file: Path) -> dict[str, Header]:
    """Read the header of a safetensors file.

    Raises:
        DogeExportError: the file cannot be read or is no safetensors file.
    """
    try:
        is_there(file)  # refuses a named pipe, on which opening would wait
        with file.open("rb") as opened:
            start = opened.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= _LARGEST_HEADER:
                raise ValueError("no length of a header")
            listed = json.loads(opened.read(length).decode("utf-8"))
        return {
            name: Header(
                file, str(entry["dtype"]), tuple(map(int, entry["shape"])), 8 + length + int(entry["data_offsets"][0])
            )
            for name, entry in listed.items()
            if name != "__metadata__"
        }
    except OSError as error:
        raise DogeExportError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise DogeExportError(
            f"{file} is not a whole safetensors file ({type(error).__name__}): truncated or damaged, fetch it again"
        ) from error


def look_into(model: str | Path, *, assumed: Assumptions = NOTHING_ASSUMED, **where: Any) -> dict[str, Any]:
    """Describe a checkpoint by its config and headers.

    Args:
        model: a folder, the name of a bundled model, or a hub id.
        assumed: what the user stated because the files do not tell.
        where: further keywords of `open_checkpoint`; an adapter is not merged.

    Returns:
        JSON values: source, identity, notes, architecture, tensors (their number), parameters, dtypes and files.

    Raises:
        DogeExportError: the checkpoint is wrong.
    """
    where.pop("adapter", None)
    source = locate(model, **where)
    if not is_there(source.folder / CONFIG):
        raise DogeExportError(f"{source.name!r} has no config.json: not a model folder in transformers' layout")
    config = read_object(source.folder / CONFIG)
    headers = _all_headers(source)
    identity, architecture = _parsed(config, headers, assumed)
    dtypes: dict[str, int] = {}
    for header in headers.values():
        dtypes[header.dtype] = dtypes.get(header.dtype, 0) + 1
    files = [*sorted({header.file for header in headers.values()}), *companions(source.folder)]
    return {
        "source": {"model": source.name, "revision": source.revision},
        "identity": dataclasses.asdict(identity),
        "notes": [],
        "architecture": architecture,
        "tensors": len(headers),
        "parameters": sum(math.prod(header.shape) for header in headers.values()),
        "dtypes": dtypes,
        "files": {file.name: {"bytes": file.stat().st_size} for file in files if file.name != CONFIG},
    }


def _all_headers(source: Source) -> dict[str, Header]:
    index = source.folder / INDEX
    if (source.folder / WEIGHTS).is_file() or not index.is_file():
        return read_headers(source.folder / WEIGHTS)
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and name == Path(name).name and "\\" not in name for name in weight_map.values()
    ):
        raise DogeExportError(f"{index} has no weight_map of tensor names to files: fetch the checkpoint again")
    found: dict[str, Header] = {}
    for shard in sorted(set(weight_map.values())):
        found |= read_headers(source.folder / shard)
    return found


def _parsed(
    config: dict[str, Any], headers: Mapping[str, Header], assumed: Assumptions
) -> tuple[Identity, dict[str, Any]]:
    from doge_export.checkpoint.layout import relaid

    sizes = parse_sizes(config)
    shapes = {name: header.shape for name, header in headers.items()}
    identity = identify(
        shapes,
        config,
        heads=sizes.num_attention_heads,
        kv_heads=sizes.num_key_value_heads,
        head_dim=sizes.head_dim,
        some_a_negative=lambda: any(_has_negative(headers[name]) for name in headers if name.endswith(".self_attn.A")),
        assumed=assumed,
    )
    named = _Shapes({new: shapes[old] for new, old in canonical_names(shapes).items()})
    tied = identity.generation not in ("G6b", "G7", "G8") and HEAD not in named.shapes
    layer = first_layer(relaid(named).shapes)  # type: ignore[arg-type]
    architecture = parse_config(config, identity, layer, tied=tied, assumed=assumed)
    classes = named.shapes.get(CLASSIFIER, ())
    labels = parse_labels(config, classes[0]) if architecture.task == "text-classification" and classes else ()
    pad = parse_padding(config, architecture.vocab_size, architecture.task)
    return identity, dataclasses.replace(architecture, labels=labels, pad_token_id=pad).to_dict()


class _Shapes:
    """Shapes of tensors, changed as `Tensors` are."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)

    def changed(self, name: str, shape: tuple[int, ...], change: object) -> _Shapes:
        return _Shapes({**self.shapes, name: shape})


def _has_negative(header: Header) -> bool:
    """Read the values of a small tensor."""
    kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}.get(header.dtype)
    if kind is None:
        raise DogeExportError(f"{header.file} has a tensor of dtype {header.dtype}: export the unquantised checkpoint")
    values = np.fromfile(header.file, kind, math.prod(header.shape), offset=header.offset)
    if header.dtype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return bool((values < 0).any())
