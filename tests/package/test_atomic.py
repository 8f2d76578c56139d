import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from doge_export.errors import DogeExportError
from doge_export.package import atomic, refuse_output, staged_folder
from doge_export.package.fingerprint import names_in

needs_signals = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and locks")


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(output: Path, text: str = "new", **options) -> None:
    with staged_folder(output, **{"recorded": names_in, **options}) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text(text)


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that runs `code`; whatever it prints first shows that it got there."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_output_appears_only_at_the_end(tmp_path):
    output = tmp_path / "out"
    with staged_folder(output) as folder:
        (folder / "file").write_text("x")
        assert folder.parent == tmp_path
        assert not output.exists()
    assert entries(tmp_path) == ["out"]
    assert (output / "file").read_text() == "x"


def test_missing_parents_are_made(tmp_path):
    write(tmp_path / "a" / "b" / "out")
    assert (tmp_path / "a" / "b" / "out" / "sub" / "file").read_text() == "new"


@needs_signals
def test_what_another_user_left_is_left_alone(tmp_path, monkeypatch):
    theirs = tmp_path / ".out.1.doge-export-tmp"
    theirs.mkdir()
    opened = os.open

    def refusing(path, *arguments, **options):
        if Path(os.fsdecode(path)) == theirs:
            raise PermissionError(13, "permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    write(tmp_path / "out")
    assert entries(tmp_path) == [theirs.name, "out"]


def test_empty_output_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert entries(tmp_path / "out") == ["sub"]


@pytest.mark.skipif(os.name == "nt", reason="Windows makes a folder beside the home directory of it")
def test_output_below_the_home_of_nobody():
    with pytest.raises(DogeExportError, match=r"~nosuch/out: there is no such home directory; choose another folder$"):
        refuse_output(Path("~nosuch/out"), force=False)


@pytest.mark.parametrize("force", [False, True])
def test_output_with_a_name_that_is_too_long(tmp_path, force):
    with pytest.raises(DogeExportError, match=r"cannot be used: .*; choose another folder$") as caught:
        refuse_output(tmp_path / ("x" * 300), force=force)
    assert "\n" not in str(caught.value)
    assert entries(tmp_path) == []


def test_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    write(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert entries(tmp_path / "real") == ["sub"]


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing(tmp_path, raised):
    with pytest.raises(raised), staged_folder(tmp_path / "a" / "out") as folder:
        (folder / "file").write_text("half")
        raise raised
    assert entries(tmp_path) == []


def test_failure_leaves_the_old_output(tmp_path):
    output = tmp_path / "out"
    write(output, "old")
    with pytest.raises(ValueError, match="broken"), staged_folder(output, force=True, recorded=names_in) as folder:
        (folder / "file").write_text("half")
        raise ValueError("broken")
    assert entries(tmp_path) == ["out"]
    assert (output / "sub" / "file").read_text() == "old"


def test_non_empty_output_needs_force(tmp_path):
    output = tmp_path / "out"
    write(output, "old")
    with pytest.raises(DogeExportError, match=r"is not empty.*--force"):
        write(output)
    assert (output / "sub" / "file").read_text() == "old"
    write(output, force=True)
    assert (output / "sub" / "file").read_text() == "new"
    assert entries(tmp_path) == ["out"]


def test_output_filled_meanwhile_is_not_replaced(tmp_path):
    output = tmp_path / "out"
    with pytest.raises(DogeExportError, match="filled meanwhile"), staged_folder(output):
        output.mkdir()
        (output / "theirs").write_text("x")
    assert entries(tmp_path) == ["out"]
    assert entries(output) == ["theirs"]


def test_file_as_output(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(DogeExportError, match="out is a file; choose another folder"):
        write(tmp_path / "out", force=True)
    assert (tmp_path / "out").read_text() == "x"


def test_file_as_parent(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DogeExportError, match="file is a file; choose another folder"):
        write(tmp_path / "file" / "out")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write: /proc")
def test_unwritable_parent():
    with pytest.raises(DogeExportError, match=r"cannot create a folder in /proc: .*; choose"):
        write(Path("/proc/out"))


@pytest.mark.parametrize("force", [False, True])
def test_current_directory_is_never_replaced(tmp_path, monkeypatch, force):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for output in (Path(), tmp_path):
        with pytest.raises(DogeExportError, match="current directory"):
            write(output, force=force)
    assert entries(tmp_path) == ["here"]


def test_root_is_never_replaced():
    with pytest.raises(DogeExportError, match="current directory or holds it"):
        write(Path("/"), force=True)


@pytest.mark.parametrize("home", ["home", "home/user"])
def test_force_spares_home(tmp_path, monkeypatch, home):
    (tmp_path / "home" / "user").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / home))
    (tmp_path / home / "letters").write_text("x")
    with pytest.raises(DogeExportError, match="home directory"):
        write(tmp_path / "home", force=True)
    assert (tmp_path / home / "letters").exists()


def test_force_spares_a_repository(tmp_path):
    (tmp_path / "out" / ".git").mkdir(parents=True)
    with pytest.raises(DogeExportError, match="git repository"):
        write(tmp_path / "out", force=True)
    assert entries(tmp_path / "out") == [".git"]


def test_force_spares_what_is_being_read(tmp_path):
    (tmp_path / "out" / "model").mkdir(parents=True)
    with pytest.raises(DogeExportError, match="which is being read"):
        write(tmp_path / "out", force=True, protected=[tmp_path / "out" / "model"])
    assert entries(tmp_path / "out") == ["model"]


HOLD = """
import sys, time
from doge_export.package import staged_folder
from doge_export.package.fingerprint import names_in
with staged_folder(sys.argv[1], force=True, recorded=names_in) as folder:
    (folder / "file").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@needs_signals
def test_killed_run_is_tidied_by_the_next(tmp_path):
    output = tmp_path / "out"
    write(output, "old")
    process = start(HOLD, output)
    kill(process)
    assert entries(tmp_path) == [f".out.{process.pid}.doge-export-tmp", "out"]
    assert (output / "sub" / "file").read_text() == "old"
    write(output, "new", force=True)
    assert entries(tmp_path) == ["out"]
    assert (output / "sub" / "file").read_text() == "new"


@needs_signals
def test_killed_run_is_tidied_even_when_its_process_id_is_taken_again(tmp_path):
    leftover = tmp_path / f".out.{os.getppid()}.doge-export-tmp"
    leftover.mkdir()
    (leftover / "file").write_text("half")
    write(tmp_path / "out")
    assert entries(tmp_path) == ["out"]


@needs_signals
def test_live_run_is_left_alone(tmp_path):
    output = tmp_path / "out"
    process = start(HOLD, output)
    try:
        write(output)
        assert entries(tmp_path) == [f".out.{process.pid}.doge-export-tmp", "out"]
    finally:
        kill(process)


def test_leftovers_of_other_outputs_are_left_alone(tmp_path):
    strangers = [".outer.1.doge-export-tmp", ".out.1.tmp", ".out.x.doge-export-tmp"]
    for name in strangers:
        (tmp_path / name).mkdir()
    write(tmp_path / "out")
    assert entries(tmp_path) == sorted([*strangers, "out"])


KILLED_IN_THE_SWAP = """
import os, sys, time
from pathlib import Path
from doge_export.package import atomic, staged_folder
from doge_export.package.fingerprint import names_in
atomic.exchange = lambda one, other: False  # as where the system has no such call
rename, renames = Path.rename, []
def stop_at_the_second(self, target):
    renames.append(self)
    if len(renames) == int(sys.argv[2]):
        print("ready", flush=True)
        time.sleep(60)
    return rename(self, target)
Path.rename = stop_at_the_second
with staged_folder(sys.argv[1], force=True, recorded=names_in) as folder:
    (folder / "file").write_text("new")
"""


@needs_signals
@pytest.mark.parametrize("rename", [1, 2])
def test_run_killed_while_replacing_is_undone_by_the_next(tmp_path, rename):
    output = tmp_path / "out"
    write(output, "old")
    kill(start(KILLED_IN_THE_SWAP, output, rename))
    assert output.exists() == (rename == 1)
    with pytest.raises(DogeExportError, match="is not empty"):
        write(output)
    assert entries(tmp_path) == ["out"]
    assert (output / "sub" / "file").read_text() == "old"


@needs_signals
def test_failing_swap_restores_the_old_output(tmp_path, monkeypatch):
    output = tmp_path / "out"
    write(output, "old")
    rename = Path.rename

    def fail_for_the_new(self, target):
        if self.name.endswith("-tmp"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(atomic, "exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(KeyboardInterrupt):
        write(output, force=True)
    assert entries(tmp_path) == ["out"]
    assert (output / "sub" / "file").read_text() == "old"


@needs_signals
def test_two_runs_of_one_process_do_not_mix(tmp_path):
    with staged_folder(tmp_path / "out"), pytest.raises(DogeExportError, match="another run is writing"):
        write(tmp_path / "out")
    assert entries(tmp_path) == ["out"]


FILL = """
import resource, signal, sys
from doge_export.errors import DogeExportError
from doge_export.package import staged_folder
from doge_export.package.fingerprint import names_in
if sys.argv[2] != "0":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    with staged_folder(sys.argv[1], force=True, recorded=names_in) as folder:
        with (folder / "file").open("wb") as file:
            for _ in range(64):
                file.write(bytes(1 << 16))
except DogeExportError as error:
    print(error, flush=True)
"""


def fill(output: Path, limit: int) -> str:
    return subprocess.run(
        [sys.executable, "-c", FILL, str(output), str(limit)], capture_output=True, text=True, check=True
    ).stdout


@needs_signals
def test_file_size_limit_is_one_line_and_leaves_nothing(tmp_path):
    message = fill(tmp_path / "out", 1 << 18)
    assert message == f"cannot write {tmp_path / 'out'}: file too large; make room there or choose another folder\n"
    assert entries(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_full_disk_is_one_line_and_leaves_nothing(small_disk):
    write(small_disk / "out", "old")
    message = fill(small_disk / "out", 0)
    assert message == (
        f"cannot write {small_disk / 'out'}: no space left on device; make room there or choose another folder\n"
    )
    assert entries(small_disk) == ["out"]
    assert (small_disk / "out" / "sub" / "file").read_text() == "old"


@needs_signals
def test_sigterm_of_the_command_line_cleans_up(tmp_path):
    code = """
    import sys, time
    import click
    from doge_export.cli import main
    from doge_export.package import staged_folder

    @main.command("hold")
    def hold():
        with staged_folder(sys.argv[1]) as folder:
            (folder / "file").write_text("half")
            print("ready", flush=True)
            time.sleep(60)

    main(["hold"])
    """
    process = start(code, tmp_path / "out")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert entries(tmp_path) == []
