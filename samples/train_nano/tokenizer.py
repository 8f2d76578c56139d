"""A byte-level BPE tokenizer of 1024 tokens, with Doge's special tokens, first ids and chat template.

The conventions are those of Doge-Instruct: `<|begin_of_text|>` is 0 and precedes every plain text, turns end with
`<|end_of_text|>` (1), padding is 2 and on the left, and a chat always opens with a system block.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from dialogues import Message
from grammar import Document
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

VOCAB_SIZE = 1024
BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"
SPECIAL_TOKENS = [
    BOS,
    EOS,
    PAD,
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
]
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
# What the template writes around the messages: the tokenizer should know these words too.
SYSTEM_BLOCK = "system\nCutting Knowledge Date: December 2024\nToday Date: December 2024\n\n\nuser\n\n\nassistant\n"
# Doge's own split: contractions, words with the space before them, up to three digits, punctuation, newlines.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def contents(document: Document) -> str:
    """Return the text of a document without special tokens."""
    if isinstance(document, str):
        return document
    return SYSTEM_BLOCK + "\n".join(message["content"] for message in document)


def train(documents: Iterable[Document]) -> Tokenizer:
    """Train a tokenizer on documents."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((contents(document) for document in documents), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS))]
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> PreTrainedTokenizerBase:
    """Write the tokenizer's four files into `folder`, and load them with `AutoTokenizer`."""
    named = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1024,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "unk_token": None,
        **named,
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(named, indent=2) + "\n")
    shutil.copyfile(CHAT_TEMPLATE, folder / CHAT_TEMPLATE.name)
    return AutoTokenizer.from_pretrained(folder)


def encode(tokenizer: PreTrainedTokenizerBase, document: Document) -> list[int]:
    """Encode a document for training: a story from bos to eos, or the rendered chat."""
    if isinstance(document, str):
        return tokenizer(document).input_ids + [tokenizer.eos_token_id]
    return chat(tokenizer, document)


def chat(tokenizer: PreTrainedTokenizerBase, messages: list[Message], answering: bool = False) -> list[int]:
    """Encode a chat; with `answering`, up to the point where the assistant is to speak."""
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=answering, return_dict=False))


def rows(tokenizer: PreTrainedTokenizerBase, documents: Iterable[Document], length: int) -> Iterator[list[int]]:
    """Yield rows of `length` tokens: whole documents from the start of the row, the last one cut off."""
    row: list[int] = []
    for document in documents:
        row += encode(tokenizer, document)
        if len(row) >= length:
            yield row[:length]
            row = []
