"""Multiple choice against a plain restatement of lm-evaluation-harness over transformers' full logits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import doge_export
from doge_export.assets import BUNDLED
from doge_export.errors import DogeExportError
from doge_export.evaluation.choices import Answer, ChoicesScore, encode_pair
from doge_export.evaluation.questions import Question

MAX_LENGTH = 256
ITEMS = [
    {"question": "Once upon a time, there was a", "choices": ["fox", "small girl named Mia", "é"], "answer": 0},
    {"question": "Tom has a red ", "choices": ["ball", "ball.", "blue"], "answer": "ball."},  # a space at its end
    {"question": "", "choices": ["Once upon a time", "The end"], "answer": 1},
    {
        "context": "Mia has a cat.",
        "question": "Mia went to the park with her \n",
        "choices": ["cat", "dog"],
        "answer": 0,
    },
    {"question": "A. cat\nB. dog\nAnswer:", "choices": ["A", "B"], "answer": "B", "subject": "animals"},
    {"question": "<|begin_of_text|>The cat", "choices": ["ran home", "sat"], "answer": 1},
    {"question": "one two three. " * 90 + "four", "choices": ["five", "eleven and twelve"], "answer": 0},  # too long
]


def lm_eval_pair(tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """loglikelihood and _encode_pair of lm-evaluation-harness 0.4, with the tokenizer's own special tokens."""

    def encode(text):
        return tokenizer.encode(text, **({"add_special_tokens": False} if text.startswith(tokenizer.bos_token) else {}))

    if context == "":
        return [tokenizer.bos_token_id], tokenizer.encode(continuation, add_special_tokens=False)
    n_spaces = len(context) - len(context.rstrip())
    if n_spaces > 0:
        continuation = context[-n_spaces:] + continuation
        context = context[:-n_spaces]
    whole, context_ids = encode(context + continuation), encode(context)
    return context_ids, whole[len(context_ids) :]


@torch.no_grad()
def lm_eval(model, tokenizer, item: dict, max_length: int = MAX_LENGTH) -> tuple[list[float], list[bool]]:
    """_loglikelihood_tokens with a batch of one: log-likelihood and greediness of each choice."""
    prompt = item["question"]
    if "context" in item:
        prompt = item["context"] + "\n\n" + prompt
    sums, greedy = [], []
    for choice in item["choices"]:
        context, continuation = lm_eval_pair(tokenizer, prompt, " " + choice)
        ids = torch.tensor([(context + continuation)[-(max_length + 1) :][:-1]])
        logits = model(ids).logits[0].double().log_softmax(-1)[-len(continuation) :]
        targets = torch.tensor(continuation)
        sums.append(float(logits.gather(-1, targets[:, None]).sum()))
        greedy.append(bool((logits.argmax(-1) == targets).all()))
    return sums, greedy


@pytest.mark.parametrize("name", BUNDLED)
def test_equals_lm_evaluation_harness_over_transformers(name, reference, session_of):
    model, tokenizer = reference(name)
    score = doge_export.evaluate_choices(session_of(name), ITEMS)
    right = {"acc": [], "acc_norm": [], "acc_bytes": [], "exact_match": []}
    for item, answer in zip(ITEMS, score.answers, strict=True):
        sums, greedy = lm_eval(model, tokenizer, item)
        assert answer.log_likelihoods == pytest.approx(sums, rel=1e-4, abs=1e-4)
        assert list(answer.is_greedy) == greedy
        choices, gold = item["choices"], item["answer"]
        gold = gold if isinstance(gold, int) else choices.index(gold)
        right["acc"].append(np.argmax(sums) == gold)
        right["acc_norm"].append(np.argmax(np.array(sums) / [len(choice) for choice in choices]) == gold)
        right["acc_bytes"].append(np.argmax(np.array(sums) / [len(choice.encode()) for choice in choices]) == gold)
        right["exact_match"].append(greedy[gold])
    for measure, hits in right.items():
        mean = sum(hits) / len(hits)
        stderr = (sum((hit - mean) ** 2 for hit in hits) / (len(hits) - 1)) ** 0.5 / len(hits) ** 0.5
        assert score.measures[measure] == pytest.approx({"value": mean, "stderr": stderr})
    assert [answer.truncated for answer in score.answers] == [False] * 6 + [True]


@pytest.mark.parametrize("item", ITEMS)
def test_pairs_are_split_as_lm_evaluation_harness_splits_them(item, reference, session_of):
    _, tokenizer = reference("doge-nano")
    for choice in item["choices"]:
        pair = encode_pair(session_of("doge-nano").tokenizer, item["question"], " " + choice)
        assert pair == lm_eval_pair(tokenizer, item["question"], " " + choice)


def test_spaces_of_a_blank_prompt_go_to_the_choice(session_of):
    tokenizer = session_of("doge-nano").tokenizer
    assert encode_pair(tokenizer, " ", " cat") == ([0], tokenizer.encode("  cat", add_special_tokens=False))


