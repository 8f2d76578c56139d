"""The server over loopback, as OpenAI's own client sees it."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import threading

import numpy as np
import pytest

openai = pytest.importorskip("openai", reason="the extra `test` brings openai")
pytest.importorskip("uvicorn", reason="the extra `serve` brings uvicorn")

from serving import serving  # noqa: E402

from doge_export import load  # noqa: E402
from doge_export.errors import DogeExportError  # noqa: E402
from doge_export.serve.app import App  # noqa: E402
from doge_export.serve.limits import LARGEST_BODY  # noqa: E402
from doge_export.serve.model import ServedModel  # noqa: E402

MESSAGES = [{"role": "user", "content": "Tell me a story about a dog."}]


@pytest.fixture(scope="module")
def folder(bundled_folder):
    return bundled_folder("doge-nano")


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder) as served:
        yield served


@pytest.fixture(scope="module")
def client(server):
    return server.client()


@pytest.fixture(scope="module")
def expected(folder):
    return load(folder, threads=1).generate(MESSAGES, max_new_tokens=24, temperature=0)


def test_models(client):
    assert [each.id for each in client.models.list().data] == ["out"]
    assert client.models.retrieve("out").owned_by == "doge-export"


def test_chat_is_what_generate_writes(client, expected):
    answer = client.chat.completions.create(model="out", messages=MESSAGES, max_tokens=24, temperature=0)
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_stream_has_the_text_the_reason_and_the_usage(client, expected):
    chunks = list(
        client.chat.completions.create(
            model="out",
            messages=MESSAGES,
            max_completion_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == expected.text
    assert chunks[-1].usage.completion_tokens == len(expected.token_ids)
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")


def test_a_seed_gives_the_same_text_beside_others(client, folder):
    session = load(folder, threads=1)
    settings = {"temperature": 1.0, "top_p": 0.9}
    wanted = [session.generate("Once upon a time", max_new_tokens=16, seed=seed, **settings).text for seed in range(8)]
    found: dict[int, str] = {}

    def ask(seed: int) -> None:
        answer = client.completions.create(model="out", prompt="Once upon a time", max_tokens=16, seed=seed, **settings)
        found[seed] = answer.choices[0].text

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(8)] == wanted


def test_completion_with_logprobs_several_prompts_and_answers(client):
    answer = client.completions.create(
        model="out", prompt=["Once upon", "The dog"], n=2, max_tokens=3, logprobs=2, temperature=0, logit_bias={"9": -5}
    )
    assert [each.index for each in answer.choices] == [0, 1, 2, 3]
    for each in answer.choices:
        assert each.logprobs.token_logprobs == [max(top.values()) for top in each.logprobs.top_logprobs]


@pytest.mark.parametrize(
    "settings, error, code",
    [
        ({"model": "other"}, openai.NotFoundError, "model_not_found"),
        ({"messages": []}, openai.BadRequestError, "invalid_value"),
        ({"messages": [{"role": "user", "content": "fox " * 2000}]}, openai.BadRequestError, "context_length_exceeded"),
        ({"temperature": 9}, openai.BadRequestError, "invalid_value"),
        ({"max_tokens": "many"}, openai.BadRequestError, "invalid_type"),
        ({"presence_penalty": 1}, openai.BadRequestError, "unsupported_parameter"),
        ({"extra_body": {"max_token": 3}}, openai.BadRequestError, "unknown_parameter"),
    ],
)
def test_mistakes_are_told_in_openais_form(client, settings, error, code):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "out", "messages": MESSAGES, **settings})
    assert caught.value.code == code
    assert "\n" not in caught.value.body["message"]


def test_a_wrong_key_a_route_that_is_not_there_and_embeddings_of_a_generator(server, client):
    with pytest.raises(openai.AuthenticationError):
        server.client("wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        client.get("/nothing", cast_to=object)
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="out", input="a")


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b"[]", b"1", b"{" * 100_000, b'{"model": NaN}', b"[" * 100_000, b""]
)
def test_a_body_that_is_no_request_is_refused(server, body):
    status, _, content = server.ask(body, "/v1/chat/completions")
    assert status == 400
    assert content["error"]["type"] == "invalid_request_error"


def test_a_huge_body_and_a_wrong_method_are_refused(server):
    status, _, content = server.ask(b" " * (LARGEST_BODY + 1))
    assert (status, content["error"]["code"]) == (413, "body_too_large")
    status, headers, content = server.ask(method="DELETE")
    assert (status, headers["allow"], content["error"]["type"]) == (405, "POST", "invalid_request_error")


def test_a_client_that_vanishes_leaves_no_work(server, client):
    for _ in range(6):
        stream = client.completions.create(
            model="out", prompt="Once", max_tokens=250, stream=True, extra_body={"logit_bias": {"1": -100}}
        )
        next(iter(stream))
        stream.close()
    server.until_idle()


def test_an_idle_server_is_healthy_and_counts(server, client):
    before = server.metrics()
    client.completions.create(model="out", prompt="Once", max_tokens=3, temperature=0)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="out", prompt="")
    good, bad = (f'doge_requests_total{{path="/v1/completions",status="{status}"}}' for status in (200, 400))
    after = server.until(lambda now: [now.get(name, 0) - before.get(name, 0) for name in (good, bad)] == [1, 1])

    def grown(name):
        return after.get(name, 0) - before.get(name, 0)

    assert grown("doge_tokens_written_total") == 3
    assert grown("doge_prompt_tokens_total") >= 1
    assert grown('doge_answers_total{ended="stop"}') + grown('doge_answers_total{ended="length"}') == 1
    assert grown("doge_first_token_seconds_count") == grown('doge_first_token_seconds_bucket{le="+Inf"}') == 1
    assert 0 < grown("doge_first_token_seconds_sum") <= grown("doge_request_seconds_sum")
    assert server.ask(path="/health", method="GET", key="none")[::2] == (200, {"status": "ok"})


def test_stop_ends_before_its_text(client, expected):
    word = expected.text.split()[3]
    for stop in (word, [word, "@@"]):
        answer = client.chat.completions.create(model="out", messages=MESSAGES, max_tokens=24, temperature=0, stop=stop)
        assert answer.choices[0].message.content == expected.text.split(word)[0]
        assert answer.choices[0].finish_reason == "stop"


def test_token_ids_are_prompts_too(client, folder):
    tokenizer = load(folder, threads=1).tokenizer
    ids = [tokenizer.encode(text) for text in ("Once upon a time", "The dog")]
    settings = {"model": "out", "max_tokens": 5, "temperature": 0}
    by_text = client.completions.create(prompt=["Once upon a time", "The dog"], **settings)
    by_ids = client.completions.create(prompt=ids, **settings)
    assert [each.text for each in by_text.choices] == [each.text for each in by_ids.choices]
    assert client.completions.create(prompt=ids[1], **settings).choices[0].text == by_ids.choices[1].text
    assert by_ids.usage.prompt_tokens == sum(map(len, ids))


def test_logprobs_of_a_chat_whole_and_streamed(client):
    settings = {"model": "out", "messages": MESSAGES, "max_tokens": 6, "temperature": 0}
    settings |= {"logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**settings).choices[0].logprobs.content
    assert len(whole) == 6
    assert all(each.logprob == each.top_logprobs[0].logprob <= 0 and len(each.top_logprobs) == 2 for each in whole)
    chunks = list(client.chat.completions.create(stream=True, **settings))
    streamed = [one for each in chunks if each.choices[0].logprobs for one in each.choices[0].logprobs.content]
    assert [each.token for each in streamed] == [each.token for each in whole]


def test_several_streamed_answers_are_told_apart(client):
    settings = {"model": "out", "prompt": ["Once", "The"], "n": 2, "max_tokens": 8, "seed": 3, "temperature": 1}
    whole = client.completions.create(**settings)
    texts = ["", "", "", ""]
    ended = []
    for chunk in client.completions.create(stream=True, **settings):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ended += [choice.index] if choice.finish_reason else []
    assert texts == [each.text for each in whole.choices]
    assert sorted(ended) == [0, 1, 2, 3]


def test_an_answer_follows_a_schema(client):
    pytest.importorskip("llguidance", reason="the extra `structured` brings llguidance")
    schema = {"type": "object", "properties": {"good": {"type": "boolean"}}, "required": ["good"]}
    schema |= {"additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "dog", "schema": schema}}
    answer = client.chat.completions.create(model="out", messages=MESSAGES, max_tokens=60, response_format=form)
    assert isinstance(json.loads(answer.choices[0].message.content)["good"], bool)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="out", messages=MESSAGES, response_format={"type": "poem"})


def test_without_llguidance_a_schema_is_refused(client, monkeypatch):
    def missing(extra, *modules):
        raise DogeExportError("llguidance is not installed")

    monkeypatch.setattr("doge_export.runtime.structured.need", missing)
    with pytest.raises(openai.BadRequestError, match="llguidance"):
        client.chat.completions.create(model="out", messages=MESSAGES, response_format={"type": "json_object"})


def test_the_template_renders_tools(folder, tmp_path):
    """The bundled template knows no tools, so a copy of the folder gets one that does."""
    copy = tmp_path / "tools"
    shutil.copytree(folder, copy)
    template = "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}{{ messages[-1].content }}"
    for file in copy.glob("chat_template.*"):
        file.unlink()
    config = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    tool = {"type": "function", "function": {"name": "fetch_the_ball", "parameters": {"type": "object"}}}
    with serving(copy, parallel=1) as served:
        seen = []
        rows = served.model.rows
        served.model.rows = lambda request: seen.extend(rows(request)) or seen[-1:]
        client = served.client()
        for choice in ("auto", "none"):
            client.chat.completions.create(
                model="tools", messages=MESSAGES, tools=[tool], tool_choice=choice, max_tokens=1
            )
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="tools", messages=MESSAGES, tools=["a"], max_tokens=1)
        decode = served.model.session.tokenizer.decode
        with_tools, without = (decode(row.prompt_token_ids) for row in seen)
    assert "fetch_the_ball" in with_tools and "fetch_the_ball" not in without


@pytest.fixture(scope="module")
def features(task_export):
    return task_export("feature-extraction").folder


@pytest.fixture(scope="module")
def embedder(features):
    with serving(features) as served:
        yield served


def test_embeddings_are_those_of_the_session(embedder, features):
    client, texts = embedder.client(), ["Hey how are you doing?", "Fine."]
    wanted = load(features).embed(texts)
    plain = client.embeddings.create(model="out", input=texts, encoding_format="float")
    assert np.allclose([each.embedding for each in plain.data], wanted, atol=1e-6)
    assert plain.usage.prompt_tokens == plain.usage.total_tokens > 2
    by_default = client.embeddings.create(model="out", input=texts)  # base64, which the client decodes
    assert np.allclose([each.embedding for each in by_default.data], wanted, atol=1e-6)
    body = json.dumps({"model": "out", "input": "Fine.", "encoding_format": "base64"}).encode()
    status, _, content = embedder.ask(body, "/v1/embeddings")
    vector = np.frombuffer(base64.b64decode(content["data"][0]["embedding"]), "<f4")
    assert status == 200 and np.allclose(vector, wanted[1], atol=1e-6)
    ids = load(features).tokenizer.encode("Fine.")
    assert np.allclose(client.embeddings.create(model="out", input=ids).data[0].embedding, wanted[1], atol=1e-6)
    assert embedder.metrics()["doge_answers_running"] == 0


def test_vectors_are_computed_by_as_many_threads_as_there_are(features, native_library, monkeypatch):
    """The native decoder's calls wait for each other, so that one thread for each would leave processors idle."""
    opened = []
    monkeypatch.setattr("doge_export.serve.model.load", lambda folder, **how: opened.append(how) or load(folder, **how))
    for how, loads in (({}, [{}]), ({"backend": "graph"}, [{"backend": "graph"}, {"backend": "graph", "threads": 1}])):
        opened.clear()
        ServedModel(features, 8, 1, **how).close()
        assert opened == loads


