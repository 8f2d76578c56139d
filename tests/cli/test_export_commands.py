import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from doge_export.assets import bundled


@pytest.fixture(scope="module")
def model():
    return bundled("doge-nano")


def test_onnx_writes_a_folder_and_says_how_to_use_it(run, model, tmp_path):
    out = tmp_path / "my out"
    result = run("onnx", model, out, "--max-length", 128, "--report", tmp_path / "report.html")
    assert result.exit_code == 0, result.stderr
    folder, verdict, hint = result.stdout.splitlines()
    assert folder.startswith(f"{out}  ")
    assert run("verify", out, "--sha256", folder.split()[-1]).exit_code == 0
    assert verdict.startswith("PASSED")
    assert hint == f"""try: doge-export generate '{out}' "Once upon a time\""""
    assert run("generate", out, "Once upon a time", "--max-new-tokens", 8).stdout.strip()
    assert "tracing" in result.stderr
    assert run("verify", out).exit_code == 0
    assert verdict in run("inspect", out).stdout
    assert "PASSED" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "**PASSED**" in (out / "README.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my out", "report.html"]


def test_onnx_json_without_validation(run, model, tmp_path):
    result = run("onnx", model, tmp_path / "out", "--no-validate", "--target", "portable", "--json", "-q")
    assert result.exit_code == 0
    assert result.stderr == ""
    facts = json.loads(result.stdout)
    assert facts["passed"] is None
    assert facts["manifest"]["target"] == "portable"
    assert facts["manifest"]["validation"] == {"skipped": "--no-validate"}
    assert facts["bytes"] == sum(
        file.stat().st_size
        for file in (tmp_path / "out").rglob("*")
        if file.is_file() and file.name != "doge_export.json"
    )


def test_dry_run_writes_nothing(run, model, tmp_path):
    result = run("onnx", model, tmp_path / "out", "--dry-run", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["max_length"] > 0
    assert "max_length" in run("onnx", model, tmp_path / "out", "--dry-run").stdout
    # Libraries leave caches of their own there.
    assert not [path for path in tmp_path.iterdir() if "doge" in path.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trust-remote-code"], "never run"),
        (["--max-length", "0"], "max length 0"),
        (["--target", "nonsense"], "nonsense"),
        (["--no-validate", "--report", "r.html"], "--report shows the comparison"),
    ],
)
def test_bad_requests_write_nothing(run, model, tmp_path, options, message):
    result = run("onnx", model, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    # Libraries leave caches of their own there.
    assert not [path for path in tmp_path.iterdir() if "doge" in path.name]


def test_occupied_output_is_untouched(run, model, tmp_path):
    (tmp_path / "notes").write_text("mine")
    result = run("onnx", model, tmp_path)
    assert result.exit_code == 2
    assert result.stderr.endswith("is not empty; choose another folder, or replace it with --force\n")
    assert (tmp_path / "notes").read_text() == "mine"


def test_force_does_not_delete_the_checkpoint(run, model, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    for out in (tmp_path / "model", tmp_path):
        result = run("onnx", tmp_path / "model", out, "--force")
        assert result.exit_code == 2
        assert "which is being read" in result.stderr
    assert (tmp_path / "model" / "model.safetensors").exists()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -9)])