def test_what_questions_share_is_read_once(session_of, reads):
    session = session_of("doge-nano")
    prompt = "One day, the fox found a red ball and ran home. " * 4
    items = [
        {"context": prompt, "question": f"The {animal} said", "choices": ["yes", "no", "maybe"], "answer": 0}
        for animal in ("fox", "cat")
    ]
    seen = reads(session)
    doge_export.evaluate_choices(session, items)
    length = len(session.tokenizer.encode(prompt.rstrip()))
    assert seen[0][0] >= length
    assert max(read for read, _ in seen[1:]) < 12
    assert max(kept for _, kept in seen) < 12


def test_nothing_is_shared_where_tokens_route_one_another(session_of, reads):
    session = session_of("doge-nano-moe")
    seen = reads(session)
    doge_export.evaluate_choices(session, ITEMS[:1])
    prompt = len(session.tokenizer.encode(ITEMS[0]["question"]))
    assert len(seen) == 3 and all(read >= prompt for read, _ in seen)


def test_measures_divide_by_characters_and_by_bytes():
    question = Question("?", ("ab", "abcd", "éééé"), 2)
    answer = Answer(question, (-2.0, -3.0, -2.8), (False, False, True), False)
    assert (answer.chosen, answer.chosen_norm, answer.chosen_bytes) == (0, 2, 2)
    assert (
        Answer(question, (-2.0, -1.4, -2.8), (True,) * 3, False).chosen_bytes == 1
    )  # -0.35 twice: the first of equals
    score = ChoicesScore((answer,))
    assert score.measures["acc"] == {"value": 0.0, "stderr": None}
    assert score.measures["exact_match"]["value"] == 1.0


def write(folder, *lines: str):
    file = folder / "questions.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_command_prints_a_table_and_writes_details(run, nano_folder, tmp_path):
    file = write(tmp_path, "\ufeff" + json.dumps(ITEMS[0]), "", *(json.dumps(item) for item in ITEMS[1:]))
    done = run("eval", nano_folder, "--choices", file, "--details", tmp_path / "items.jsonl", "--threads", 1)
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *("acc", "acc_norm", "acc_bytes", "exact_match", "questions")
    ]
    assert "1 cut at their start" in done.stdout
    details = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    found = json.loads(run("eval", nano_folder, "--choices", file, "--threads", 1, "--json").stdout)["choices"]
    assert found["items"] == details
    assert found["questions"] == len(ITEMS)
    assert found["items"][1]["answer"] == 1
    assert found["acc"]["value"] == np.mean([item["chosen"] == item["answer"] for item in details])


GOOD = json.dumps(ITEMS[0])


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "not JSON"),
        ("[1]", "not a list"),
        ("null", "not null"),
        ('{"question": "?"}', "no choices and no answer"),
        ('{"question": 1, "choices": ["a", "b"], "answer": 0}', "question is a number"),
        ('{"question": "?", "context": 1, "choices": ["a", "b"], "answer": 0}', "context is a number"),
        ('{"question": "?", "choices": "ab", "answer": 0}', "expected a list of two or more"),
        ('{"question": "?", "choices": ["a"], "answer": 0}', "expected a list of two or more"),
        ('{"question": "?", "choices": ["a", ""], "answer": 0}', "a choice is empty"),
        ('{"question": "?", "choices": ["a", 2], "answer": 0}', "a choice is a number"),
        ('{"question": "?", "choices": ["a", "b"], "answer": 2}', "answer is 2, expected an index from 0 to 1"),
        ('{"question": "?", "choices": ["a", "b"], "answer": -1}', "answer is -1"),
        ('{"question": "?", "choices": ["a", "b"], "answer": true}', "answer is true"),
        ('{"question": "?", "choices": ["a", "b"], "answer": "c"}', 'answer is "c"'),
        ('{"question": "\\ud800", "choices": ["a", "b"], "answer": 0}', "surrogate"),
    ],
)
def test_a_malformed_line_is_one_line_with_its_number(run, nano_folder, tmp_path, line, message):
    done = run("eval", nano_folder, "--choices", write(tmp_path, GOOD, "", line))
    assert done.exit_code == 2
    assert "line 3" in done.stderr and message in done.stderr and done.stderr.count("\n") == 1


def test_a_file_without_questions(run, nano_folder, tmp_path):
    done = run("eval", nano_folder, "--choices", write(tmp_path, "", " "))
    assert done.exit_code == 2 and "no questions" in done.stderr


def test_a_choice_longer_than_the_export_holds(session_of):
    item = {"question": "?", "choices": ["one two three " * 200, "b"], "answer": 0}
    with pytest.raises(DogeExportError, match="question 1: the choice"):
        doge_export.evaluate_choices(session_of("doge-nano"), [item])


def test_details_that_cannot_be_written_are_refused_before_anything_runs(run, nano_folder, tmp_path):
    done = run("eval", nano_folder, "--choices", write(tmp_path, GOOD), "--details", tmp_path / "none" / "x.jsonl")
    assert done.exit_code == 2 and "does not exist" in done.stderr
