"""Text to token ids and back, for the pipe around doge: text.py FOLDER encode TEXT, or text.py FOLDER decode < IDS."""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


def main(folder: str, direction: str, text: str = "") -> None:
    """Write the ids of `text` in a line, or the text of the ids on stdin as they come."""
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    if direction == "encode":
        print(*tokenizer.encode(text).ids)
        return
    stream = DecodeStream(skip_special_tokens=True)
    for line in sys.stdin:
        print(stream.step(tokenizer, int(line)) or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
