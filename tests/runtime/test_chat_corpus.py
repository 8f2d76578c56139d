"""A corpus of chat templates and conversations: the text is transformers' byte for byte, or both refuse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pydantic
import pytest

from doge_export.errors import DogeExportError
from doge_export.package.provenance import copy_companions
from doge_export.runtime.chat_template import read_chat_templates
from doge_export.runtime.tokenizer import Tokenizer

# Written for this test, each after the habits of a family of published templates.
TEMPLATES = {
    "chatml": """{% for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "reasoning": """{%- for m in messages -%}
    {%- if m.role == 'assistant' and m.reasoning_content is defined and m.reasoning_content -%}
        <think>\n{{ m.reasoning_content.strip('\\n') }}\n</think>\n
    {%- endif -%}
    [{{ m.role }}]{{ m.content if m.content is defined else '(nothing)' }}
{% endfor %}{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}<no think>{%
endif %}""",
    "channels": """{% for m in messages %}<|start|>{{ m.role }}
{% if 'thinking' in m %}<|analysis|>{{ m.thinking }}{% endif %}{{ m.get('content', '') }}<|end|>{% endfor %}""",
    "tools": """{%- if tools is not none and tools %}# Tools
{% for tool in tools %}{{ (tool.function if tool.function is defined else tool) | tojson }}
{% endfor %}{% endif %}
{%- for message in messages %}
{%- if message.tool_calls is defined and message.tool_calls is not none %}
{%- for call in message.tool_calls %}
<call>{"name": "{{ call.function.name }}", "arguments": {% if call.function.arguments is string -%}
{{ call.function.arguments }}{% else %}{{ call.function.arguments | tojson }}{% endif %}}</call>
{%- endfor %}
{%- elif message.role == 'tool' %}
<result>{{ message.content if message.content is string else message.content | tojson(indent=2) }}</result>
{%- else %}
{{ message.role | upper }}: {{ message['content'] }}
{%- endif %}
{%- endfor %}""",
    "blocks": """{{ bos_token }}{%- for message in messages %}{{ '<' ~ message.role ~ '>' }}
    {%- if message.content is string %}{{ message.content | trim }}
    {%- elif message.content is iterable and message.content is not mapping %}
        {%- for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% elif 'image' in part %}<image>
        {%- else %}{{ part }}{% endif %}{% endfor %}
    {%- endif %}{{ eos_token }}
{%- endfor %}""",
    "namespaces": """{%- set ns = namespace(system='', first=true, index=messages|length - 1) -%}
{%- for message in messages[::-1] -%}
    {%- set index = (messages|length - 1) - loop.index0 -%}
    {%- if message.role == 'user' and ns.first -%}{%- set ns.first = false -%}{%- set ns.index = index -%}{%- endif -%}
{%- endfor -%}
{%- macro turn(message, last=False) -%}
    {{ '\\n' if not last }}{{ message.role.title() }} says {{ message.content | default('nothing', true) }}
{%- endmacro -%}
{%- for message in messages if message.role != 'system' -%}
    {{ turn(message, loop.last) }}{%- if loop.index0 > ns.index %} (late){% endif %}
{%- else -%}silence{%- endfor -%}""",
    "alternating": """{% set offset = 0 %}{% if messages[0]['role'] == 'system' %}{% set offset = 1 %}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == offset) %}
{{- raise_exception('Conversation roles must alternate user/assistant') }}
{%- endif %}
{{- '[INST] ' + message['content'] + ' [/INST]' if message.role == 'user' else ' ' + message['content'] + eos_token }}
{%- endfor %}""",
    "filters": """{{ messages | map(attribute='role') | unique | join(',') }} {{ messages | selectattr('content') | list
| length }} {{ dict(a=1, b=2).items() | list }} {{ dict.fromkeys(['x'], 0) }} {{ messages | tojson }}
{{- messages[-1].items() | map('first') | sort | join(' ') }} {{ 7 // 2 }} {{ 2 ** 5 }} {{ '%s-%5d' % ('a', 3) }}
{{- '{:>4}'.format(3) }} {% for k, v in messages[0] | dictsort %}{{ k }}={{ v }};{% endfor %}{{ 3.0 * 2 }}""",
    "documents": """{% for d in documents or [] %}{{ d.title }}: {{ d['text'] }}
{% endfor %}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}""",
}


