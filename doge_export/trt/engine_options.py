"""The options of an engine's plan."""

from __future__ import annotations

import dataclasses
from typing import get_args

from doge_export.errors import DogeExportError
from doge_export.package.manifest import Cache
from doge_export.plugin.tensorrt_versions import NATIVE_SINCE, NEWEST, OLDEST, MajorMinor, dotted
from doge_export.runtime.engine.kinds import KINDS, RTX, TENSORRT, KindName
from doge_export.targets.tensorrt import DTYPES, Attention, EnginePrecision
from doge_export.trt.limits import CANDIDATES, MAX_LOGITS, MAX_PROMPT, MAX_TOP_K


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """The options of an engine, beside those of how its model is opened.

    Attributes:
        precision: of weights, activations and caches.
        attention: "plugin", or "native" for TensorRT's own layers, which select no keys.
        max_batch: the most rows of one run.
        max_logits: the most tokens of a row whose logits one run may give.
        candidates: number of best next tokens that every run gives beside all logits; 0: none. Greedy choice and top-k
            below this number (lower still if logits are equal there) copy only these to the host.
        cache: "bounded" keeps only the keys that a later token may attend to, keep_window_size of each layer and head;
            None is that of the export.
        max_prompt: with bounded caches, the most tokens of a prompt that must be read whole.
        builder: the TensorRT that is to read the graph, and build.
        tensorrt_version: of TensorRT. One for RTX reads what the newest TensorRT does, and counts otherwise.
        calibrate: in fp16, run the graph on texts first and report as findings the values that float16 cannot hold.
    """

    precision: EnginePrecision = "fp16"
    attention: Attention = "plugin"
    max_batch: int = 1
    max_logits: int = MAX_LOGITS
    candidates: int = CANDIDATES
    cache: Cache | None = None
    max_prompt: int = MAX_PROMPT
    builder: KindName = TENSORRT.name
    tensorrt_version: MajorMinor = NEWEST
    calibrate: bool = True

    def check(self) -> None:
        """Check every option.

        Raises:
            DogeExportError: an option has no such value, or this TensorRT is too old for it.
        """
        if self.precision not in DTYPES:
            raise DogeExportError(f"unknown precision {self.precision!r}; choose {', '.join(DTYPES)}")
        if self.attention not in ("plugin", "native"):
            raise DogeExportError(f"unknown attention {self.attention!r}; choose plugin or native")
        if self.builder not in KINDS:
            raise DogeExportError(f"unknown builder {self.builder!r}; choose {' or '.join(KINDS)}")
        if self.cache not in (None, *get_args(Cache)):
            raise DogeExportError(f"unknown cache {self.cache!r}; choose {' or '.join(get_args(Cache))}")
        counts = {"max batch": self.max_batch, "max logits": self.max_logits, "max prompt": self.max_prompt}
        for name, value in counts.items():
            if not _is_int(value) or value < 1:
                raise DogeExportError(f"{name} is {value!r}, expected 1 or more")
        if not _is_int(self.candidates) or not 0 <= self.candidates <= MAX_TOP_K:
            raise DogeExportError(
                f"candidates is {self.candidates!r}, expected 0 to {MAX_TOP_K}, TensorRT's limit of TopK"
            )
        version = self.tensorrt_version
        if version < OLDEST:
            raise DogeExportError(f"TensorRT {dotted(version)} is too old; {dotted(OLDEST)} or newer expected")
        if self.attention == "native" and version < NATIVE_SINCE:
            raise DogeExportError(
                f"TensorRT {dotted(version)} lacks layers of native attention; use {dotted(NATIVE_SINCE)} or newer, or "
                "--attention plugin"
            )


PROFILE_ROWS = {RTX.name: 2, TENSORRT.name: 1}
"""The fewest rows that every profile must allow, by builder; there are buffers for `max_batch` only.

Where a profile knows that there is one row, TensorRT for RTX chooses kernels that want the weights in another layout
than those of the other profile do, and the engine holds weights twice: 160M in fp16 had 576 MB with one row in both
profiles, 385 MB with two rows of decoding alone, and has 328 MB with two in both.
"""


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
