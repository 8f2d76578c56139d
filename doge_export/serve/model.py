"""The model behind a server: its session, and how requests become answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.runtime.feature_session import FeatureSession
from doge_export.runtime.generate import Row
from doge_export.runtime.loading import load
from doge_export.runtime.prediction import Prediction
from doge_export.runtime.prompts import need_tokenizer
from doge_export.runtime.session import Session
from doge_export.runtime.single_pass import SinglePassSession
from doge_export.runtime.task_session import TaskSession
from doge_export.serve.api_error import ApiError
from doge_export.serve.lanes import ForkLanes
from doge_export.serve.requests import Request
from doge_export.serve.scheduler import Look, Scheduler
from doge_export.serve.slots import Slots
from doge_export.serve.together import TogetherLanes


class ServedModel:
    """An opened folder with its scheduler.

    Args:
        folder: exported for text-generation or feature-extraction.
        parallel: answers that are written at the same time.
        max_queue: answers that wait.
        opening: keywords of `load`.
    """

    def __init__(self, folder: Path, parallel: int, max_queue: int, **opening: Any) -> None:
        self._parallel, self._max_queue = parallel, max_queue
        session = load(folder, **opening)
        if parallel > 1 and opening.get("threads") is None and not _shares_threads(session):
            # Each lane then computes in its own thread: more threads for one of them would only wait for the others'.
            session.close()
            session = load(folder, **opening | {"threads": 1})
        if not isinstance(session, (Session, FeatureSession)):
            raise DogeExportError(f"serve needs a folder for text-generation or feature-extraction, not {session.task}")
        self.session = session
        self.scheduler = None
        if isinstance(session, Session):
            decoder = session.decoder
            lanes = TogetherLanes(decoder, parallel) if decoder.reads_together else ForkLanes(decoder, parallel)
            self.scheduler = Scheduler(lanes, parallel, max_queue)
        self.slots = Slots(parallel, max_queue)

    @property
    def running(self) -> int:
        """Requests for vectors, or answers, that are being computed."""
        return self.slots.running if self.scheduler is None else self.scheduler.running

    @property
    def waiting(self) -> int:
        """Those that wait."""
        return self.slots.waiting if self.scheduler is None else self.scheduler.waiting

    def rows(self, request: Request) -> list[Row]:
        """Check a request and return its answers, those to the first prompt first."""
        session = self.session
        if not isinstance(session, Session):
            raise ApiError(400, "this model gives embeddings and writes no text", "model_not_supported", "model")
        count, most = len(request.prompts) * request.n, self._parallel + self._max_queue
        if count > most:
            raise ApiError(400, f"the request asks for {count} answers, expected {most} at most", "invalid_value")
        for (token,), _ in request.settings["sequence_bias"] or ():
            if token >= session.decoder.vocab_size:
                message = f"logit_bias has token id {token}: the ids end at {session.decoder.vocab_size - 1}"
                raise ApiError(400, message, "invalid_value", "logit_bias")
        rows: list[Row] = []
        for prompt in request.prompts:
            if request.is_chat:
                tokenizer = need_tokenizer(session.tokenizer)
                prompt = tokenizer.encode_chat(prompt, tools=request.tools, max_length=session.max_length)
            first = session.rows(prompt, **request.settings)
            if request.n > 1:
                first = session.rows([first[0].prompt_token_ids] * request.n, **request.settings)
            rows += first
        return rows

    def look(self, count: int) -> Look:
        """Return the reader of log-probabilities with the `count` likeliest tokens."""
        tokenizer = need_tokenizer(self.session.tokenizer)

        def entry(token: int, logprob: float) -> dict[str, Any]:
            text = tokenizer.decode([token])
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        def look(prediction: Prediction) -> Any:
            logits = prediction.logits().astype(np.float64)
            logprobs = logits - logits.max()
            logprobs -= np.log(np.exp(logprobs).sum())
            best = np.argsort(-logprobs, kind="stable")[:count]

            def record(token: int) -> dict[str, Any]:
                top = [entry(int(each), float(logprobs[each])) for each in best]
                return {**entry(token, float(logprobs[token])), "top_logprobs": top}

            return record

        return look

    def close(self) -> None:
        """End the scheduler and free the session."""
        if self.scheduler is not None:
            self.scheduler.close()
        self.session.close()


def _shares_threads(session: TaskSession) -> bool:
    """Return whether all lanes compute by the threads of one model: together, or one after another."""
    if isinstance(session, Session):
        return session.decoder.reads_together
    return isinstance(session, SinglePassSession) and session.is_native