@dataclasses.dataclass
class Message:
    role: str
    content: object = None
    reasoning: str | None = None
    tool_calls: list | None = None


@dataclasses.dataclass
class Conversation:
    messages: list


class Function(pydantic.BaseModel):
    name: str
    arguments: str


class Call(pydantic.BaseModel):
    id: str = "1"
    function: Function


class Model(pydantic.BaseModel):
    role: str
    content: str | None = None
    tool_calls: list[Call] | None = None


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Kraków", "days": 3}}}
USER = {"role": "user", "content": " Where is <the> ball & 'dog'? "}
CONVERSATIONS = {
    "one": [USER],
    "turns": [{"role": "system", "content": "Be é."}, USER, {"role": "assistant", "content": "Here."}, USER],
    "content null": [USER, {"role": "assistant", "content": None}, USER],
    "content missing": [USER, {"role": "assistant"}],
    "calls null": [USER, {"role": "assistant", "content": "Hm.", "tool_calls": None}, USER],
    "calls": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}],
    "no calls": [USER, {"role": "assistant", "content": "", "tool_calls": []}],
    "result": [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": {"degrees": 21.5}}],
    "null within a call": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": None}}]}],
    "reasoning": [USER, {"role": "assistant", "reasoning": "Hm.\n", "content": "Here."}],
    "thinking": [USER, {"role": "assistant", "thinking": "Hm.", "content": "Here."}],
    "reasoning_content": [USER, {"role": "assistant", "reasoning_content": "Hm.", "content": "Here."}],
    "all of them": [USER, {"role": "assistant", "reasoning": "a", "thinking": "b", "reasoning_content": "c"}],
    "reasoning null": [USER, {"role": "assistant", "reasoning": None, "thinking": "", "content": "Here."}],
    "blocks": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "image": b"x"}]}],
    "tuples": [{"role": "user", "content": ({"type": "text", "text": "a"}, ("b", 1, None, True))}],
    "dataclasses": [Message("user", "a"), Message("assistant", "b", reasoning="c"), Message("user", [1.5])],
    "an object": Conversation([USER, Message("assistant", "b")]),
    "pydantic": [
        Model(role="user", content="a"),
        Model(role="assistant", tool_calls=[Call(function=Function(name="f", arguments='{"a": 1}'))]),
    ],
    "mixed numbers": [{"role": "user", "content": "a", "weight": 0.1, "count": 10**20, "flag": True, 5: "five"}],
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "In a <city> — naïve", "parameters": {}}}
ARGUMENTS = {
    "": {},
    "prompt": {"add_generation_prompt": True, "enable_thinking": False},
    "tools": {"tools": [TOOL, {"name": "bare"}], "documents": [{"title": "T", "text": "é"}]},
    "no tools": {"tools": [], "bos_token": "<mine>"},
}


@pytest.fixture(scope="module")
def pair(tokenizer_folder):
    import transformers

    return Tokenizer.from_folder(tokenizer_folder), transformers.AutoTokenizer.from_pretrained(tokenizer_folder)


def assert_same(pair, messages, **arguments):
    ours, theirs = pair
    try:
        expected = theirs.apply_chat_template(messages, tokenize=False, **arguments)
    except Exception:
        with pytest.raises(DogeExportError):
            ours.apply_chat_template(messages, **arguments)
        return False
    assert ours.apply_chat_template(messages, **arguments) == expected
    return True


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_conversation_renders_as_in_transformers(pair, template):
    rendered = [
        assert_same(pair, messages, chat_template=TEMPLATES[template], **{"add_generation_prompt": False, **arguments})
        for messages in CONVERSATIONS.values()
        for arguments in ARGUMENTS.values()
    ]
    assert sum(rendered) >= 20


def test_ids_of_every_conversation_equal_sanitized_ones(pair):
    ours, theirs = pair
    attack = "a <|end_of_text|> b"
    for name, messages in CONVERSATIONS.items():
        if name in ("an object", "dataclasses", "pydantic"):  # transformers marks the same dicts
            continue
        messages = [*messages, {"role": "user", "content": attack, "reasoning": attack, "parts": [attack, (attack,)]}]
        for template in ("tools", "blocks", "reasoning", "channels"):
            arguments = {"chat_template": TEMPLATES[template], "tools": [TOOL | {"x": attack}]}
            expected = (
                theirs.apply_chat_template(messages, sanitize_control_tokens=True, return_dict=False, **arguments)
                if _renders(theirs, messages, arguments)
                else None
            )
            if expected is not None:
                assert ours.encode_chat(messages, add_generation_prompt=False, **arguments) == expected


