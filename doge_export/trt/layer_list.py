"""The list of layers that TensorRT for RTX's builder writes to its log: what an engine launches on the GPU."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence

_LAYER = re.compile(r"Name: (?P<name>[^,{]+?)_myl(?P<profile>\d+)_\d+, LayerType: (?P<kind>\w+), (?P<rest>.*)")
_PORTS = re.compile(r"Inputs: (?P<inputs>.*?), (?:Constants: .*?, )?Outputs: (?P<outputs>.*?), TacticName")
_TENSOR = re.compile(r"Name: ([^,]+),")

NOT_LAUNCHED = frozenset({"signal", "wait", "shape_call"})
"""Kinds of layers that order streams and compute shapes, and launch no kernel."""
PLUGIN = "custom_layer"


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer as the builder lists it.

    Attributes:
        name: of the nodes in it, with what the builder adds.
        kind: "gemm", "kgen" (a kernel that is generated), "custom_layer" (a plugin)...
        inputs, outputs: names of tensors; those of the network are called as the graph calls them.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def is_launched(self) -> bool:
        """True if it runs on the GPU."""
        return self.kind not in NOT_LAUNCHED


def read_layers(lines: Iterable[str], profiles: Sequence[str]) -> dict[str, list[Layer]]:
    """Return the layers of each profile that the lines list, in the order in which they run.

    Args:
        lines: of the builder's log, with detailed profiling.
        profiles: names of the profiles, in the engine's order.
    """
    found: dict[str, list[Layer]] = {}
    for line in lines:
        match = _LAYER.search(line)
        if match is None or int(match["profile"]) >= len(profiles):
            continue
        ports = _PORTS.search(match["rest"])
        inputs, outputs = (_names(ports[side]) if ports else () for side in ("inputs", "outputs"))
        layer = Layer(_plain(match["name"]), match["kind"], inputs, outputs)
        found.setdefault(profiles[int(match["profile"])], []).append(layer)
    return found


def count_launches(layers: Iterable[Layer]) -> dict[str, int]:
    """Return how many of the layers are launched, by kind."""
    return dict(sorted(Counter(layer.kind for layer in layers if layer.is_launched).items()))


def _names(ports: str) -> tuple[str, ...]:
    return tuple(_plain(name) for name in _TENSOR.findall(ports))


def _plain(name: str) -> str:
    """Return a name without the profile that the builder adds to it."""
    return re.sub(r" \[profile \d+\]", "", name).strip()
