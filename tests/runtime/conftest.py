"""A real decoder in numpy, tokenizers trained on the spot, and sessions made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doge_export.errors import DogeExportError
from doge_export.runtime import ClassificationSession, FeatureSession, load
from doge_export.runtime.generation_config import GenerationConfig
from doge_export.runtime.one_call import OneCall
from doge_export.runtime.prediction import Prediction, predictions
from doge_export.runtime.session import Session
from doge_export.runtime.tokenizer import Tokenizer

SHARED_TOKENIZER = Path(__file__).parents[3] / "shared" / "doge-tokenizer"

SPECIAL_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", "<|start_header_id|>", "<|end_header_id|>"]

CORPUS = [
    "Once upon a time a small dog named Rex found a red ball in the garden, and Rex was happy.",
    "What is the colour of the ball? The colour of the ball is red.\n\nWhere was it? It was in the garden!",
    "Zażółć gęślą jaźń; naïve café; 北京欢迎你; Привет, мир; 😀👍🏽; def f(x):\n    return x ** 2\t# tabs",
    "0123456789 it's we'll they've I'm you'd can't   spaces   and\n\n\nnewlines",
]

# Doge-Instruct's conventions: a system block with a date, turns that end with the eos token, trimmed contents, tools.
CHAT_TEMPLATE = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "December 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n" }}
{{- "Today Date: " + date_string + "\\n" }}
{%- if tools %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|end_of_text|>\\n\\n" }}
{%- for message in messages %}
    {%- if message['role'] not in ['user', 'assistant'] %}
        {{- raise_exception("Only user and assistant, not " + message['role']) }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- message['content'] | trim + '<|end_of_text|>\\n\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] | trim + '<|end_of_text|>\\n\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n' }}
{%- endif %}
"""


class NumpyDecoder:
    """The Decoder protocol on one attention layer: the logits of a token depend on its id, its position and everything
    before it, and not on padding. Records the shape of every run in `runs`."""

    def __init__(self, vocab_size: int, max_length: int = 128, seed: int = 0, width: int = 24) -> None:
        random = np.random.default_rng(seed)
        self.vocab_size = vocab_size
        self.max_length = self.chunkable_length = max_length
        self._embedding = random.normal(size=(vocab_size, width)).astype(np.float32)
        self._position = random.normal(size=(max_length, width)).astype(np.float32)
        self._query = random.normal(size=(width, width)).astype(np.float32) / width**0.5
        self._head = random.normal(size=(width, vocab_size)).astype(np.float32)
        self.runs: list[tuple[int, ...]] = []
        self.reset()

    @property
    def batch_size(self) -> int:
        return self._ids.shape[0]

    @property
    def length(self) -> int:
        return self._ids.shape[1]

    def reset(self, batch_size: int = 1) -> None:
        self._ids = np.zeros((batch_size, 0), np.int64)
        self._mask = np.zeros((batch_size, 0), np.int64)

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self.length
        self._ids, self._mask = self._ids[:, :length], self._mask[:, :length]

    def recallable(self, length: int) -> int:
        return length

    def mark(self) -> None:
        """Any length can be gone back to."""

    def forward(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None, num_logits_to_keep: int = 0
    ) -> np.ndarray:
        assert input_ids.dtype == np.int64 and input_ids.shape[0] == self.batch_size
        if self.length + input_ids.shape[1] > self.max_length:
            raise DogeExportError("the cache is full")
        self.runs.append(input_ids.shape)
        mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
        self._ids = np.concatenate([self._ids, input_ids], axis=1)
        self._mask = np.concatenate([self._mask, mask], axis=1)
        positions = np.maximum(np.cumsum(self._mask, axis=1) - 1, 0)
        hidden = np.tanh(self._embedding[self._ids] + self._position[positions])
        scores = hidden @ self._query @ hidden.transpose(0, 2, 1)
        visible = np.tri(self.length, dtype=bool)[None] & (self._mask[:, None, :] == 1)
        scores = np.where(visible, scores, np.float32(-1e30))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        logits = (hidden + weights @ hidden) @ self._head
        new = logits[:, -input_ids.shape[1] :]
        return new if num_logits_to_keep == 0 else new[:, -num_logits_to_keep:]

    def predict(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> list[Prediction]:
        return predictions(self.forward(input_ids, attention_mask, 1))


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE like Doge's, saved by transformers."""
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def prefix_space_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("prefix_space"), prefix_space=True)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    found = Tokenizer.from_folder(tokenizer_folder)
    assert found is not None
    return found


@pytest.fixture(scope="session")
def doge_tokenizer_folder() -> Path:
    if not SHARED_TOKENIZER.is_dir():
        pytest.skip("the published Doge tokenizer is not beside the repository")
    return SHARED_TOKENIZER


@pytest.fixture
def make_session(tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., Session]:
    """A session with a NumpyDecoder; keywords are its arguments, `config` is what generation_config.json holds."""

    def make(
        config: dict | None = None, with_tokenizer: bool = True, decoder: NumpyDecoder | None = None, **arguments: int
    ) -> Session:
        (tmp_path / "generation_config.json").write_text(json.dumps(config or {}))
        decoder = decoder or NumpyDecoder(tokenizer.backend.get_vocab_size(), **arguments)
        generation_config = GenerationConfig.from_folder(tmp_path)
        return Session(decoder, tokenizer if with_tokenizer else None, {}, generation_config, tmp_path)

    return make


@pytest.fixture
def numpy_decoder() -> type[NumpyDecoder]:
    return NumpyDecoder


@pytest.fixture
def features(task_export: Callable[..., Any]) -> Callable[..., tuple[Any, FeatureSession]]:
    """Gives transformers' model and our session of one export."""

    def open_both(**changes: Any) -> tuple[Any, FeatureSession]:
        model, _, folder = task_export("feature-extraction", **changes)
        return model, load(folder, threads=1, backend="graph")

    return open_both


@pytest.fixture
def classes(task_export: Callable[..., Any]) -> Callable[..., tuple[Any, ClassificationSession]]:
    """Gives transformers' classifier, of three labels unless told otherwise, and our session of one export."""

    def open_both(**changes: Any) -> tuple[Any, ClassificationSession]:
        model, _, folder = task_export("text-classification", **{"num_labels": 3} | changes)
        return model, load(folder, threads=1, backend="graph")

    return open_both


class Recorder:
    """Stands before a model and notes the shapes it is run with."""

    computes_by = "a recorder"

    def __init__(self, model: OneCall) -> None:
        self.model = model
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        self.shapes.append(input_ids.shape)
        return self.model(input_ids, attention_mask)


@pytest.fixture
def recorded() -> Callable[[Any], tuple[Any, list[tuple[int, ...]]]]:
    """Puts a `Recorder` into a session; gives the session and the shapes of its runs."""

    def wrap(session: Any) -> tuple[Any, list[tuple[int, ...]]]:
        session._model = Recorder(session._model)
        return session, session._model.shapes

    return wrap


def save_tokenizer(folder: Path, prefix_space: bool = False) -> Path:
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    backend.add_tokens([tokenizers.AddedToken("<tool>", normalized=False), "<🐕>"])  # added, not special
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder
