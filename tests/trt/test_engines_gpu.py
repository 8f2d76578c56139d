"""Engines proper, where TensorRT and a GPU are: what `doge-export trt --selftest` does on a user's machine."""

from __future__ import annotations

import pytest

from doge_export.errors import DogeExportError
from doge_export.runtime.engine import installation, plugin_file
from doge_export.runtime.engine.kinds import kind_of
from doge_export.trt.selftest import ENGINES, selftest


@pytest.mark.gpu
@pytest.mark.trt
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_an_engine_is_built_validated_and_timed(engine, tmp_path):
    try:
        installation.require_cuda(kind_of(installation.choose()))
        if engine.attention == "plugin":
            plugin_file.find_plugin()
    except DogeExportError as error:
        pytest.skip(str(error))
    result = selftest(tmp_path / "report.json", engines=(engine,))
    assert all(case["ok"] for case in result["cases"]), result["cases"]
