from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoTokenizer, DogeForCausalLM

import doge_export
from doge_export.assets import bundled
from doge_export.cli import main


@pytest.fixture(scope="session")
def reference() -> Callable[[str], tuple]:
    """transformers' model and tokenizer of a bundled checkpoint."""
    loaded: dict[str, tuple] = {}

    def load(name: str) -> tuple:
        if name not in loaded:
            folder = bundled(name)
            model = DogeForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
            loaded[name] = model, AutoTokenizer.from_pretrained(folder)
        return loaded[name]

    return load


@pytest.fixture(scope="session")
def session_of(nano_folder, nano_moe_folder) -> Callable[[str], doge_export.Session]:
    """The session of a bundled checkpoint's export."""
    folders = {"doge-nano": nano_folder, "doge-nano-moe": nano_moe_folder}
    return lambda name: doge_export.load(folders[name], threads=1)


@pytest.fixture
def reads(monkeypatch) -> Callable[[object], list[tuple[int, int]]]:
    """Watches a session: (tokens read, logits kept) of every run of its decoder from then on."""

    def watch(session) -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        forward = session.decoder.forward

        def noted(input_ids, attention_mask=None, num_logits_to_keep=0):
            logits = forward(input_ids, attention_mask, num_logits_to_keep)
            seen.append((input_ids.shape[1], logits.shape[1]))
            return logits

        monkeypatch.setattr(session.decoder, "forward", noted)
        return seen

    return watch


@pytest.fixture
def run():
    """Runs a command line in this process. Bugs raise; `.stdout`, `.stderr` and `.exit_code` say the rest."""

    def invoke(*arguments: object):
        given = [str(argument) for argument in arguments]
        return CliRunner().invoke(main, given, catch_exceptions=False, prog_name="doge-export")

    return invoke
