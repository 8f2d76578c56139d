"""Weight files that are not what they should be: each is refused with a line, and nothing outside them is read."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from doge_cpu import BAD_FILE, UNSUPPORTED, Config, CpuError, Header, Piece, Weight, aligned, config_of, weights_of
from doge_runs import distinct_ids
from random_doge import MAX_LENGTH, MOE


@pytest.fixture(scope="module")
def good(library, random_module):
    module = random_module(**MOE, num_hidden_layers=2)
    return library.file(config_of(module.architecture, MAX_LENGTH), list(weights_of(module, MAX_LENGTH)))


def _copy(file):
    again = aligned(len(file))
    again[:] = file
    return again


def _checksum(file) -> None:
    """Make a changed header valid again, as a forger would."""
    header = Header.from_buffer(file.data)
    header.checksum = 0
    hash_ = 0xCBF29CE484222325
    for byte in bytes(file[: ctypes.sizeof(Header) + header.piece_count * ctypes.sizeof(Piece)]):
        hash_ = (hash_ ^ byte) * 0x100000001B3 % 2**64
    header.checksum = hash_


def test_any_changed_byte_of_the_table_is_noticed(library, good):
    end = ctypes.sizeof(Header) + Header.from_buffer(good.data).piece_count * ctypes.sizeof(Piece)
    for place in range(0, end, 37):
        changed = _copy(good)
        changed[place] ^= 1
        with pytest.raises(CpuError):
            library.open(changed)


@pytest.mark.parametrize("size", [0, 7, 100, 1000, -64, -1])
def test_a_file_cut_short_is_refused(library, good, size):
    with pytest.raises(CpuError) as caught:
        library.open(good[: size if size >= 0 else len(good) + size])
    assert caught.value.status == BAD_FILE


@pytest.mark.parametrize("seed", range(60))
def test_forged_tables_are_refused_or_harmless(library, good, seed):
    """Numbers of config and pieces are replaced, and the checksum made right."""
    random = np.random.default_rng(seed)
    forged = _copy(good)
    words = forged[: len(forged) // 4 * 4].view(np.int32)
    end = (ctypes.sizeof(Header) + Header.from_buffer(good.data).piece_count * ctypes.sizeof(Piece)) // 4
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(16, end))
        value = [0, 1, -1, 2**31 - 1, -(2**31), int(words[place]) + 1, int(words[place]) * 2 % 2**31][
            random.integers(7)
        ]
        words[place] = value
    _checksum(forged)
    try:
        model = library.open(forged)
    except CpuError as error:
        assert error.status in (BAD_FILE, UNSUPPORTED)
        assert str(error)
    else:  # a number without importance, such as a longer maximum or another eps
        model.state().run(distinct_ids(1, 3))


def test_a_piece_that_was_not_planned_is_not_packed(library):
    """Its rows, kind or size would reach beyond the memory that it is packed into."""
    values, out = np.ones((40, 64), np.float32), aligned(64 * 64)
    for piece in (
        Piece(16, 0, 0, 40, 64, 32, 0, 0, 0, 256),  # a vector of several rows
        Piece(16, 0, 0, 1, 64, 8, 16, 0, 0, 256),  # and one of codes
        Piece(17, 0, 0, 40, 64, 32, 0, 0, 0, 256),
        Piece(17, 0, 0, 40, 64, 8, 48, 0, 0, 256),
    ):
        with pytest.raises(CpuError, match="was not planned"):
            library.check(library.c.doge_cpu_pack, piece, values.ctypes.data, None, None, out[:256].ctypes.data)
    assert not out[256:].any()


def test_what_is_wrong_is_named(library, random_module, good):
    module = random_module(**MOE, num_hidden_layers=2)
    config, weights = config_of(module.architecture, MAX_LENGTH), list(weights_of(module, MAX_LENGTH))

    def refused(text: str, weights: list[Weight] = weights, **fields: int) -> None:
        changed = Config.from_buffer_copy(config)
        for name, value in fields.items():
            setattr(changed, name, value)
        with pytest.raises(CpuError, match=text):
            library.file(changed, weights)

    refused("head_dim must be even", head_dim=15)
    refused("num_key_value_heads must divide", num_key_value_heads=3)
    refused("num_experts_per_tok", num_experts_per_tok=65)
    refused("another number of columns", hidden_size=65)
    refused("query of layer 1: 0 rows where 64 are expected", [w for w in weights if (w.role, w.layer) != (17, 1)])
    refused("one of query and key norm is missing", [w for w in weights if w.role != 24])
    refused("not one score matrix", [w for w in weights if w.role != 25])
    refused("neither an embedding nor a head", [w for w in weights if w.role > 2])
    old = _copy(good)
    Header.from_buffer(old.data).layout = 99
    with pytest.raises(CpuError, match="layout 99, this library reads 1"):
        library.open(old)
