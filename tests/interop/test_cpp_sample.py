"""samples/cpp answers as our own runtime does, and tells its user's mistakes in a line.

pytest -m slow tests/interop/test_cpp_sample.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from doge_export.runtime import load

pytestmark = pytest.mark.slow

SAMPLE = Path(__file__).parents[2] / "samples" / "cpp"
TEXT, TOKENS = "Once upon a time", 40
PACKAGES = ("libonnxruntime-dev", "nlohmann-json3-dev")


@pytest.fixture(scope="module")
def headers(tmp_path_factory):
    """Folder with the headers of Debian 13's packages, taken from the archive that this machine's apt knows."""
    work = tmp_path_factory.mktemp("debian")
    sources = list(Path("/etc/apt").glob("sources.list.d/debian.sources"))
    if shutil.which("apt-get") is None or not sources:
        pytest.skip("this machine has no apt with Debian's sources")
    for folder in ("lists/partial", "archives/partial", "sources"):
        (work / folder).mkdir(parents=True)
    first = sources[0].read_text().split("\n\n")[0]
    (work / "sources" / "trixie.sources").write_text(re.sub(r"(?m)^Suites:.*$", "Suites: trixie", first) + "\n")
    settings = {
        "Dir::State::Lists": work / "lists",
        "Dir::Cache::Archives": work / "archives",
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": work / "sources",
    }
    options = [text for name, value in settings.items() for text in ("-o", f"{name}={value}")]
    for command in (["update"], ["download", *PACKAGES]):
        done = subprocess.run(["apt-get", "-q", *options, *command], cwd=work, capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip("Debian 13's packages cannot be had here")
    for package in work.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, work / "root"], check=True)
    return work / "root" / "usr"


@pytest.fixture(scope="module")
def doge(headers, tmp_path_factory):
    """The sample, linked to the library of the installed onnxruntime."""
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    build = tmp_path_factory.mktemp("cpp")
    configure = ["cmake", "-S", SAMPLE, "-B", build, f"-DCMAKE_PREFIX_PATH={headers}"]
    soname = re.search(r"SONAME.*\[(.+)\]", subprocess.check_output(["readelf", "-d", library], text=True))
    assert soname is not None
    (build / soname[1]).symlink_to(library)
    subprocess.run([*configure, f"-DONNXRUNTIME_LIBRARY={library}"], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build], check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(build)}

    def run(*arguments, ids):
        command = [build / "doge", *map(str, arguments)]
        return subprocess.run(
            command, input=" ".join(map(str, ids)), capture_output=True, text=True, check=False, env=environment
        )

    return run


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_every_precision(folder, doge, precision):
    session = load(folder, precision=precision)
    prompt = session.tokenizer.encode(TEXT)
    answer = session.generate(prompt, do_sample=False, max_new_tokens=TOKENS)
    done = doge(folder, precision, TOKENS, ids=prompt)
    assert (done.returncode, [int(line) for line in done.stdout.split()]) == (0, list(answer.token_ids)), done.stderr


def test_text_around_it(folder):
    command = [sys.executable, SAMPLE / "text.py", folder]
    ids = subprocess.check_output([*command, "encode", TEXT], text=True)
    assert [int(word) for word in ids.split()] == load(folder).tokenizer.encode(TEXT)
    lines = "".join(f"{word}\n" for word in ids.split())
    assert subprocess.check_output([*command, "decode"], input=lines, text=True).strip() == TEXT


def test_mistakes_are_one_line(folder, doge, tmp_path):
    for arguments, ids, said in (
        ([tmp_path], [5], "doge_export.json cannot be read"),
        ([folder, "int7"], [5], "has no int7 graph"),
        ([folder], [5] * 300, "the prompt has 300 tokens, and this model holds 256"),
        ([folder], [5, 1024], "token 1024 is none: ids go from 0 to 1023"),
        ([folder], ["five"], "something else than token ids"),
        ([folder], [], "the prompt is empty"),
        ([folder, "fp32", "many"], [5], "MAX_NEW_TOKENS is many, not a number"),
        ([], [5], "give a folder"),
    ):
        done = doge(*arguments, ids=ids)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and said in done.stderr
