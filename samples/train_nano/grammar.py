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
    """Draw a document: 3 in 10 are stories, whose greater length gives both kinds about as many tokens."""
    if rng.random() < 0.3:
        return stories.story(stories.scene(rng), rng.randint(1, 5))
    return dialogues.dialogue(rng)


def stream(seed: int) -> Iterator[Document]:
    """Yield documents without end."""
    rng = random.Random(seed)
    while True:
        yield document(rng)


def documents(seed: int, n: int) -> list[Document]:
    """Return the first `n` documents of stream `seed`."""
    return list(itertools.islice(stream(seed), n))


def questions(seed: int, n: int, facts: int) -> list[list[Message]]:
    """Return `n` dialogues of one question each about `facts` facts; the last message is the expected answer."""
    rng = random.Random(seed)
    found = []
    for _ in range(n):
        told = dialogues.facts(rng, facts)
        question, answer = rng.choice(rng.choice(told).questions)
        text = " ".join(fact.sentence for fact in told)
        found.append(dialogues.messages([(f"{text} {question}", answer)]))
    return found
