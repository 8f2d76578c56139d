"""The scheduler's waits: for requests that are coming, and for nobody when it ends."""

from __future__ import annotations

import asyncio
import time

import pytest

from doge_export.serve.scheduler import Scheduler, Task


class Lanes:
    """Lanes that note how many prompts each step reads, and answer with an error."""

    def __init__(self):
        self.begun, self.steps = [], []

    is_full = False

    def begin(self, token_ids):
        self.begun.append(token_ids)
        return len(self.begun) - 1

    def step(self, tokens):
        new, self.begun = self.begun, []
        self.steps.append(len(new))
        return dict.fromkeys(range(len(new)), RuntimeError("no answer"))

    def leave(self, lane):
        pass

    def close(self):
        pass


class Prompt:
    prompt_token_ids, token_ids = (1, 2), ()


@pytest.fixture
def scheduler(monkeypatch):
    monkeypatch.setattr("doge_export.serve.scheduler._PATIENCE", 5.0)
    made = Scheduler(Lanes(), 4, 4)
    yield made
    made.close()


async def ended(scheduler, count, submit):
    """The events of `count` tasks, which `submit` submits."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue()
    submit([Task(Prompt(), loop, events.put_nowait) for _ in range(count)])
    return [await asyncio.wait_for(events.get(), 10) for _ in range(count)]


def test_requests_that_come_together_are_read_in_one_step(scheduler):
    """The first waits until the second is there."""

    async def ask():
        with scheduler.request_coming():
            first = asyncio.create_task(ended(scheduler, 1, scheduler.submit))
            await asyncio.sleep(0.05)
            scheduler.submit([Task(Prompt(), asyncio.get_running_loop(), lambda event: None)])
        await first

    asyncio.run(ask())
    assert scheduler._lanes.steps == [2]


def test_one_that_is_refused_keeps_nobody_waiting(scheduler):
    with pytest.raises(ValueError, match="refused"), scheduler.request_coming():
        raise ValueError("refused")
    began = time.monotonic()
    asyncio.run(ended(scheduler, 1, scheduler.submit))
    assert time.monotonic() - began < 2


def test_a_slow_one_is_waited_for_once(scheduler, monkeypatch):
    monkeypatch.setattr("doge_export.serve.scheduler._PATIENCE", 0.2)
    with scheduler.request_coming():
        asyncio.run(ended(scheduler, 1, scheduler.submit))
        began = time.monotonic()
        asyncio.run(ended(scheduler, 1, scheduler.submit))
        assert time.monotonic() - began < 0.15


def test_closing_waits_for_no_request(scheduler):
    with scheduler.request_coming():
        began = time.monotonic()
        scheduler.close()
        assert time.monotonic() - began < 2
