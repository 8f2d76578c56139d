"""Chat templates: jinja2 in a sandbox, whose output equals transformers' `apply_chat_template` byte for byte."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from doge_export.errors import DogeExportError
from doge_export.regular_file import is_there, read_regular
from doge_export.runtime.files import damage_of


class _Generation(jinja2.ext.Extension):
    """Tag `{% generation %}`, which marks the assistant's words for training and here only renders them."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML characters, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A compiled chat template.

    Attributes:
        literal_text: every text that the template writes by itself, separated by null characters.

    Raises:
        DogeExportError: the source is not a valid template.
    """

    def __init__(self, source: str) -> None:
        environment = _environment()
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise DogeExportError(f"the chat template is not valid jinja2 (line {error.lineno}): {error}") from error
        literals = {node.data for node in tree.find_all(jinja2.nodes.TemplateData)}
        literals |= {node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)}
        self.literal_text = "\0".join(sorted(literals))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """Render a conversation as one text.

        Args:
            messages: dicts with "role" and "content".
            tools: JSON schemas of functions that the model may call.
            documents: texts that the model may cite, as dicts.
            add_generation_prompt: end with the beginning of an assistant's turn.
            variables: other names that the template reads.

        Raises:
            DogeExportError: the template refuses the messages; the message quotes it.
        """
        try:
            return self._template.render(
                messages=messages,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise DogeExportError(f"the chat template cannot render these messages: {error}") from error


def read_chat_templates(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Read the sources of a folder's chat templates, by name; "default" is the one for everything.

    Args:
        folder: an exported folder. Its chat_template.jinja wins over `tokenizer_config`.
        tokenizer_config: content of tokenizer_config.json, whose `chat_template` is a text or a list of
            `{"name", "template"}`.

    Returns:
        An empty dict if the folder has no template.

    Raises:
        TypeError, KeyError: `chat_template` is anything else.
        DogeExportError: chat_template.jinja is not UTF-8.
    """
    file = folder / "chat_template.jinja"
    if is_there(file):
        with damage_of(file):
            return {"default": read_regular(file).decode("utf-8")}
    source = tokenizer_config.get("chat_template")
    if isinstance(source, str):
        return {"default": source}
    templates = {template["name"]: template["template"] for template in source or ()}
    if not all(isinstance(text, str) for text in templates.values()):
        raise TypeError("a chat template is not a text")
    return templates