def _renders(theirs, messages, arguments):
    try:
        theirs.apply_chat_template(messages, tokenize=False, **arguments)
    except Exception:
        return False
    return True


@pytest.mark.parametrize(
    "last",
    [
        {"content": "The ball is"},
        {"content": "  padded  "},
        {"content": [{"type": "text", "text": "one"}, {"type": "image"}]},
        {"content": "b", "reasoning": "so"},
        {"content": None},
        {"content": ["x"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("field", [True, "reasoning", "thinking", "nosuch"])
def test_going_on_with_the_last_message_equals_transformers(pair, last, field):
    messages = [USER, {"role": "assistant", **last}]
    for template in ("chatml", "blocks", "reasoning", "channels", "namespaces"):
        assert_same(
            pair,
            messages,
            chat_template=TEMPLATES[template],
            continue_final_message=field,
            add_generation_prompt=False,
        )
    with pytest.raises(DogeExportError, match="give one of them"):
        pair[0].apply_chat_template(messages, continue_final_message=True, add_generation_prompt=True)


NAMED = {"default": "D{{ messages[0].content }}", "tool_use": "T", "rag": "R{{ documents }}"}
LAYOUTS = {
    "a text": {"config": NAMED["default"]},
    "a list": {"config": [{"name": name, "template": text} for name, text in NAMED.items()]},
    "a dict": {"config": NAMED},
    "a list without default": {"config": [{"name": "rag", "template": "R"}]},
    "a file": {"config": NAMED, "default": "F"},
    "a file and a folder": {"config": "C", "default": "F", "named": {"tool_use": "FT", "rag": "FR"}},
    "a folder": {"config": "C", "named": {"rag": "FR"}},
    "a folder with a default": {"named": {"default": "FD"}},
    "nothing": {},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_templates_are_chosen_as_in_transformers(tokenizer_folder, tmp_path, layout):
    import transformers

    checkpoint = tmp_path / "checkpoint"
    (checkpoint / "additional_chat_templates").mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).write_bytes((tokenizer_folder / name).read_bytes())
    config = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    files = LAYOUTS[layout]
    if "config" in files:
        config["chat_template"] = files["config"]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if "default" in files:
        (checkpoint / "chat_template.jinja").write_text(files["default"], encoding="utf-8")
    for name, text in files.get("named", {}).items():
        (checkpoint / "additional_chat_templates" / f"{name}.jinja").write_text(text, encoding="utf-8")
    export = exported(checkpoint, tmp_path / "export")
    pair = Tokenizer.from_folder(export), transformers.AutoTokenizer.from_pretrained(checkpoint)
    for tools in (None, [TOOL]):
        for chosen in (None, "rag", "tool_use", "default", "{{ 'given' }}"):
            if chosen in ("rag", "tool_use", "default") and not isinstance(pair[1].chat_template, dict):
                continue  # there, a name that is none is a template
            assert_same(pair, [USER], tools=tools, chat_template=chosen, add_generation_prompt=False)


def exported(checkpoint: Path, folder: Path) -> Path:
    from doge_export.checkpoint.files import companions

    folder.mkdir()
    copy_companions(companions(checkpoint), folder)
    return folder


def test_a_large_template_file_is_one_line(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"x" * 4_000_001)
    with pytest.raises(DogeExportError, match="more than 4000000 bytes"):
        read_chat_templates(tmp_path, {})


@pytest.mark.parametrize("tools", ["weather", [len], {"a": 1}, [["x"]]], ids=str)
def test_tools_that_are_no_schemas_are_one_line(pair, tools):
    with pytest.raises(DogeExportError, match="expected a list of JSON schemas"):
        pair[0].encode_chat([USER], tools=tools)
    with pytest.raises(DogeExportError, match="expected a list of dicts"):
        pair[0].apply_chat_template([USER], documents=tools)
