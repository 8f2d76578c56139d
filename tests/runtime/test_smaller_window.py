"""A window below keep_window_size at run time: what a model of the same weights, trained with that window, gives."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner

import doge_export
from doge_export.assets import bundled
from doge_export.cli import main
from doge_export.errors import DogeExportError

KINDS = {"portable": {"target": "portable", "cache": "bounded"}, "onnxruntime": {"cache": "bounded"}, "unbounded": {}}
LENGTH = 200


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """doge-nano in each kind of folder; and in one, as if it had been trained with 24 keys."""
    made = tmp_path_factory.mktemp("window")
    narrow = made / "checkpoint"
    narrow.mkdir()
    for file in bundled("doge-nano").iterdir():
        (narrow / file.name).write_bytes(file.read_bytes())
    config = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps(config | {"keep_window_size": 24}))
    doge_export.export(narrow, made / "narrow", max_length=2 * LENGTH, validate=False, cache="bounded")
    for kind, options in KINDS.items():
        doge_export.export("doge-nano", made / kind, max_length=2 * LENGTH, validate=False, **options)
    return made


@pytest.fixture(scope="module")
def expected(folders):
    return logits(doge_export.load(folders / "narrow", threads=1, backend="graph"))


def loaded(folders, kind, backend, window=None):
    return doge_export.load(folders / kind, threads=1, backend=backend, window=window)


def logits(session):
    ids = np.random.default_rng(0).choice(np.arange(3, 1000), (1, LENGTH), replace=False)
    return session.logits(ids, chunks=[100, 50, *[1] * 50])


RUNS = [("portable", "graph"), ("onnxruntime", "graph"), ("onnxruntime", "native"), ("unbounded", "native")]


@pytest.mark.parametrize(("kind", "backend"), RUNS)
def test_is_the_best_n_by_score(folders, expected, native_library, kind, backend):
    session = loaded(folders, kind, backend, 24)
    found = logits(session)
    assert np.abs(found - expected).max() <= 2e-5 * expected.std()
    full = loaded(folders, kind, backend, 64)
    assert np.abs(found - logits(full)).max() > 1e-2 * expected.std()
    assert (session.decoder.window, session.fork().decoder.window, full.decoder.window) == (24, 24, None)
    if kind != "unbounded":
        assert session.decoder.slots <= 24 + (64 if backend == "native" else 0)


@pytest.mark.parametrize(("kind", "backend"), RUNS[1:])
def test_states_are_of_one_window(folders, native_library, tmp_path, kind, backend):
    session = loaded(folders, kind, backend, 24)
    expected = session.generate("Once upon a time", max_new_tokens=150)
    session.save(tmp_path / "state")
    again = loaded(folders, kind, backend, 24)
    assert again.load_state(tmp_path / "state")[-149:] == list(expected.token_ids[:149])
    with pytest.raises(DogeExportError, match=r"window 24' computed, .* and the same window"):
        loaded(folders, kind, backend).load_state(tmp_path / "state")


def test_refused_in_one_line(folders, native_library):
    for window in (0, 65, -1, 1.5, True):
        with pytest.raises(DogeExportError, match="expected 1 to 64, the keep_window_size"):
            loaded(folders, "portable", None, window)
    with pytest.raises(DogeExportError, match="graph is built in: leave the window out, use the native decoder"):
        loaded(folders, "unbounded", "graph", 24)


@pytest.mark.parametrize(("field", "value"), [("keep_window_size", 0), ("score", "threshold"), ("score", "none")])
def test_refused_models(folders, field, value):
    from doge_export.package.manifest import read_manifest
    from doge_export.runtime.loading import smaller_window

    manifest = read_manifest(folders / "portable")
    changed = dataclasses.replace(manifest, architecture={**manifest.architecture, field: value})
    with pytest.raises(DogeExportError, match="keeps no number of keys"):
        smaller_window(changed, 16)


def test_commands_say_that_it_is_approximate(folders):
    folder = str(folders / "portable")
    for command, given in (("generate", None), ("chat", "Hey how are you doing?\n")):
        arguments = [command, folder, *(["Once"] if command == "generate" else []), "--max-new-tokens", "5"]
        done = CliRunner().invoke(main, [*arguments, "--window", "24"], input=given, catch_exceptions=False)
        assert done.exit_code == 0
        assert "a token sees 24 keys, the model was trained with 64: answers are approximate" in done.stderr
        assert "approximate" not in CliRunner().invoke(main, arguments, input=given).stderr
