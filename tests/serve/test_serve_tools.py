"""Calls of functions: read out of a model's text, and given as OpenAI's client expects them."""

from __future__ import annotations

import json
import random

import pytest

openai = pytest.importorskip("openai", reason="the extra `test` brings openai")
pytest.importorskip("uvicorn", reason="the extra `serve` brings uvicorn")

from serving import serving  # noqa: E402

from doge_export.serve.tool_calls import ToolCalls  # noqa: E402

MESSAGES = [{"role": "user", "content": "Fetch!"}]
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("fetch", "sit")
]
FETCH = '<tool_call>\n{"name": "fetch", "arguments": {"what": "the \\"ball\\"", "times": 2}}\n</tool_call>'
SIT = '<tool_call>{"name": "sit"}</tool_call>'
ANSWERS = {
    f"I go.\n{FETCH}": ("I go.", ["fetch"]),
    f"{FETCH}\n{SIT}": (None, ["fetch", "sit"]),
    f" {SIT} Done. ": ("Done.", ["sit"]),
    "No < <tool call> a  ": ("No < <tool call> a  ", []),
    '<tool_call>{"name": "bark", "arguments": {}}</tool_call>': (..., []),
    '<tool_call>{"name": "sit", "arguments": [1]}</tool_call> x': (..., []),
    "<tool_call>sit</tool_call><tool_call>[]</tool_call>": (..., []),
    '<tool_call>{"name": ["sit"], "arguments": {}}</tool_call>': (..., []),
    '<tool_call>{"name": "sit", "arguments": {"x": NaN}}</tool_call>': (..., []),
    '<tool_call>{"name": "sit"': (..., []),
}
"""What a model writes; its content, ... for the text itself, and the calls."""


@pytest.mark.parametrize("text", ANSWERS)
def test_calls_are_read_however_the_text_is_cut(text):
    content, names = ANSWERS[text]
    content = text if content is ... else content
    chance = random.Random(0)
    for _ in range(30):
        cuts = sorted(chance.choices(range(len(text) + 1), k=chance.randrange(9)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        reader, said, called = ToolCalls({"fetch", "sit"}), "", []
        for index, piece in enumerate(pieces):
            more, calls = reader.push(piece, index == len(pieces) - 1)
            said, called = said + more, called + calls
        assert said == (content or "") and [call["function"]["name"] for call in called] == names


@pytest.fixture(scope="module")
def server(bundled_folder):
    with serving(bundled_folder("doge-nano"), parallel=2) as served:
        yield served


@pytest.fixture
def written(server, monkeypatch):
    """Lets the model write a text, one token of one to three characters after the other, then its eos token."""
    texts = []
    rows = server.model.rows

    def scripted(request):
        found = rows(request)
        for row in found:
            text = texts[-1]
            pieces = [text[at : at + 3] for at in range(0, len(text), 3)]

            def advance(prediction, row=row, pieces=pieces):
                row.token_ids.append(5)
                piece = pieces[len(row.token_ids) - 1]
                row.pieces.append(piece)
                row.finish_reason = "eos" if len(row.token_ids) == len(pieces) else None
                return piece

            row.advance = advance
        return found

    monkeypatch.setattr(server.model, "rows", scripted)
    return texts


@pytest.mark.parametrize("text", [f"I go.\n{FETCH}", f"{FETCH}\n{SIT}", "No call."])
def test_the_client_gets_calls_whole_and_streamed(server, written, text):
    content, names = ANSWERS.get(text, (text, []))
    written.append(text)
    client, settings = server.client(), {"model": "out", "messages": MESSAGES, "tools": TOOLS}
    (choice,) = client.chat.completions.create(**settings).choices
    assert choice.message.content == content
    assert [call.function.name for call in choice.message.tool_calls or []] == names
    assert choice.finish_reason == ("tool_calls" if names else "stop")
    said, reason, calls = "", None, {}
    for chunk in client.chat.completions.create(stream=True, **settings):
        (part,) = chunk.choices
        said, reason = said + (part.delta.content or ""), part.finish_reason or reason
        calls |= {call.index: call for call in part.delta.tool_calls or []}
    assert (said, reason) == (content or "", choice.finish_reason)
    assert [calls[index].function.name for index in range(len(names))] == names
    if names:
        assert json.loads(calls[0].function.arguments) == {"what": 'the "ball"', "times": 2}
        assert calls[0].type == "function" and len({call.id for call in calls.values()}) == len(names)


def test_without_tools_a_call_is_text(server, written):
    written.append(SIT)
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        (choice,) = server.client().chat.completions.create(model="out", messages=MESSAGES, **more).choices
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (SIT, None, "stop")


def test_calls_and_their_results_go_to_the_template(server, monkeypatch):
    """The arguments as objects, which templates write, not as the JSON texts that clients send."""
    seen = []
    tokenizer = server.model.session.tokenizer
    monkeypatch.setattr(type(tokenizer), "encode_chat", lambda self, messages, **_: seen.append(messages) or [5, 6])
    function = {"name": "fetch", "arguments": '{"what": "ball"}'}
    call = {"id": "1", "type": "function", "function": function}
    messages = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]
    messages += [{"role": "tool", "tool_call_id": "1", "content": "a ball"}]
    client = server.client()
    client.chat.completions.create(model="out", messages=messages, max_tokens=1)
    assert seen[0][1]["tool_calls"][0]["function"] == {"name": "fetch", "arguments": {"what": "ball"}}
    assert function["arguments"] == '{"what": "ball"}' and seen[0][2] == messages[2]
    function["arguments"] = ""  # as some clients send back a call without arguments
    client.chat.completions.create(model="out", messages=messages, max_tokens=1)
    assert seen[1][1]["tool_calls"][0]["function"]["arguments"] == {}
    for wrong in (3, [3], [{}], [{"function": {"name": "a", "arguments": "{"}}], [{"function": {"arguments": "[]"}}]):
        with pytest.raises(openai.BadRequestError, match="tool_calls of a message"):
            client.chat.completions.create(
                model="out", messages=[{"role": "assistant", "tool_calls": wrong}, *MESSAGES], max_tokens=1
            )
