"""Engines of TensorRT for RTX for the RTX 4090, parsed and built here: no GPU and no driver is needed.

`launches.json` holds the most kernels that a run may launch. Lower a number when an engine launches fewer.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from real_builds import ADA, BUNDLED, built, planned, require_plugin, rtx

from doge_export.cli import main
from doge_export.package import read_manifest, verify_files
from doge_export.package.manifest import UNLIMITED
from doge_export.runtime.engine import installation
from doge_export.runtime.engine.sidecar import read_sidecar
from doge_export.trt import dry_run
from doge_export.trt.layer_list import PLUGIN, count_launches
from doge_export.trt.make import gpu_here
from doge_export.trt.real_parser import ask

PRECISIONS, ATTENTIONS = ("fp16", "bf16", "fp32"), ("plugin", "native")
MATRIX = [*itertools.product(BUNDLED, PRECISIONS, ATTENTIONS)]
DEFAULT = [("doge-nano-moe", "fp16", "plugin")]
"""Both operators of the plugin: built by default, and one without by the command. The rest is parsed by default."""
SIZES = ("20M", "60M", "160M", "20M-MoE")
BOUNDS = json.loads(Path(__file__).with_name("launches.json").read_text(encoding="utf-8"))
BAR_FROM = {"plugin": 20e6, "native": 30e6}
"""Bytes of weights from which the rest of an engine is within a fifth of them and 8 MB."""
TRAINED = 2048
"""Length beyond which dynamic RoPE's frequencies depend on the length: at real sizes the graph computes them then."""
SOURCE_OF_KERNEL = 110_000
"""Bytes of a generated kernel in an engine: its source, which is compiled on the GPU that runs it."""


def check(model, precision, attention, max_length=64, cache="unbounded"):
    """What every engine shows."""
    real = built(model, precision, attention, max_length, cache=cache)
    plan, engine = real.plan, real.built
    assert engine.warnings == ()
    assert engine.plugin_layers == plan.plugin_nodes == sum(node.domain == "doge" for node in plan.graph.graph)
    assert [*engine.listed] == ["prefill", "decode"]
    for layers in engine.listed.values():
        assert sum(layer.kind == PLUGIN for layer in layers) == plan.plugin_nodes
        check_caches(plan, layers)
    check_size(plan, engine)
    launches = {profile: sum(count_launches(layers).values()) for profile, layers in engine.listed.items()}
    bound = bound_of(model, precision, attention, real.num_layers)
    more = BOUNDS["frequencies that follow the length"] if max_length > TRAINED else 0
    assert all(launches[profile] <= bound[profile] + more for profile in launches), f"{launches} of {bound} + {more}"


def bound_of(model, precision, attention, num_layers):
    """Of the engine; of those that `launches.json` does not list, so many a layer."""
    layer = BOUNDS[f"a layer, {attention}"]["MoE" if "moe" in model.lower() else "dense"]
    if attention == "plugin":
        each = dict.fromkeys(("prefill", "decode"), layer * num_layers + BOUNDS["besides the layers, plugin"])
    else:
        each = {profile: count * num_layers for profile, count in layer.items()}
    return BOUNDS.get(f"{model} {precision} {attention}", each)


def check_caches(plan, layers):
    """Each cache is written by one layer, in the memory that it came in; no other layer copies it."""
    for cache in plan.caches:
        (writer,) = (layer for layer in layers if cache.present in layer.outputs)
        readers = [layer for layer in layers if cache.past in layer.inputs]
        if plan.attention == "plugin":
            assert readers == [writer] and writer.kind == PLUGIN
            assert not any(cache.present in layer.inputs for layer in layers)
        else:  # TensorRT knows that both are the same memory, and names it by the output
            assert readers == [] and cache.present in writer.inputs


def check_size(plan, engine):
    """Weights are stored once, and the rest is kernels, which are most of a tiny model's engine."""
    size, weights = len(engine.engine), plan.memory.weights
    kernels = sum(layer.kind == "kgen" for layers in engine.listed.values() for layer in layers)
    assert size < weights + kernels * SOURCE_OF_KERNEL + 2_000_000, f"{size} bytes, {weights} of weights, {kernels}"
    if weights > BAR_FROM[plan.attention]:
        assert size <= 1.2 * weights + 8e6


@pytest.mark.parametrize(("model", "precision", "attention"), DEFAULT)
def test_an_engine_is_built(model, precision, attention):
    check(model, precision, attention)


