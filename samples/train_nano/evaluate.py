"""Evaluate trained models on text that the training has not seen: `python evaluate.py FOLDER...`."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import grammar
import nano
import tokenizer as nano_tokenizer
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedTokenizerBase

Forward = nano.Forward


@torch.no_grad()
def perplexity(forward: Forward, tokenizer: PreTrainedTokenizerBase, length: int = 256, rows: int = 64) -> float:
    """Compute the perplexity of the next token, over packed rows of held-out documents."""
    packed = nano_tokenizer.rows(tokenizer, grammar.stream(grammar.HELD_OUT_SEED), length)
    batch = torch.tensor(list(itertools.islice(packed, rows)))
    losses = [F.cross_entropy(forward(part)[:, :-1].flatten(0, 1), part[:, 1:].flatten()) for part in batch.split(16)]
    return math.exp(torch.stack(losses).mean().item())


@torch.no_grad()
def recall_accuracy(forward: Forward, tokenizer: PreTrainedTokenizerBase, facts: int, questions: int = 200) -> float:
    """Compute the share of held-out questions whose greedy answer is the expected one, to the last token.

    The greedy answer is the expected one exactly if each of its tokens, eos included, is the most probable after those
    before it, so a single forward pass decides, without generating.
    """
    right = 0
    for messages in grammar.questions(grammar.HELD_OUT_SEED, questions, facts):
        prompt = nano_tokenizer.chat(tokenizer, messages[:-1], answering=True)
        answer = tokenizer(messages[-1]["content"], add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        predicted = forward(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1].argmax(-1)
        right += predicted.tolist() == answer
    return right / questions


@torch.no_grad()
def greedy(forward: Forward, prompt: list[int], new_tokens: int, eos: int | None) -> list[int]:
    """Return the greedy continuation, computed without a cache; with `eos` None nothing ends it early."""
    ids = list(prompt)
    for _ in range(new_tokens):
        ids.append(int(forward(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == eos:
            break
    return ids[len(prompt) :]


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Decode ids to text, special tokens included."""
    return str(tokenizer.decode(ids))


def smallest_score_strength(model: nn.Module) -> float:
    """Return the smallest |A| over all layers and heads."""
    return min(weight.abs().min().item() for name, weight in model.named_parameters() if name.endswith(".A"))


STORIES = ["Once upon a time", "Tom was a brave little rabbit."]
CHATS = [
    ["Hey how are you doing?", "What can you do?"],
    ["Tom has a red ball. Mia has a blue kite. The key is in the box. What colour is Tom's ball?", "Where is the key?"],
    ["Ben has three apples. Lily gives Ben two apples. How many apples does Ben have now?"],
    ["Tell me a story about a fox."],
]


def report(folder: Path) -> str:
    """Return a report: metrics, then greedy stories and chats."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = nano.load(folder)
    forward = nano.forward_of(model)
    lines = [
        f"== {folder.name}",
        f"parameters           {sum(weight.numel() for weight in model.parameters()):,}",
        f"folder               {sum(file.stat().st_size for file in folder.iterdir()):,} bytes",
        f"held-out perplexity  {perplexity(forward, tokenizer):.3f}",
    ]
    for facts in (2, 4, 6, 8):
        lines.append(f"recall of {facts} facts    {recall_accuracy(forward, tokenizer, facts):.1%}")
    lines.append(f"smallest |A|         {smallest_score_strength(model):.3f}")
    for prompt in STORIES:
        text = decode(tokenizer, greedy(forward, tokenizer(prompt).input_ids, 240, None))
        lines += ["", f"> {prompt}", text]
    for turns in CHATS:
        messages: list[dict[str, str]] = []
        for turn in turns:
            messages.append({"role": "user", "content": turn})
            asked = nano_tokenizer.chat(tokenizer, messages, answering=True)
            answer = greedy(forward, asked, 150, tokenizer.eos_token_id)
            messages.append({"role": "assistant", "content": decode(tokenizer, answer[:-1])})
            lines += ["", f"user: {turn}", f"assistant: {messages[-1]['content']}"]
    return "\n".join(lines)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(report(Path(argument)))