@pytest.mark.parametrize(
    "settings, code",
    [
        ({"input": []}, "invalid_value"),
        ({"input": ["a", "fox " * 200]}, "context_length_exceeded"),
        ({"input": "fox " * 200}, "context_length_exceeded"),
        ({"input": ["a"] * 2049}, "invalid_value"),
        ({"dimensions": 3}, "unsupported_parameter"),
        ({"input": [10**9]}, None),
        ({"input": ["a", 1]}, None),
    ],
)
def test_mistakes_of_embeddings(embedder, settings, code):
    with pytest.raises(openai.BadRequestError) as caught:
        embedder.client().embeddings.create(**{"model": "out", "input": "a", **settings})
    assert caught.value.code == code


def test_a_model_of_embeddings_writes_nothing(embedder):
    with pytest.raises(openai.BadRequestError):
        embedder.client().chat.completions.create(model="out", messages=MESSAGES)


def test_a_model_that_is_loading_is_waited_for(server, client, monkeypatch):
    monkeypatch.setattr(server.app, "model", None)
    assert server.ask(path="/health", method="GET")[::2] == (503, {"status": "loading"})
    status, headers, content = server.ask(json.dumps({"model": "out", "prompt": "a"}).encode())
    assert (status, headers["retry-after"], content["error"]["code"]) == (503, "1", "loading")
    assert server.metrics()["doge_uptime_seconds"] > 0
    assert [each.id for each in client.models.list().data] == ["out"]


def test_a_classifier_is_not_served(task_export):
    with pytest.raises(DogeExportError, match="text-classification"):
        ServedModel(task_export("text-classification", num_labels=3).folder, 1, 1)


def test_onnxruntime_answers_as_well(folder):
    """Several at once, each as `generate` writes it alone."""
    prompts = ["Once upon a time", "The dog", "One day"]
    session = load(folder, threads=1, backend="graph")
    wanted = [session.generate(prompt, max_new_tokens=12, temperature=0).text for prompt in prompts]
    with serving(folder, parallel=2, backend="graph") as served:
        answer = served.client().completions.create(model="out", prompt=prompts, max_tokens=12, temperature=0)
    assert [each.text for each in answer.choices] == wanted


def test_another_server_may_begin_and_end_the_application():
    """As Ray's does, by the messages of ASGI's "lifespan"."""
    coming, told = iter(["lifespan.startup", "lifespan.shutdown"]), []

    async def receive():
        return {"type": next(coming)}

    async def send(message):
        told.append(message["type"])

    asyncio.run(App("out").asgi({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send))
    assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