def test_an_engine_with_bounded_caches_is_built():
    """It launches no more than one without."""
    check("doge-nano", "fp16", "plugin", UNLIMITED, "bounded")


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", [*BUNDLED, "20M"])
def test_every_engine_with_bounded_caches(model, precision):
    """Not 20M-MoE, which has no keep_window_size: nothing bounds its caches."""
    check(model, precision, "plugin", UNLIMITED, "bounded")


@pytest.mark.parametrize(("model", "precision", "attention"), [case for case in MATRIX if case not in DEFAULT])
def test_a_graph_is_parsed_without_a_warning(model, precision, attention):
    trt, plugin = rtx(), require_plugin() if attention == "plugin" else None
    plan = planned(model, precision, attention, 64)
    parsed = ask(trt, plan.graph, plugin)
    assert parsed.findings == plan.findings == () and parsed.plugin_layers == plan.plugin_nodes


def test_the_command_builds_without_a_gpu(tmp_path):
    """What it is not compared with is said in manifest and card; a GPU of another machine runs it later."""
    if gpu_here() is not None:
        pytest.skip("a GPU is here")
    rtx()
    out = tmp_path / "out"
    options = ["--builder", "rtx", "--attention", "native", "--max-length", "64", "--bf16"]
    done = CliRunner().invoke(main, ["trt", "doge-nano", str(out), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert "not run: no GPU" in done.stdout and verify_files(out) == []
    manifest, sidecar = read_manifest(out), read_sidecar(out)
    assert manifest.skipped == "not run: no GPU" and "not run: no GPU" in (out / "README.md").read_text()
    assert (sidecar.builder, sidecar.tensorrt, sidecar.gpu) == ("rtx", rtx().__version__, None)
    assert sidecar.compute_capabilities == (ADA,) and sidecar.plugin is None and sidecar.max_batch == 1
    assert sidecar.settings["warnings"] == []
    launches = {profile: sum(kinds.values()) for profile, kinds in sidecar.settings["launches"].items()}
    bound = BOUNDS["doge-nano bf16 native"]
    assert [*launches] == ["prefill", "decode"] and all(launches[name] <= bound[name] for name in bound)
    for command in (["validate", str(out)], ["generate", str(out), "Once"]):
        done = CliRunner().invoke(main, command, catch_exceptions=False)
        assert done.exit_code == 2 and "no NVIDIA GPU can be used here" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "checked_by"),
    [
        (["--attention", "native"], "the parser of TensorRT for RTX"),
        (["--attention", "native", "--tensorrt", "11.4"], "the rules alone: no TensorRT here"),
        (["--builder", "tensorrt"], "the rules alone: no TensorRT here"),
    ],
)
def test_a_dry_run_says_what_checked_the_graph(monkeypatch, options, checked_by):
    """The parser that is installed, unless the plan is for another TensorRT."""
    module = rtx()
    monkeypatch.setattr(installation, "_imported", {module.__name__: module}.get)
    arguments = ["trt", "doge-nano", "--dry-run", "--json", "--bf16", "--max-length", "64", *options]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["checked_by"].startswith(checked_by) and facts["findings"] == []
    assert facts["builder"] == ("rtx" if "RTX" in checked_by else "tensorrt")


def test_a_dry_run_tells_what_the_parser_refuses(monkeypatch):
    """A rule that is missing: the parser's own words, and exit code 1."""
    module = rtx()
    monkeypatch.setattr(installation, "_imported", {module.__name__: module}.get)
    plan = planned("doge-nano", "bf16", "native", 64)
    node = next(node for node in plan.graph.graph if node.op_type == "TopK")
    node.op_type = "Unique"
    monkeypatch.setattr(dry_run, "plan_engine", lambda model, **options: plan)
    try:
        done = CliRunner().invoke(main, ["trt", "doge-nano", "--dry-run"], catch_exceptions=False)
    finally:
        node.op_type = "TopK"
    assert done.exit_code == 1 and "TensorRT for RTX" in done.stdout and "does not take the graph" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("model", "precision", "attention"), MATRIX)
def test_every_engine_of_the_bundled_models(model, precision, attention):
    check(model, precision, attention)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", SIZES)
def test_every_engine_of_real_sizes(model, precision, attention):
    """Random weights: the builder looks at shapes only."""
    check(model, precision, attention, 2048)


@pytest.mark.slow
@pytest.mark.parametrize("model", SIZES)
def test_long_rows(model):
    check(model, "fp16", "plugin", 8192)


@pytest.mark.slow
def test_an_engine_for_several_gpus():
    one, several = (
        built("doge-nano", "fp16", "native", 64, capabilities).built
        for capabilities in ((ADA,), ((8, 0), (8, 6), ADA, (12, 0)))
    )
    assert several.warnings == () and len(several.engine) >= len(one.engine)
