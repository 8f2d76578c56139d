"""Train doge-nano and doge-nano-moe from nothing: `python train.py dense|moe|all --out FOLDER`.

The first lesson is copying: random tokens repeated once, until the model can look up what followed a token earlier.
From stories alone it would take many times as long to learn that names and colours can be looked up.

Training is deterministic: text, initial weights and the order of rows come from fixed seeds, and the number of threads
is fixed. Another processor or torch release may round differently and give other, equally good weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import evaluate
import grammar
import nano
import tokenizer as nano_tokenizer
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DogeConfig, PreTrainedTokenizerBase

THREADS = 2


@dataclasses.dataclass(frozen=True)
class Stage:
    """A number of training steps, each on `rows` rows of `length` tokens."""

    steps: int
    rows: int
    length: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The stages (copying, then text in short rows, then in whole rows) and the hyperparameters of a training."""

    copying: Stage = Stage(150, 32, 64)
    short: Stage = Stage(700, 16, 128)
    whole: Stage = Stage(400, 8, 256)
    learning_rate: float = 2e-3
    warmup: int = 40
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0

    @property
    def steps(self) -> int:
        """Number of steps of all stages."""
        return self.copying.steps + self.short.steps + self.whole.steps

    def scaled(self, steps: int) -> Recipe:
        """Return the same recipe with about `steps` steps, in the same proportions, at least one of each stage."""

        def shorter(stage: Stage) -> Stage:
            return dataclasses.replace(stage, steps=max(1, stage.steps * steps // self.steps))

        return dataclasses.replace(
            self, copying=shorter(self.copying), short=shorter(self.short), whole=shorter(self.whole)
        )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then half a cosine down to zero."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


RECIPES = {"dense": Recipe(whole=Stage(500, 8, 256)), "moe": Recipe()}
TOKENIZER_DOCUMENTS = 4000
Lesson = tuple[Tensor, int]
"""Token ids [B, S], and the index of the first token to predict."""


def make_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Train the tokenizer of both models and write it into `folder`."""
    documents = grammar.documents(grammar.TRAINING_SEED, TOKENIZER_DOCUMENTS)
    return nano_tokenizer.save(nano_tokenizer.train(documents), folder)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make an AdamW optimizer without weight decay for vectors (norms, residual weights, A)."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [weight for weight in weights if weight.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def copy_lessons(stage: Stage, vocab_size: int, seed: int) -> Iterator[Lesson]:
    """Yield rows of random tokens and their repetition; the loss counts the repetition only."""
    generator = torch.Generator().manual_seed(seed)
    half = stage.length // 2
    for _ in range(stage.steps):
        said = torch.randint(3, vocab_size, (stage.rows, half), generator=generator)
        yield torch.cat([said, said], dim=1), half + 1


def text_lessons(stages: list[Stage], tokenizer: PreTrainedTokenizerBase) -> Iterator[Lesson]:
    """Yield rows of packed documents, each of which is seen once."""
    documents = grammar.stream(grammar.TRAINING_SEED)
    for stage in stages:
        rows = nano_tokenizer.rows(tokenizer, documents, stage.length)
        for _ in range(stage.steps):
            yield torch.tensor(list(itertools.islice(rows, stage.rows))), 1


def lesson_loss(forward: nano.Forward, lesson: Lesson) -> Tensor:
    """Compute the mean cross entropy of the tokens to predict."""
    batch, first = lesson
    return F.cross_entropy(forward(batch)[:, first - 1 : -1].flatten(0, 1), batch[:, first:].flatten())


def fit(model: nn.Module, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> list[float]:
    """Train a model in place; return the loss of each step."""
    forward, optimizer, losses = nano.forward_of(model), make_optimizer(model, recipe), []
    lessons = itertools.chain(
        copy_lessons(recipe.copying, len(tokenizer), recipe.seed),
        text_lessons([recipe.short, recipe.whole], tokenizer),
    )
    started = time.perf_counter(), time.process_time()
    for step, lesson in enumerate(lessons):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        loss = lesson_loss(forward, lesson)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 25 == 0:
            wall, processor = time.perf_counter() - started[0], time.process_time() - started[1]
            recent = sum(losses[-25:]) / 25
            right = (
                f"  recall {evaluate.recall_accuracy(forward, tokenizer, 3, 40):.0%}" if (step + 1) % 100 == 0 else ""
            )
            log(f"step {step + 1:5d}  loss {recent:.4f}  {wall:6.0f} s wall  {processor:6.0f} s processor{right}")
    return losses


def train(config: DogeConfig, recipe: Recipe, folder: Path) -> list[float]:
    """Train a model from scratch and write its checkpoint folder; return the loss of each step."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    tokenizer = make_tokenizer(folder)
    model = nano.build(config, recipe.seed)
    losses = fit(model, tokenizer, recipe)
    nano.save(model, config, folder)
    return losses


def log(message: str) -> None:
    """Print a progress line to stderr; stdout has the results."""
    print(message, file=sys.stderr, flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["dense", "moe", "all"])
    parser.add_argument("--out", type=Path, required=True, help="folder for doge-nano/ and doge-nano-moe/")
    parser.add_argument("--steps", type=int, help="fewer steps than the recipe: a quick look")
    arguments = parser.parse_args()
    for kind in ["dense", "moe"] if arguments.kind == "all" else [arguments.kind]:
        recipe = RECIPES[kind].scaled(arguments.steps) if arguments.steps else RECIPES[kind]
        folder = arguments.out / nano.NAMES[kind]
        train(nano.config(kind), recipe, folder)
        print(evaluate.report(folder), flush=True)


if __name__ == "__main__":
    main()
