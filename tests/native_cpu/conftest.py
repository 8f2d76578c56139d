"""The native decoder's library, compiled once for all tests, and models packed from random checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from doge_cpu import Library, config_of, weights_of
from doge_runs import module_of
from native_library import native_file
from random_doge import MAX_LENGTH, random_model

from doge_export.model import DogeForExport


@pytest.fixture(scope="session")
def library() -> Library:
    return Library(native_file())


@pytest.fixture(scope="session")
def random_module() -> Callable[..., DogeForExport]:
    """Our module of a random checkpoint, once per configuration; `tame` has scores that vary little."""
    made: dict[str, DogeForExport] = {}

    def make(
        routing: str = "per-token", tame: bool = False, max_length: int = MAX_LENGTH, **changes: Any
    ) -> DogeForExport:
        key = repr((routing, tame, max_length, sorted(changes.items())))
        if key not in made:
            model = random_model(**changes)
            if tame:  # scores are exponentials of exponentials: they blow the smallest rounding up
                for name, parameter in model.named_parameters():
                    if name.endswith(".A"):
                        parameter.data.uniform_(-0.3, 0.3)
            made[key] = module_of(model, cdmoe_routing=routing, max_length=max_length)
        return made[key]

    return make


@pytest.fixture(scope="session")
def packed(library: Library) -> Callable[..., Any]:
    """The weight file of a module, float32, once per module."""
    made: dict[int, Any] = {}

    def pack(module: DogeForExport, max_length: int = MAX_LENGTH, per_token: bool = True) -> Any:
        if id(module) not in made:
            config = config_of(module.architecture, max_length, per_token)
            made[id(module)] = library.file(config, list(weights_of(module, max_length)))
        return made[id(module)]

    return pack
