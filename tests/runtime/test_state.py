"""States of conversations as files: what goes on from one says what would have been said; others are refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import doge_export
from doge_export.cli import main
from doge_export.errors import DogeExportError
from doge_export.pipeline.quantize import quantize
from doge_export.runtime.state import read_state

FOLDERS = {
    "in-place": {"target": "onnxruntime"},
    "growing": {"target": "portable"},
    "bounded": {"target": "portable", "cache": "bounded", "max_length": "unlimited"},
}
KINDS = [*FOLDERS, "native", "native int8"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """doge-nano, which keeps 64 keys, for each kind of decoder."""
    made = tmp_path_factory.mktemp("state")
    for name, options in FOLDERS.items():
        doge_export.export("doge-nano", made / name, **{"validate": False, "max_length": 512} | options)
    quantize(made / "in-place", ["int8"], max_kl=1.0)
    return made


def opened(folders, name):
    backend, _, precision = name.partition(" ")
    if backend == "native":
        return doge_export.load(folders / "in-place", threads=2, backend="native", precision=precision or "fp32")
    return doge_export.load(folders / name, threads=1, backend="graph")


def ids_of(length, seed=0):
    return np.random.default_rng(seed).integers(3, 1000, length).tolist()


def written(session, ids, count):
    """The next `count` greedy tokens behind `ids`, of which the cache may hold the first."""
    stream = session.stream_reusing(ids, max_new_tokens=count, do_sample=False, eos_token_id=-1)
    for _ in stream:
        pass
    return stream.generation.token_ids


@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("name", KINDS)
def test_a_restored_session_says_what_the_saved_one_would_have(folders, name, tmp_path):
    saved, other = opened(folders, name), opened(folders, name)
    ids = ids_of(90)
    ids += written(saved, ids, 60)
    saved.save(tmp_path / "state")
    expected = written(saved, ids, 200)
    assert other.load_state(tmp_path / "state") == ids[:-1]
    runs = []
    predict = other.decoder.predict
    other.decoder.predict = lambda tokens, *rest: runs.append(tokens.shape[1]) or predict(tokens, *rest)
    assert written(other, ids, 200) == expected
    assert runs == [1] * 200, "tokens of the state were read again"
    slots = sum(array.nbytes for array in saved.decoder.state().values())
    saved.save(tmp_path / "longer")
    assert slots <= (tmp_path / "longer").stat().st_size <= 1.1 * slots


def test_a_bounded_state_stays_small(folders, tmp_path):
    session, sizes = opened(folders, "bounded"), []
    for new_tokens in (10, 610):
        written(session, ids_of(90), new_tokens)
        session.save(tmp_path / "state")
        sizes.append((tmp_path / "state").stat().st_size)
    assert sizes[1] - sizes[0] < 600 * 5  # ids, and digits of lengths


def test_another_process_goes_on_with_a_chat(folders, tmp_path):
    """The messages are there, and the answer is that of one that never stopped."""
    program = (
        "import sys, doge_export\n"
        "session = doge_export.load(sys.argv[1], threads=1, backend='graph')\n"
        "chat = session.resume(sys.argv[2])\n"
        "print(''.join(chat.send('And then?', max_new_tokens=12, do_sample=False)))\n"
    )
    chat = opened(folders, "growing").chat("Be brief.")
    for _ in chat.send("Tell me a story.", max_new_tokens=12, do_sample=False):
        pass
    chat.save(tmp_path / "state")
    arguments = [sys.executable, "-c", program, folders / "growing", tmp_path / "state"]
    said = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert said == "".join(chat.send("And then?", max_new_tokens=12, do_sample=False)) + "\n"


def test_the_chat_command_keeps_its_conversation(folders, tmp_path):
    file = tmp_path / "talk.safetensors"

    def chat(*lines, options=()):
        arguments = ["chat", str(folders / "in-place"), "--state", str(file), "--max-new-tokens", "6", "--greedy"]
        return CliRunner().invoke(main, [*arguments, *options], input="\n".join(lines) + "\n", catch_exceptions=False)

    assert chat("Hello there.").exit_code == 0
    together = CliRunner().invoke(
        main,
        ["chat", str(folders / "in-place"), "--max-new-tokens", "6", "--greedy"],
        input="Hello there.\nAnd then?\n",
    )
    assert chat("And then?").stdout == together.stdout.splitlines(keepends=True)[-1]
    messages = read_state(file).conversation["messages"]
    assert [message["content"] for message in messages if message["role"] == "user"] == ["Hello there.", "And then?"]
    done = chat("x", options=["--system", "Be brief."])
    assert done.exit_code == 2 and "leave --system out" in done.stderr


def test_what_is_wrong_with_a_file_is_one_line(folders, tmp_path):
    session, file = opened(folders, "growing"), tmp_path / "state"
    written(session, ids_of(40), 3)
    session.save(file)
    content = file.read_bytes()
    before = session.decoder.length

    def refused(pattern, path=file, by=session):
        with pytest.raises(DogeExportError, match=pattern) as caught:
            by.load_state(path)
        assert "\n" not in str(caught.value)
        assert session.decoder.length == before

    for at in (3, 40, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        refused("is damaged|no state|is of format")  # wherever the library puts the metadata
    for size in (0, 7, 100, len(content) - 1):
        file.write_bytes(content[:size])
        refused("no state of a session, or is damaged")
    save_file({"token_ids": np.zeros(3, np.int32)}, file)
    refused("is of format ''")
    file.write_bytes(content)
    refused("cannot read the state", tmp_path / "nowhere")
    refused("another model, precision or export", by=opened(folders, "in-place"))
    with pytest.raises(DogeExportError, match="holds no conversation"):
        session.resume(file)


def test_arrays_of_another_shape_are_refused(folders):
    session = opened(folders, "bounded")
    written(session, ids_of(100), 3)
    state, length = session.decoder.state(), session.decoder.length
    for name, array in state.items():
        for wrong in (array[..., :-1], array.astype(np.float64), array[:, :, :-1]):
            with pytest.raises(DogeExportError, match="of another session"):
                session.decoder.restore(state | {name: wrong}, length)
        with pytest.raises(DogeExportError, match="of another session"):
            session.decoder.restore({other: array for other, array in state.items() if other != name}, length)
    with pytest.raises(DogeExportError, match="64 slots for 63 tokens"):
        session.decoder.restore(state, 63)
    assert session.decoder.length == length


def test_nothing_to_save(folders, tmp_path):
    session = opened(folders, "in-place")
    with pytest.raises(DogeExportError, match="no state to save"):
        session.save(tmp_path / "state")
    session.generate([ids_of(5), ids_of(7)], max_new_tokens=2)
    with pytest.raises(DogeExportError, match="no state to save"):
        session.save(tmp_path / "state")
    session.generate(ids_of(5), max_new_tokens=2)
    session.save(tmp_path / "state")
    assert load_file(tmp_path / "state")["token_ids"].tolist() == [
        *ids_of(5),
        session.load_state(tmp_path / "state")[-1],
    ]
