"""Session of a folder exported for text-generation: answers, streams and chats."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from doge_export.errors import DogeExportError, TooLong
from doge_export.package.manifest import Manifest
from doge_export.runtime.chat import Chat, Overflow
from doge_export.runtime.context import Context
from doge_export.runtime.generate import Generation, Row, Stream, run
from doge_export.runtime.generation_config import GenerationConfig, is_integer, plain
from doge_export.runtime.logits_processors import Processor
from doge_export.runtime.prompts import id_matrix, mask_matrix, need_tokenizer, prompt_rows
from doge_export.runtime.state import State, as_ids, graph_digest, read_state, write_state
from doge_export.runtime.structured import follow, grammar_of, schema_of
from doge_export.runtime.task_session import TaskSession
from doge_export.runtime.tokenizer import Tokenizer
from doge_export.runtime.turns import Turns

if TYPE_CHECKING:
    from doge_export.runtime.decoders.decoder import Decoder


class Session(TaskSession):
    """A folder exported for text-generation; it writes one answer, or one batch of answers, at a time.

    Threads may share a session: a call waits until the answer before it has ended. `fork` gives a session that answers
    at the same time.

    Attributes:
        decoder: the network and its cache; use it directly in the body of `exclusive` only.
        generation_config: settings of an answer that a call does not give.
    """

    task = "text-generation"

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer | None,
        manifest: Manifest,
        generation_config: GenerationConfig,
        folder: Path,
        wait: float | None = None,
        graph: str | None = None,
    ) -> None:
        super().__init__(folder, manifest, tokenizer)
        self.decoder = decoder
        self._graph = graph
        eos = None if tokenizer is None else tokenizer.token_id("eos_token")
        if not generation_config.names_eos and not generation_config.eos_token_ids and eos is not None:
            generation_config = generation_config.override(eos_token_id=eos)
        self.generation_config = generation_config
        self._context = Context(decoder)
        self._turns = Turns(wait)

    @property
    def graph(self) -> str:
        """Name of the graph in the folder's manifest."""
        return self._graph or next(iter(self.manifest.graphs))

    @property
    def max_length(self) -> int:
        """Most tokens of a row, prompt and answer together."""
        return self.decoder.max_length

    @property
    def wait(self) -> float | None:
        """Most seconds that a call waits for another one's answer to end; None without end, 0 not at all."""
        return self._turns.wait

    def fork(self) -> Self:
        """Return another session on the same graph, with a cache of its own, that answers at the same time as this one.

        The weights are shared, so that it costs the memory of its cache alone.
        """
        return type(self)(
            self.decoder.fork(),
            self.tokenizer,
            self.manifest,
            self.generation_config,
            self.folder,
            self.wait,
            self._graph,
        )

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other answers out of the body, which uses `decoder` directly.

        Raises:
            SessionBusy: as for `generate`.
        """
        with self._turns.alone():
            yield

    def generate(
        self,
        prompt: str | Sequence[Any] | np.ndarray,
        *,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        eos_token_id: int | Sequence[int] | np.ndarray | None = None,
        **settings: Any,
    ) -> Generation | list[Generation]:
        """Write the answer to a prompt, or the answers to a batch of prompts.

        Settings that are None come from the folder's generation_config.json. A temperature, top_k, top_p or min_p turns
        sampling on unless `do_sample` is given.

        Args:
            prompt: a text, a conversation (list of {"role", "content"}) or token ids; a list of those, or an array
                [B, S], is a batch. A text that spells special tokens contains them, as in transformers; inside a
                conversation they stay text.
            max_new_tokens: most tokens of an answer.
            do_sample: draw tokens at random; False takes the likeliest one.
            temperature: divisor of the logits; 0 is greedy.
            top_k: number of likeliest tokens to draw from; 0 for all.
            top_p: probability that the likeliest tokens to draw from add up to.
            min_p: least probability of a token, as a factor of the largest one.
            repetition_penalty: above 1 makes tokens seen before less likely.
            seed: makes sampling repeatable.
            stop: text, or several, before which an answer ends.
            eos_token_id: id, or several, that end an answer; -1 for none.
            settings: other fields of generation_config.json, by transformers' names (`no_repeat_ngram_size`,
                `suppress_tokens`, ...), see `generation_fields.FIELDS`; and `defaults`, a GenerationConfig to take in
                the place of the folder's; `json_schema`, a JSON schema that the answer follows (the extra
                `structured`), or `response_format`, the same as other servers take it.

        Returns:
            The answer, or a list with the answer to each prompt of a batch.

        Raises:
            DogeExportError: a prompt is empty or too long, or an id or a setting is out of range.
            SessionBusy: another answer is being written, and `wait` seconds have passed; or it is a stream that this
                thread itself left open.
            RunFailed: the model gives logits that are not finite.
        """
        rows, is_batch = self._rows(
            prompt,
            seed=seed,
            stop=stop,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            eos_token_id=eos_token_id,
            **settings,
        )
        with self._turns.taken():
            for _ in run(self._context, rows):
                pass
        answers = [row.generation() for row in rows]
        return answers if is_batch else answers[0]

    def stream(self, prompt: str | Sequence[Any] | np.ndarray, **settings: Any) -> Stream:
        """Write the answer to one prompt piece by piece; the stream's `generation` is the answer so far.

        The stream begins with its first piece, and other calls wait from then on until it is exhausted or closed.

        Args:
            prompt: a single prompt, see `generate`.
            settings: see `generate`.

        Raises:
            DogeExportError: as for `generate`; or the prompt is a batch, or the folder has no tokenizer.
        """
        rows, is_batch = self._rows(prompt, **settings)
        need_tokenizer(self.tokenizer)
        if is_batch:
            raise DogeExportError("a batch cannot be streamed: give one prompt, or use generate")
        return Stream(self._turns, self._context, rows[0])

    def stream_reusing(self, token_ids: list[int], **settings: Any) -> Stream:
        """Stream an answer as `stream` does, without reading again the first tokens that the cache holds; for chats."""
        rows, _ = self._rows(token_ids, **settings)
        return Stream(self._turns, self._context, rows[0], reuse=True)

    def rows(self, prompt: str | Sequence[Any] | np.ndarray, **settings: Any) -> list[Row]:
        """Check a request as `generate` does, and return its answers before their first token, for another scheduler.

        Args:
            prompt: a prompt or a batch of prompts, see `generate`.
            settings: see `generate`.

        Raises:
            DogeExportError: as for `generate`.
        """
        return self._rows(prompt, **settings)[0]

    def close(self) -> None:
        """Close the decoder, once no answer is being computed. A stream that is open cannot go on."""
        with self._turns.ended():
            self.decoder.close()

    def reset(self) -> None:
        """Empty the cache before a direct use of `decoder`; waits for other answers, except in `exclusive`."""
        with contextlib.nullcontext() if self._turns.is_alone else self._turns.taken():
            self._context.clear()

    def chat(self, system: str | None = None, context_overflow: Overflow = "stop") -> Chat:
        """Start a conversation in several turns; see `Chat`."""
        return Chat(self, system, context_overflow)

    def resume(self, file: str | Path, context_overflow: Overflow = "stop") -> Chat:
        """Load a state that `Chat.save` wrote, and return its conversation, which goes on without reading it again.

        Raises:
            DogeExportError: as for `load_state`; or the state holds no conversation.
        """
        state = self._state_of(Path(file))
        chat = Chat.of(self, state.conversation, context_overflow)
        self._restore(state)
        return chat

    def save(self, file: str | Path, conversation: Mapping[str, Any] | None = None) -> None:
        """Write what the session has read, as a file that `load_state` takes, in another process too.

        Args:
            file: path of the safetensors file.
            conversation: JSON values to keep with it; `Chat.save` gives its messages.

        Raises:
            DogeExportError: there is nothing to save: no token was read, several rows were, or a prompt had to be read
                whole; or the backend has no state to save.
            SessionBusy: as for `generate`.
        """
        with self._turns.taken():
            ids = np.array(self._context.token_ids, np.int32)
            if not len(ids):
                raise DogeExportError(
                    "there is no state to save: a session keeps that of one prompt and its answer, read in pieces"
                )
            cache = self.decoder.state()
        form = self.decoder.state_form or ""
        write_state(Path(file), State(self._digest(), form, ids, cache, conversation or {}))

    def load_state(self, file: str | Path) -> list[int]:
        """Set the session to a state that `save` wrote, and return the ids that had been read.

        `stream_reusing` goes on from there: with these ids and others behind them it reads the others alone.

        Raises:
            DogeExportError: the file is damaged, or was written by a session of another graph or backend.
            SessionBusy: as for `generate`.
        """
        state = self._state_of(Path(file))
        self._restore(state)
        return state.token_ids.tolist()

    def _restore(self, state: State) -> None:
        ids = as_ids(state.token_ids, self.decoder.vocab_size, self.max_length)
        with self._turns.taken():
            self._context.restore(ids, state.cache)

    def _state_of(self, file: Path) -> State:
        """Read a state that this session can take."""
        state = read_state(file)
        if state.graph != self._digest():
            raise DogeExportError(f"{file} is of another model, precision or export: load the folder that it is of")
        if state.form != self.decoder.state_form:
            raise DogeExportError(
                f"{file} was saved where {state.form!r} computed, and {self.decoder.state_form!r} computes here: "
                f"load the folder with the backend {state.form.partition(' ')[0].rstrip(',')} and the same window"
            )
        return state

    def _digest(self) -> str:
        return graph_digest(self.manifest, self.graph)

    def logits(self, input_ids: Any, attention_mask: Any = None, chunks: Sequence[int] | None = None) -> np.ndarray:
        """Compute the logits of every token.

        Args:
            input_ids: token ids [S] or [B, S].
            attention_mask: the same shape, 0 for padding, which must be on the left; None without padding.
            chunks: lengths that add up to S, to read the tokens in these pieces instead of at once.

        Returns:
            float32 [B, S, V], as the graph gives them: not finite where it gives such.

        Raises:
            DogeExportError: an argument is of another shape or out of range, or there are more than max_length tokens.
            SessionBusy: as for `generate`.
        """
        ids = id_matrix(input_ids, self.decoder.vocab_size)
        mask = mask_matrix(attention_mask, ids.shape)
        batch_size, length = ids.shape
        self._check_length(length)
        chunks = [length] if chunks is None else plain(chunks)
        are_lengths = isinstance(chunks, Sequence) and all(is_integer(chunk) and chunk > 0 for chunk in chunks)
        if not are_lengths or sum(chunks) != length:
            raise DogeExportError(
                f"chunks is {chunks!r}, expected a list of positive integers that add up to the {length} tokens given"
            )
        logits, start = [], 0
        with self._turns.taken():
            self._context.clear(batch_size)
            for chunk in chunks:
                piece = slice(start, start + chunk)
                logits.append(self.decoder.forward(ids[:, piece], None if mask is None else mask[:, piece], 0))
                start += chunk
        return logits[0] if len(logits) == 1 else np.concatenate(logits, axis=1)

    def _rows(
        self,
        prompt: Any,
        *,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        defaults: GenerationConfig | None = None,
        json_schema: Any = None,
        response_format: Any = None,
        **settings: Any,
    ) -> tuple[list[Row], bool]:
        """Check a request and return its rows, and True for a batch; the decoder does not run yet."""
        prompts, is_batch = prompt_rows(prompt, self.tokenizer, self.decoder.vocab_size, self.max_length)
        config = (defaults or self.generation_config).override(**settings)
        config.check_ids(self.decoder.vocab_size)
        config, stops = self._stops(config, config.stop_strings if stop is None else stop)
        if seed is not None and (not is_integer(seed) or seed < 0):
            raise DogeExportError(f"seed is {seed!r}, expected 0 or more")
        longest = max(map(len, prompts))
        max_new_tokens = self._max_new_tokens(longest, config)
        schema = schema_of(json_schema, response_format)
        grammar = None if schema is None else grammar_of(schema)

        def last(ids: list[int]) -> list[Processor]:
            if grammar is None:
                return []
            tokenizer = need_tokenizer(self.tokenizer)
            return [follow(grammar, tokenizer, config.eos_token_ids, self.decoder.vocab_size, len(ids))]

        seeds = np.random.SeedSequence(seed).spawn(len(prompts))
        rows = [
            Row(ids, config, max_new_tokens, row_seed, self.tokenizer, stops, longest - len(ids), last(ids))
            for ids, row_seed in zip(prompts, seeds, strict=True)
        ]
        return rows, is_batch

    def _stops(self, config: GenerationConfig, stop: str | Sequence[str] | None) -> tuple[GenerationConfig, list[str]]:
        """Separate stop strings from special tokens, which never show in the text and become eos tokens instead."""
        stop = plain(stop)
        if stop is None or (isinstance(stop, Collection) and not stop):
            return config, []
        stops = list(stop) if isinstance(stop, Collection) and not isinstance(stop, str) else [stop]
        if not all(isinstance(text, str) and text for text in stops):
            raise DogeExportError(f"stop is {stop!r}, expected a text or a list of texts, none of them empty")
        if any("\ud800" <= character <= "\udfff" for text in stops for character in text):
            raise DogeExportError(f"stop is {stop!a}, which is not Unicode text: it has a lone surrogate")
        tokenizer = need_tokenizer(self.tokenizer)
        special = {text: tokenizer.backend.token_to_id(text) for text in stops}
        special = {text: token_id for text, token_id in special.items() if token_id in tokenizer.special_ids}
        config = config.override(eos_token_id=[*config.eos_token_ids, *special.values()])
        return config, [text for text in stops if text not in special]

    def _max_new_tokens(self, prompt_length: int, config: GenerationConfig) -> int:
        self._check_length(prompt_length)
        room = self.max_length - prompt_length
        if config.max_new_tokens is not None:
            wanted = config.max_new_tokens
        else:
            wanted = (config.max_length or self.max_length) - prompt_length
        if min(room, wanted) < 1:
            raise TooLong(
                f"the prompt has {prompt_length} tokens and prompt and answer may have "
                f"{prompt_length + min(room, wanted)} together: shorten the prompt"
            )
        return min(room, wanted)

    def _check_length(self, length: int) -> None:
        if length > self.max_length:
            raise TooLong(
                f"the prompt has {length} tokens and this export holds {self.max_length}: "
                "shorten it, or export again with a larger --max-length"
            )
