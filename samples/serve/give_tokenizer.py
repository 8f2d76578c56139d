"""Gives a folder of random weights a tokenizer, so that it can be served: that of another folder, with made-up words.

python give_tokenizer.py out out-20M; a made-up word stands for each id that the other folder's vocabulary lacks.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="an exported folder with a tokenizer")
    parser.add_argument("folder", type=Path, help="the folder that gets one")
    arguments = parser.parse_args()
    size = json.loads((arguments.folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    tokenizer = json.loads((arguments.source / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    taken = {*vocabulary.values(), *(token["id"] for token in tokenizer["added_tokens"])}
    vocabulary |= {f"Ġword{number}": number for number in range(size) if number not in taken}  # Ġ is a space
    (arguments.folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    for file in (*arguments.source.glob("*token*.json"), *arguments.source.glob("chat_template*")):
        if file.name != "tokenizer.json":
            shutil.copy(file, arguments.folder)


if __name__ == "__main__":
    main()
