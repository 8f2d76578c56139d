"""Facts that were told early and are asked late: do a bounded and an unbounded cache answer the same?

The words are those that the bundled models are trained on (samples/train_nano): facts first, then other dialogues until
the facts lie several windows back, then a question about one of them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import doge_export

sys.path.append(str(Path(__file__).parents[1] / "train_nano"))
import dialogues
import grammar

Message = dict[str, str]


def main() -> None:
    """Ask both folders the same questions; exit with 1 where an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bounded", type=Path)
    parser.add_argument("unbounded", type=Path)
    parser.add_argument("--questions", type=int, default=50, help="questions at each distance")
    parser.add_argument(
        "--windows", type=int, nargs="+", default=[1, 2, 4, 8], help="distances of the facts, in windows"
    )
    parser.add_argument("--facts", type=int, default=2)
    parser.add_argument("--backend", choices=("native", "graph"))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()

    sessions = [
        doge_export.load(folder, threads=1, backend=arguments.backend)
        for folder in (arguments.bounded, arguments.unbounded)
    ]
    window = sessions[0].manifest.architecture["keep_window_size"]
    rows = []
    for distance in arguments.windows:
        rng = random.Random(grammar.HELD_OUT_SEED + 2 * distance)
        same, right, tokens = 0, [0, 0], 0
        for _ in range(arguments.questions):
            messages, expected = question(rng, sessions[0], arguments.facts, distance * window)
            answers = [session.generate(messages, max_new_tokens=32, do_sample=False) for session in sessions]
            same += answers[0].token_ids == answers[1].token_ids
            right = [count + (answer.text.strip() == expected) for count, answer in zip(right, answers, strict=True)]
            tokens += len(answers[0].prompt_token_ids)
        row = {"windows": distance, "tokens": round(tokens / arguments.questions), "questions": arguments.questions}
        rows.append({**row, "same": same, "right": dict(zip(("bounded", "unbounded"), right, strict=True))})
        if not arguments.json:
            print(
                f"facts {distance} windows back ({row['tokens']} tokens): {same} of {arguments.questions} answers "
                f"the same, {right[0]} right bounded, {right[1]} unbounded",
                flush=True,
            )
    if arguments.json:
        print(json.dumps({"window": window, "rows": rows}))
    if any(row["same"] < row["questions"] for row in rows):
        sys.exit(1)


def question(rng: random.Random, session: doge_export.Session, facts: int, distance: int) -> tuple[list[Message], str]:
    """Return a conversation that ends in a question about facts at least `distance` tokens back, and the answer."""
    told = dialogues.facts(rng, facts)
    asked, answer = rng.choice(rng.choice(told).questions)
    messages = dialogues.messages([(" ".join(fact.sentence for fact in told), "I will remember that.")])
    encode = session.tokenizer.encode
    between = 0
    while between < distance:
        other = rng.choice((dialogues.small_talk, dialogues.counting, dialogues.knowledge))(rng)
        messages += other
        between += sum(len(encode(message["content"])) for message in other)
    return [*messages, {"role": "user", "content": asked}], answer


if __name__ == "__main__":
    main()
