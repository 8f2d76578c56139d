"""Texts to calibrate and to judge quantisation with: written by the model itself, or given by the user.

A float32 session answers prompts with sampling. Calibration and evaluation take different prompts and seeds, so that
no file is judged on the text it was calibrated with. A folder without a tokenizer is given random token ids.

A graph is asked for more than short texts: `of_all_lengths` joins them, as training joins documents, to texts as long
as the model was trained on and as the export allows. That costs no generation.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.package.manifest import UNLIMITED, Manifest
from doge_export.paths import read_beginning
from doge_export.runtime.generation_config import GenerationConfig
from doge_export.runtime.long_text import encoded_stretches
from doge_export.runtime.prompts import need_tokenizer
from doge_export.runtime.session import Session
from doge_export.runtime.task_session import TaskSession
from doge_export.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from doge_export.quantization.request import QuantizationRequest

Purpose = Literal["calibration", "evaluation"]

LENGTH = 192
"""The most tokens of a text that is not joined from others."""
LONGEST = 4096
"""The most tokens of a joined text: a graph reads it in one piece, whose attention takes memory by its square."""
WINDOWS = 8
"""Windows, of keep_window_size tokens each, that an unlimited folder is judged by: it has no length of its own."""
TOKENS = {"calibration": 4096, "evaluation": 4096}
MOST_OF_FILE = {"tokens": 2**16, "bytes": 2**22}
"""How much of a file is taken at most, from its beginning."""
LEAST = 32
"""Tokens that a file has at least."""
ROUNDS = 4
"""How often the prompts are answered at most, to reach `TOKENS`."""

STORIES = (
    "Once upon a time", "One day", "It was a cold morning", "Long ago, in a small village",
    "The sun was shining and", "A little girl named", "There was once a dog who", "In the middle of the night",
    "The old man looked at", "Yesterday I went to", "My best friend is", "Deep in the forest",
    "The most important thing about water is", "Computers are", "The history of", "To make a good soup",
)  # fmt: skip
MESSAGES = (
    "Hey how are you doing?", "Hello! Who are you?", "What does a cat say?", "Tell me a story about a dog.",
    "What is the capital of France?", "What color is the sky?", "Can you tell me a joke?", "Where do you live?",
    "How do plants grow?", "What do cows eat?", "Write a short poem about the sea.", "Thank you!",
    "How many legs does a spider have?", "Good night!", "Why is the moon bright?", "What is your favourite animal?",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts as token ids.

    Attributes:
        origin: where they come from, in words for reports.
        rows: token ids of each text, int64 [S].
        beginning: tokens at the head of every row that a text joined from several has only once.
    """

    origin: str
    rows: tuple[np.ndarray, ...]
    beginning: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens all rows have."""
        return sum(map(len, self.rows))

    def joined(self, length: int) -> Texts:
        """Return texts of exactly `length` tokens, joined from these: each begins where one of these does.

        A text that was cut at the end of one begins the next. Too few tokens for one text are repeated.
        """
        rows: list[np.ndarray] = []
        start = 0
        while not rows or start < len(self.rows):
            parts, tokens, end = [self.rows[start]], len(self.rows[start]), start + 1
            while tokens < length and (end < len(self.rows) or not rows):
                part = self.rows[end % len(self.rows)][self.beginning :]
                parts.append(part if len(part) else self.rows[end % len(self.rows)])
                tokens, end = tokens + len(parts[-1]), end + 1
            if tokens < length:
                break
            rows.append(np.concatenate(parts)[:length])
            start = max(start + 1, end - 1 if tokens > length else end)
        return Texts(self.origin, tuple(rows), self.beginning)


def of_all_lengths(texts: Texts, manifest: Manifest) -> list[Texts]:
    """Return the texts, and joined ones of the trained length and of max_length, as far as these are longer.

    Where max_length is unlimited, the larger of the trained length and `WINDOWS` windows takes its place: farther on a
    text says nothing new of a cache that holds one window.

    Args:
        texts: of at most `LENGTH` tokens.
        manifest: of the folder; joined texts have at most `LONGEST` tokens.
    """
    longest, trained = manifest.max_length, manifest.architecture.get("max_position_embeddings") or manifest.max_length
    if longest == UNLIMITED:
        longest = max(trained, WINDOWS * (manifest.architecture.get("keep_window_size") or 0))
    lengths = {min(length, longest, LONGEST) for length in (trained, longest)}
    return [texts, *(texts.joined(length) for length in sorted(lengths) if length > LENGTH)]


def texts_for(purpose: Purpose, session: TaskSession, file: Path | None = None) -> Texts:
    """Return texts of at most `LENGTH` tokens a row, some thousand in all.

    Args:
        purpose: selects prompts and seeds.
        session: the float32 model.
        file: UTF-8 text to take them from instead, as far as `MOST_OF_FILE` goes.

    Raises:
        DogeExportError: the file cannot be read or is too short.
    """
    length = min(LENGTH, session.max_length)
    if file is not None:
        return _from_file(session, file, length)
    if session.tokenizer is None:
        return _random(purpose, session, length)
    if isinstance(session, Session):
        return _generated(purpose, session, length)
    rows = [session.tokenizer.encode_cut(text, length) for text in _share(purpose, STORIES + MESSAGES)]
    return Texts("prompts", tuple(np.array(row, np.int64) for row in rows if row))


def _share(purpose: Purpose, prompts: tuple[str, ...]) -> tuple[str, ...]:
    return prompts[::2] if purpose == "calibration" else prompts[1::2]


def _generated(purpose: Purpose, session: Session, length: int) -> Texts:
    tokenizer = need_tokenizer(session.tokenizer)
    prompts: list[Any] = list(_share(purpose, STORIES))
    if tokenizer.has_chat_template:
        prompts += [[{"role": "user", "content": message}] for message in _share(purpose, MESSAGES)]
    ids = [tokenizer.encode(prompt) if isinstance(prompt, str) else tokenizer.encode_chat(prompt) for prompt in prompts]
    ids = [row for row in ids if 0 < len(row) < length]
    if not ids:
        return _random(purpose, session, length)
    seed = 0 if purpose == "calibration" else 1000
    rows: list[np.ndarray] = []
    for turn in range(ROUNDS):
        if sum(map(len, rows)) >= TOKENS[purpose]:
            break
        # One by one: tokens of a batch may be routed by other rows, and each answer goes on as long as there is room.
        for number, row in enumerate(ids):
            answer = session.generate(
                row,
                max_new_tokens=length - len(row),
                do_sample=True,
                top_k=0,
                defaults=GenerationConfig(eos_token_ids=session.generation_config.eos_token_ids),
                seed=seed + turn * len(ids) + number,
            )
            assert not isinstance(answer, list)
            rows.append(np.array([*row, *answer.token_ids], np.int64))
            if sum(map(len, rows)) >= TOKENS[purpose]:
                break
    return Texts("generated by the float32 model", tuple(rows))


def _random(purpose: Purpose, session: TaskSession, length: int) -> Texts:
    generator = np.random.default_rng(0 if purpose == "calibration" else 1000)
    vocabulary = int(session.manifest.architecture["vocab_size"])
    count = max(1, TOKENS[purpose] // 2 // length)
    return Texts("random token ids", tuple(generator.integers(0, vocabulary, (count, length), dtype=np.int64)))


def _from_file(session: TaskSession, file: Path, length: int) -> Texts:
    tokenizer = need_tokenizer(session.tokenizer)
    # Every row begins with the tokens that the tokenizer puts before a text, as almost all training texts do.
    ids, beginning = ids_of_file(tokenizer, file), tokenizer.encode("")[:1]
    step = max(1, length - len(beginning))
    rows = [beginning + ids[start : start + step] for start in range(0, len(ids), step)]
    return Texts(file.name, tuple(np.array(row, np.int64) for row in rows), len(beginning))


def ids_of_file(tokenizer: Tokenizer, file: Path) -> list[int]:
    """Return the ids of a text file, or of its beginning where it is longer than `MOST_OF_FILE`.

    Raises:
        DogeExportError: the file cannot be read or is too short.
    """
    ids: list[int] = []
    for stretch, _ in encoded_stretches(tokenizer, read_beginning(file, MOST_OF_FILE["bytes"])):
        ids += stretch.tolist()
        if len(ids) >= MOST_OF_FILE["tokens"]:
            break
    if len(ids) < LEAST:
        raise DogeExportError(
            f"{file} has {len(ids)} tokens, expected at least {LEAST} to measure by; give a longer text"
        )
    return ids[: MOST_OF_FILE["tokens"]]


def check_files(request: QuantizationRequest, tokenizer: Tokenizer | None) -> None:
    """Refuse texts of a request that `texts_for` would refuse later, before any work.

    Raises:
        DogeExportError: there is a file and no tokenizer, or the file cannot be read or is too short.
    """
    for file in (request.calibration, request.eval_text):
        if file is not None:
            ids_of_file(need_tokenizer(tokenizer), file)
