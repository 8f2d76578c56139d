"""Chat templates: their sources, and their output, equal to transformers' `apply_chat_template` byte for byte.

The sources are rendered in a process of their own, see `template_engine.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doge_export.checkpoint.files import TEMPLATES
from doge_export.errors import DogeExportError
from doge_export.regular_file import is_there, read_regular
from doge_export.runtime import template_engine as engine
from doge_export.runtime.chat_messages import (
    REASONING,
    checked_documents,
    checked_tools,
    conversation,
    data_of,
    with_reasoning,
)
from doge_export.runtime.files import damage_of
from doge_export.runtime.template_process import ask

LARGEST_SOURCE = 4_000_000
"""Bytes of a file with a template."""

_CUT = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """A chat template.

    Attributes:
        source: its text.
        literal_text: every text that the template writes by itself, separated by null characters.

    Raises:
        DogeExportError: the source is not a valid template.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.literal_text = _answer("literals", source, {})

    def render(
        self,
        messages: Sequence[Any],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        **variables: Any,
    ) -> str:
        """Render a conversation as one text.

        Args:
            messages: dicts with "role" and "content", dataclasses or pydantic models.
            tools: JSON schemas of functions that the model may call.
            documents: texts that the model may cite, as dicts.
            add_generation_prompt: end with the beginning of an assistant's turn.
            continue_final_message: end within the last message, after its content or the field that is named.
            variables: other names that the template reads.

        Raises:
            DogeExportError: the template refuses the messages, or takes too much time, memory or text; the message
                quotes it.
        """
        chat = with_reasoning(conversation(messages)) if messages else []
        final = None
        if continue_final_message:
            if add_generation_prompt:
                raise DogeExportError(
                    "continue_final_message goes on with the last message and add_generation_prompt begins a new one: "
                    "give one of them"
                )
            field = continue_final_message if isinstance(continue_final_message, str) else "content"
            final = self._mark_end(chat, field)
        text = _answer(
            "render",
            self.source,
            {
                **data_of(variables),
                "messages": chat,
                "tools": checked_tools(tools),
                "documents": checked_documents(documents),
                "add_generation_prompt": add_generation_prompt,
            },
        )
        return text if final is None else _cut_at_end(text, final)

    def _mark_end(self, chat: list[dict[str, Any]], name: str) -> str:
        """Append a tag to the field `name` of the last message, in place, and return the text before it."""
        last = chat[-1] if chat else {}
        value = last.get(name)
        if value is None:
            raise DogeExportError(f"continue_final_message: the last message has no {name!r} to go on with")
        names = [each for each in REASONING if last.get(each) == value] if name in REASONING else [name]
        if not any(each in self.source for each in names):
            raise DogeExportError(f"continue_final_message: the chat template does not read {name!r}")
        if isinstance(value, str):
            last |= dict.fromkeys(names, value + _CUT)
            return value
        blocks = value if isinstance(value, (list, tuple)) else ()
        for block in reversed(blocks):
            if isinstance(block, dict) and isinstance(block.get("text"), str):
                text: str = block["text"]
                block["text"] += _CUT
                return text
        raise DogeExportError(f"continue_final_message: {name!r} of the last message has no text to go on with")


def _cut_at_end(rendered: str, final: str) -> str:
    at = rendered.rfind(_CUT.strip())
    if final.strip() not in rendered or at < 0:
        raise DogeExportError("continue_final_message: the chat template leaves the end of the last message out")
    # Where the template trims the message, the space at the end of the tag is gone, and so is that before it.
    return rendered[:at] if rendered.startswith(_CUT, at) else rendered[:at].rstrip()


def _answer(kind: str, source: str, variables: dict[str, Any]) -> str:
    status, text = ask(kind, source, variables)
    if status == engine.INVALID:
        raise DogeExportError(f"the chat template is not valid jinja2 ({text})")
    if status == engine.FAILED:
        does = "render these messages" if kind == "render" else "be read"
        raise DogeExportError(f"the chat template cannot {does}: {text}")
    return text


def read_chat_templates(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Read the sources of a folder's chat templates, by name; "default" is the one for everything.

    Args:
        folder: an exported folder. Its chat_template.jinja, and the files NAME.jinja of `TEMPLATES`, win over
            `tokenizer_config`.
        tokenizer_config: content of tokenizer_config.json, whose `chat_template` is a text, a dict of texts by name, or
            a list of `{"name", "template"}`.

    Returns:
        An empty dict if the folder has no template.

    Raises:
        TypeError, KeyError: `chat_template` is anything else.
        DogeExportError: a file is not UTF-8 or too large.
    """
    default = folder / "chat_template.jinja"
    files = {"default": default} if is_there(default) else {}
    named = sorted((folder / TEMPLATES).glob("*.jinja"))
    files |= {file.name.removesuffix(".jinja"): file for file in named if is_there(file)}
    if files:
        return {name: _read_source(file) for name, file in files.items()}
    source = tokenizer_config.get("chat_template")
    if isinstance(source, str):
        return {"default": source}
    if isinstance(source, Mapping):
        templates = dict(source)
    else:
        templates = {template["name"]: template["template"] for template in source or ()}
    if not all(isinstance(name, str) and isinstance(text, str) for name, text in templates.items()):
        raise TypeError("a chat template is not a text")
    return templates


def _read_source(file: Path) -> str:
    with damage_of(file):
        return read_regular(file, LARGEST_SOURCE).decode("utf-8-sig")
