"""The tokenizer of an exported folder, without transformers: ids equal those of its AutoTokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from doge_export import console
from doge_export.errors import DogeExportError, RunFailed, TooLong
from doge_export.json_file import parse_json
from doge_export.regular_file import is_there, read_regular
from doge_export.runtime.chat_messages import checked_documents, checked_tools, conversation, data_of
from doge_export.runtime.chat_template import ChatTemplate, read_chat_templates
from doge_export.runtime.control_tokens import ControlTokens
from doge_export.runtime.files import damage_of, read_json
from doge_export.runtime.tokenizer_growth import check_growth

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Message = Any
"""A dict with "role" and "content", a dataclass or a pydantic model."""

UNPROVEN = 64
"""Factor of the longest token for tokenizers of which it is not proven that they keep every character."""

MARGIN = 64
"""Ids behind the wanted ones that are encoded with them: the last of a beginning may be others than in the text."""

_LOSSLESS = ("ByteLevel", "Split", "Digits", "Punctuation")
"""Kinds of pre-tokenizers that cut a text into words without dropping any of it."""

_SPACE = re.compile(r"(?<=\S)\s")


class Tokenizer:
    """Encoder of texts and conversations to ids, and decoder of ids to text; threads may share it.

    Attributes:
        backend: the tokenizer of the tokenizers library.
        special_tokens: texts of bos_token, eos_token, pad_token..., by these names, as chat templates see them.
        token_bytes: bytes of the tokens met so far; the byte-level detokenizer fills it.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str],
        chat_templates: Mapping[str, str],
        chat_control_tokens: Sequence[str] | None = None,
    ) -> None:
        self.backend = backend
        self.special_tokens = dict(special_tokens)
        self._chat_templates = dict(chat_templates)
        self._chat_control_tokens = chat_control_tokens
        self.token_bytes: dict[int, bytes] = {}
        self._compiled: dict[str, tuple[ChatTemplate, ControlTokens]] = {}

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer | None:
        """Read the tokenizer of a folder; None if it has no tokenizer.json.

        Raises:
            DogeExportError: a file of the tokenizer is damaged.
        """
        file = folder / "tokenizer.json"
        if not is_there(file):
            return None
        backend = _backend(file)
        config_file = folder / "tokenizer_config.json"
        config = read_json(config_file)
        with damage_of(config_file):
            special_tokens = _named_tokens(config)
        if "added_tokens_decoder" not in config:
            # Older folders have a separate file of special tokens, which transformers reads in this case only.
            legacy_file = folder / "special_tokens_map.json"
            config |= read_json(legacy_file)
            with damage_of(legacy_file):
                special_tokens = _named_tokens(config)
        with damage_of(config_file):
            try:
                _complete(backend, config, special_tokens)
            except BaseException as error:
                if not _is_of_library(error):
                    raise
                raise ValueError(_reason(error)) from None
            return cls(
                backend,
                special_tokens=special_tokens,
                chat_templates=read_chat_templates(folder, config),
                chat_control_tokens=_texts(config.get("chat_control_tokens")),
            )

    def token_id(self, name: str) -> int | None:
        """Return the id of a special token by its name, such as "eos_token"; None if the tokenizer has none."""
        text = self.special_tokens.get(name)
        return None if text is None else self.backend.token_to_id(text)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that `decode` leaves out with skip_special_tokens."""
        return frozenset(
            index
            for index, token in self.backend.get_added_tokens_decoder().items()
            if getattr(token, "special", False)
        )

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text; a special token spelled in it becomes that token, as in transformers.

        Args:
            text: any Unicode text.
            add_special_tokens: add the tokens that the tokenizer puts around every text.

        Raises:
            DogeExportError: the text has a lone surrogate.
        """
        return self.encoding(text, add_special_tokens).ids

    def encoding(self, text: str, add_special_tokens: bool) -> tokenizers.Encoding:
        """Return the ids of a text and where in it they are; see `encode`."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DogeExportError(
                f"the text has a lone surrogate at character {error.start}, which is not Unicode text: "
                "check how the input was decoded"
            ) from error
        try:
            with console.without_native_stderr():
                return self.backend.encode(text, add_special_tokens=add_special_tokens)
        except BaseException as error:
            if not _is_of_library(error):
                raise
            raise RunFailed(f"the tokenizer fails on this text of {len(text)} characters: {_reason(error)}") from None

    @cached_property
    def longest(self) -> int:
        """Most characters of a text that one of its ids stands for.

        Proven for byte-level BPE without a normalizer, as all of Doge's are: a character takes at least one byte, and
        no token more bytes than it has characters in the vocabulary. A tokenizer that may merge or drop characters
        (normalizers, unknown tokens, white space around added tokens) is allowed UNPROVEN times as many.
        """
        longest = max(map(len, self.backend.get_vocab(with_added_tokens=True)), default=1)
        return longest if self.keeps_every_byte() else UNPROVEN * longest

    def keeps_every_byte(self) -> bool:
        """Return whether each byte of a text is a character of one of its tokens: byte-level BPE that drops nothing."""
        parts = json.loads(self.backend.to_str())
        steps = parts["pre_tokenizer"] or {}
        steps = steps.get("pretokenizers", [steps])
        return (
            parts["model"].get("type") == "BPE"
            and parts["normalizer"] is None
            and any(step.get("type") == "ByteLevel" for step in steps)
            and all(step.get("type") in _LOSSLESS and step.get("behavior") != "Removed" for step in steps)
            and all(
                character in parts["model"]["vocab"] for character in tokenizers.pre_tokenizers.ByteLevel.alphabet()
            )
            and not any(token["lstrip"] or token["rstrip"] for token in parts["added_tokens"])
        )

    def check_length(self, characters: int, max_length: int) -> None:
        """Refuse a text that cannot be `max_length` ids or less, without the time and memory to encode it.

        Raises:
            DogeExportError: it is too long.
        """
        if characters > max_length and characters > max_length * self.longest:  # the first alone costs nothing
            raise TooLong(
                f"the text has {characters} characters: more tokens than this export holds ({max_length}), of at most "
                f"{self.longest} characters each; shorten the text, or export again with a larger --max-length"
            )

    def encode_cut(self, text: str, max_length: int) -> list[int]:
        """Return the ids of `text`, cut at its end to `max_length` ids, including those added to every text.

        The backend's own setting for this would cut what other threads encode meanwhile. Of a text that is far too
        long, only a beginning is encoded, which ends at white space behind more characters than the ids can stand for.
        """
        room = max(max_length - self.backend.num_special_tokens_to_add(False), 0)
        beginning = text
        if len(text) > max_length + MARGIN and len(text) > (start := (max_length + MARGIN) * self.longest):
            space = _SPACE.search(text, start)
            beginning = text[: space.start() if space else start]
        encoding = self.encoding(beginning, add_special_tokens=False)
        if len(encoding.ids) < room and len(beginning) < len(text):  # of a tokenizer that drops or merges without bound
            encoding = self.encoding(text, add_special_tokens=False)
        encoding.truncate(room)
        return self.backend.post_process(encoding).ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD."""
        try:
            return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        except BaseException as error:
            if not _is_of_library(error):
                raise
            raise RunFailed(f"the tokenizer fails to decode {len(token_ids)} ids: {_reason(error)}") from None

    @property
    def has_chat_template(self) -> bool:
        """True if the tokenizer can render conversations."""
        return bool(self._chat_templates)

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        **variables: Any,
    ) -> str:
        """Render a conversation as one text, byte for byte that of transformers' `apply_chat_template(tokenize=False)`.

        Args:
            messages: dicts with "role" and "content", dataclasses or pydantic models; fields that are None are left
                out, and reasoning may be given as "reasoning_content", "reasoning" or "thinking".
            tools: JSON schemas of functions that the model may call.
            documents: texts that the model may cite, as dicts.
            chat_template: name of one of several templates, or the text of another one; by default "default", or
                "tool_use" with tools if there is one.
            add_generation_prompt: end with the beginning of an assistant's turn.
            continue_final_message: end within the last message instead, for the model to go on with; the name of a
                field does so for that field.
            variables: other names that the template reads (for Doge: `date_string`, `builtin_tools`...).

        Raises:
            DogeExportError: there is no chat template, or it refuses the messages.
        """
        template, _ = self._template(tools, chat_template)
        return template.render(
            conversation(messages),
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **{**self.special_tokens, **variables},
        )

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        max_length: int | None = None,
        **variables: Any,
    ) -> list[int]:
        """Return the ids of a rendered conversation; control tokens inside messages stay text, see control_tokens.py.

        The arguments and errors are those of `apply_chat_template`; and a conversation that cannot be `max_length` ids
        or less is refused as `check_length` does.
        """
        _, control = self._template(tools, chat_template)
        marked = self.apply_chat_template(
            control.mark(conversation(messages)),
            tools=control.mark(checked_tools(tools)),
            documents=control.mark(checked_documents(documents)),
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **control.mark(data_of(variables)),
        )
        pieces = control.split(marked)
        if max_length is not None:
            self.check_length(sum(len(piece) for piece, _ in pieces), max_length)
        ids: list[int] = []
        for position, (piece, is_text) in enumerate(pieces):
            if position == 0 and not is_text:
                ids += self.encode(piece, add_special_tokens=False)
            else:
                ids += self._encode_inside(piece, is_text)
        return ids

    def _encode_inside(self, piece: str, is_text: bool) -> list[int]:
        """Encode a piece from the middle of a text, without the space that some tokenizers add at the start."""

        def encode(text: str) -> list[int]:
            return self._encode_as_text(text) if is_text else self.encode(text, add_special_tokens=False)

        newline, ids = self.encode("\n", add_special_tokens=False), encode("\n" + piece)
        return ids[len(newline) :] if ids[: len(newline)] == newline else encode(piece)

    def _encode_as_text(self, text: str) -> list[int]:
        """Encode `text` so that no part of it becomes an added token."""
        if self.backend.normalizer is not None:
            text = self.backend.normalizer.normalize_str(text)
        words = [text]
        if self.backend.pre_tokenizer is not None:
            words = [word for word, _ in self.backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in self.backend.model.tokenize(word)]

    def _template(self, tools: Sequence[Any] | None, chosen: str | None) -> tuple[ChatTemplate, ControlTokens]:
        source = self._source(tools, chosen)
        found = self._compiled.get(source)
        if found is None:
            template = ChatTemplate(source)
            found = template, ControlTokens(self._control_texts(template))
            if len(self._compiled) < 16:
                self._compiled[source] = found
        return found

    def _source(self, tools: Sequence[Any] | None, chosen: str | None) -> str:
        templates = self._chat_templates
        if chosen is not None:
            return templates.get(chosen, chosen)
        if tools is not None and "tool_use" in templates:
            return templates["tool_use"]
        if "default" in templates:
            return templates["default"]
        if templates:
            raise DogeExportError(
                f"this model has the chat templates {', '.join(sorted(templates))}, and none is the default: name one "
                "as chat_template"
            )
        raise DogeExportError(
            "this model has no chat template: give a text prompt, or export a checkpoint made for chat"
        )

    def _control_texts(self, template: ChatTemplate) -> list[str]:
        """List the special tokens, and those other added tokens that the template itself writes."""
        chosen = self._chat_control_tokens
        texts = []
        for token in self.backend.get_added_tokens_decoder().values():
            if chosen is not None:
                is_control = token.content in chosen
            else:
                is_control = token.content in template.literal_text and not token.content.isspace()
            if token.special or is_control:
                texts.append(token.content)
        return texts


