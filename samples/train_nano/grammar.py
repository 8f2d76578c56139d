"""Endless, reproducible text: `documents(seed, n)` gives the same n documents for the same seed, anywhere.

Training draws from even seeds and evaluation from odd ones, so that the two never share a stream.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import dialogues
import stories
from dialogues import Message

Document = str | list[Message]
"""A story, or the messages of a dialogue."""

TRAINING_SEED = 0
HELD_OUT_SEED = 1


def document(rng: random.Random) -> Document:
    """Three stories for seven dialogues: stories are longer, so that the tokens are about even."""
    if rng.random() < 0.3:
        return stories.story(stories.scene(rng), rng.randint(1, 5))
    return dialogues.dialogue(rng)


def stream(seed: int) -> Iterator[Document]:
    """Documents without end."""
    rng = random.Random(seed)
    while True:
        yield document(rng)


def documents(seed: int, n: int) -> list[Document]:
    """The first `n` documents of stream `seed`."""
    return list(itertools.islice(stream(seed), n))


def questions(seed: int, n: int, facts: int) -> list[list[Message]]:
    """`n` dialogues of one question each about `facts` facts; the last message is the answer expected."""
    rng = random.Random(seed)
    found = []
    for _ in range(n):
        told = dialogues.facts(rng, facts)
        question, answer = rng.choice(rng.choice(told).questions)
        text = " ".join(fact.sentence for fact in told)
        found.append(dialogues.messages([(f"{text} {question}", answer)]))
    return found
