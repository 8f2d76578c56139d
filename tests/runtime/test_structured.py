"""Answers that follow a JSON schema."""

from __future__ import annotations

import json
import sys

import pytest

import doge_export
from doge_export.errors import DogeExportError
from doge_export.installing import install_command
from doge_export.runtime.structured import schema_of

SCHEMA = {
    "type": "object",
    "properties": {"animal": {"enum": ["cat", "dog"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["animal", "legs"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def session(nano_folder):
    pytest.importorskip("llguidance", reason="the extra structured is not installed")
    return doge_export.load(nano_folder)


def check(text: str) -> None:
    value = json.loads(text)
    assert set(value) == {"animal", "legs"}
    assert value["animal"] in ("cat", "dog") and value["legs"] in range(100)


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 5.0, "top_k": 0, "seed": 1}], ids=str)
def test_an_answer_parses_and_follows_its_schema(session, settings):
    prompts = ["Once upon a time", "Hey"]
    for answer in session.generate(prompts, json_schema=SCHEMA, max_new_tokens=80, **settings):
        check(answer.text)
        assert answer.finish_reason == "eos"
    asked = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA}}
    streamed = "".join(session.stream("Hey", response_format=asked, max_new_tokens=80, **settings))
    check(streamed)
    chat = session.chat()
    check("".join(chat.send("Hey", json_schema=json.dumps(SCHEMA), max_new_tokens=80, **settings)))
    assert session.generate("Hey", response_format={"type": "text"}, max_new_tokens=3).text


def test_the_command_line(session, tmp_path):
    from click.testing import CliRunner

    from doge_export.cli import main

    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA), encoding="utf-8")
    arguments = ["generate", str(session.folder), "Hey", "--json-schema", str(file), "--greedy"]
    result = CliRunner().invoke(main, [*arguments, "--max-new-tokens", "80"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    check(result.stdout)
    result = CliRunner().invoke(main, [*arguments, "--max-new-tokens", "3"], catch_exceptions=False)
    assert "note: the JSON is not complete" in result.stderr
    file.write_text("{", encoding="utf-8")
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (2, "") and "json_schema is not JSON" in result.stderr


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"$ref": "#/nowhere"}, 3, "["])
def test_a_schema_that_is_none_is_one_line(session, schema):
    with pytest.raises(DogeExportError, match="json_schema"):
        session.generate("Hey", json_schema=schema)


@pytest.mark.parametrize("wrong", [3, {}, {"type": "xml"}, {"type": "json_schema"}])
def test_a_response_format_that_is_none(wrong):
    with pytest.raises(DogeExportError, match="response_format is"):
        schema_of(None, wrong)


def test_without_the_library_the_extra_is_named(nano_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(DogeExportError) as told:
        doge_export.load(nano_folder).generate("Hey", json_schema=SCHEMA)
    assert install_command("structured") in str(told.value)