def test_interruption_leaves_at_most_a_sibling_that_the_next_run_removes(run, start, model, tmp_path, name, code):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes").write_text("mine")
    (out / "doge_export.json").write_text('{"doge_export": "0", "files": {"notes": {}}}')
    process = start("onnx", model, out, "--force", "--no-validate")
    while b"tracing" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=60)
    assert process.returncode == code
    assert (out / "notes").read_text() == "mine"
    left = [f".out.{process.pid}.doge-export-tmp"] if name == "SIGKILL" else []
    assert sorted(path.name for path in tmp_path.iterdir()) == [*left, "out"]
    if name == "SIGKILL":
        assert run("onnx", model, out, "--force", "--no-validate").exit_code == 0
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_file_system_that_does_not_take_the_graph(start, model, tmp_path):
    """A limit on the size of a file stands in for a full disk, which only root can mount (tests/package)."""
    import resource

    limit = 1 << 20
    process = start(
        "onnx", model, tmp_path / "a" / "out", "-q", "--no-validate",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    assert stdout == b""
    assert stderr.decode().startswith(f"doge-export: error: cannot write {tmp_path / 'a' / 'out'}: file too large;")
    assert stderr.count(b"\n") == 1
    # Libraries leave caches of their own there.
    assert not [path for path in tmp_path.iterdir() if "doge" in path.name]


@pytest.fixture
def small(task_export):
    """Two layers with a tokenizer: the checkpoint and its export."""
    _, checkpoint, folder = task_export("text-generation")
    return checkpoint, folder


def test_validate_passes(run, small, tmp_path):
    checkpoint, folder = small
    report = tmp_path / "report.html"
    result = run("validate", folder, "--model", checkpoint, "--report", report)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith("PASSED")
    assert "<html" in report.read_text(encoding="utf-8")


def test_validate_fails_with_another_checkpoint(run, small, tmp_path):
    """The same architecture with one weight matrix changed: FAILED, exit code 1."""
    from safetensors.torch import load_file, save_file

    checkpoint, folder = small
    shutil.copytree(checkpoint, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.layers.1.self_attn.o_proj.weight"] *= 1.01
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    result = run("validate", folder, "--model", tmp_path / "model", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["passed"] is False
    text = run("validate", folder, "--model", tmp_path / "model")
    assert text.exit_code == 1
    assert text.stdout.splitlines()[-1].startswith("FAILED")


def test_validate_without_the_checkpoint(run, nano_folder, tmp_path):
    result = run("validate", nano_folder, "--model", tmp_path / "nothing")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_demo(run, tmp_path):
    result = run("demo", "--keep", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    for number in range(1, 6):
        assert f"[{number}/5] " in result.stdout
    assert result.stdout.splitlines()[-1] == f"demo done: everything worked; the folder is {tmp_path / 'out'}"
    assert run("verify", tmp_path / "out").exit_code == 0
    assert json.loads((tmp_path / "out" / "doge_export.json").read_text())["source"]["model"] == "doge-nano"


@pytest.mark.parametrize("max_length", [220, pytest.param(None, marks=pytest.mark.slow)])
def test_demo_of_the_mixture_of_experts_keeps_nothing(run, tmp_path, monkeypatch, max_length):
    """Its reference is fed token by token, so a shorter one is compared by default."""
    if max_length:
        monkeypatch.setattr("doge_export.cli.demo._MAX_LENGTH", max_length)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    result = run("demo", "--moe")
    assert result.exit_code == 0, result.stderr
    assert "doge-nano-moe" in result.stdout
    assert result.stdout.splitlines()[-1] == "demo done: everything worked; nothing was kept"
    # Libraries leave caches of their own there.
    assert not [path for path in tmp_path.iterdir() if "doge" in path.name]


def test_validate_says_which_checkpoint_it_is_about_to_read(run, nano_folder, tmp_path):
    """The folder's manifest names it, and may be anybody's."""
    folder = Path(shutil.copytree(nano_folder, tmp_path / "out"))
    manifest = json.loads((folder / "doge_export.json").read_text())
    manifest["source"] |= {"model": str(tmp_path / "elsewhere"), "revision": None}
    (folder / "doge_export.json").write_text(json.dumps(manifest))
    result = run("validate", folder)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"reading the checkpoint {tmp_path / 'elsewhere'}\ndoge-export: error: ")


def test_an_adapter_is_merged_told_and_left_out(run, checkpoint, tmp_path):
    import json

    import torch
    from safetensors.torch import save_file

    base, adapter = checkpoint(num_hidden_layers=2), tmp_path / "adapter"
    adapter.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj."
    tensors = {f"{name}lora_A.weight": torch.randn(2, 64), f"{name}lora_B.weight": torch.randn(64, 2)}
    save_file(tensors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    planned = run("onnx", base, tmp_path / "out", "--adapter", adapter, "--dry-run", "--json")
    assert json.loads(planned.stdout)["adapter"] == str(adapter)
    assert "the LoRA adapter of" in planned.stderr and "is merged: 1 modules" in planned.stderr
    plain = run("onnx", base, tmp_path / "out", "--adapter", "none", "--dry-run", "--json")
    assert json.loads(plain.stdout)["adapter"] is None
    missing = run("onnx", base, tmp_path / "out", "--adapter", tmp_path / "nowhere", "--dry-run")
    assert missing.exit_code == 2 and "there is no such folder" in missing.stderr