def _backend(file: Path) -> tokenizers.Tokenizer:
    """Read tokenizer.json.

    Raises:
        DogeExportError: it cannot be read, or it may make texts much longer.
    """
    try:
        content = read_regular(file)
        check_growth(parse_json(content))
        with console.without_native_stderr():
            return tokenizers.Tokenizer.from_buffer(content)
    except (DogeExportError, MemoryError):
        raise
    except BaseException as error:
        if not _is_of_library(error) and not isinstance(error, (OSError, ValueError)):
            raise
        raise DogeExportError(f"{file} is not a tokenizer this version can read: {_reason(error)}") from None


def _is_of_library(error: BaseException) -> bool:
    """Return whether an error is the tokenizers library's: a bare Exception, or the panic of its Rust.

    A panic is no Exception, and its class belongs to no module that could be imported.
    """
    return type(error) is Exception or type(error).__name__ == "PanicException"


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _complete(backend: tokenizers.Tokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> None:
    """Change a backend as transformers does after reading it: no padding, and special tokens that are missing."""
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    extra = extra.values() if isinstance(extra, Mapping) else extra
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    declared = sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
    backend.add_tokens([AddedToken(**token) for _, token in declared if token["content"] not in known])
    backend.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in special_tokens.values() if text not in known]
        + [
            AddedToken(_content(token), special=True, normalized=False)
            for token in extra
            if _content(token) not in known
        ]
    )


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    return {name: _content(config[name]) for name in NAMED_TOKENS if config.get(name)}


def _content(token: Any) -> str:
    content = token["content"] if isinstance(token, Mapping) else token
    if not isinstance(content, str):
        raise TypeError(f"{token!r} is not a token")
    return content


def _texts(values: Any) -> list[str] | None:
    return None if values is None else [_content(value) for value in values]
