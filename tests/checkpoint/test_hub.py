"""Hub ids, against a hub on the loopback interface, with the real client library in a process of its own."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_files import save_checkpoint
from hub_server import TOKEN, HubServer
from safetensors.torch import save_file

from doge_export.checkpoint import open_checkpoint
from doge_export.package import verify_files

CLIENT = Path(__file__).with_name("hub_client.py")


def environment(endpoint, home, **extra):
    """Ours without anything that would steer huggingface_hub, and with a home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    direct = {name: "" for name in kept if name.lower().endswith("_proxy")}
    return kept | direct | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONWARNINGS": "ignore"} | extra


class Client:
    """A client process; every call says which cache it uses, or None for the one in `home`."""

    def __init__(self, endpoint, home, **extra):
        self.log = home / "stderr.txt"
        self.process = subprocess.Popen(
            [sys.executable, str(CLIENT)],
            env=environment(endpoint, home, **extra),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
        )

    def __call__(self, model, cache_dir, **arguments):
        cache_dir = None if cache_dir is None else str(cache_dir)
        self.process.stdin.write(json.dumps({"model": model, "cache_dir": cache_dir, **arguments}) + "\n")
        self.process.stdin.flush()
        outcome = json.loads(self.process.stdout.readline())
        assert self.log.read_text() == ""  # neither bars nor warnings beside our one line
        assert "\n" not in outcome.get("error", "") and TOKEN not in outcome.get("error", "")
        return outcome


@pytest.fixture(scope="module")
def server():
    server = HubServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def start_client(tmp_path_factory):
    """Starts a client of an endpoint with a home of its own; it lives as long as the module."""
    clients = []

    def start(endpoint, **extra):
        clients.append(Client(endpoint, tmp_path_factory.mktemp("home"), **extra))
        return clients[-1]

    yield start
    for client in clients:
        client.process.stdin.close()
    for client in clients:
        assert client.process.wait(timeout=20) == 0


@pytest.fixture(scope="module")
def client(server, start_client):
    return start_client(server.endpoint)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint folder with what repositories hold besides: code, pickles, other checkpoints, documentation."""
    folder = save_checkpoint(tmp_path_factory.mktemp("published"))
    for name in ("modeling_doge.py", "pytorch_model.bin", "README.md", "training_args.bin", "tokenizer.json"):
        (folder / name).write_bytes(b"{}")
    (folder / "checkpoint-5").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "checkpoint-5")
    return folder


@pytest.fixture
def weights(published):
    """The digest that the client reports for the weights of `published`."""
    return digest_of(published)


def digest_of(folder):
    tensors = open_checkpoint(folder).tensors
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


def test_default_revision(server, client, published, weights, tmp_path):
    repository = server.add("owner/plain", published)
    outcome = client("owner/plain", tmp_path)
    assert outcome["revision"] == repository.names["main"] and len(outcome["revision"]) == 40
    assert outcome["weights"] == weights
    assert Path(outcome["folder"]).is_relative_to(tmp_path)


def test_only_data_is_downloaded(server, client, published, tmp_path):
    server.add("owner/only-data", published)
    outcome = client("owner/only-data", tmp_path)
    data = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert outcome["files"] == data
    assert sorted(server.files_asked_for("owner/only-data")) == data
    cached = [file for file in tmp_path.rglob("*") if file.suffix in (".py", ".bin", ".md")]
    assert cached == []


def test_named_chat_templates_are_downloaded_and_no_other_folder(server, client, published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "source")
    named = ["additional_chat_templates/rag.jinja"]
    other = ["add/x.safetensors", "additional_chat_templates2/x.jinja", "additional_chat_templates/deep/x.jinja"]
    for name in (*named, "additional_chat_templates/notes.txt", *other):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("{}")
    server.add("owner/templates", folder)
    outcome = client("owner/templates", tmp_path / "cache")
    asked = server.files_asked_for("owner/templates")
    assert [name for name in asked if "/" in name] == named
    assert (Path(outcome["folder"]) / named[0]).is_file()


def test_named_revision_and_full_sha(server, client, published, tmp_path):
    other = save_checkpoint(tmp_path / "other", mlp_bias=True)
    repository = server.add("owner/tagged", published, tags={"v1": other})
    tagged = client("owner/tagged", tmp_path / "cache", revision="v1")
    assert tagged["revision"] == repository.names["v1"] != repository.names["main"]
    assert tagged["weights"] == digest_of(other)
    by_sha = client("owner/tagged", tmp_path / "cache", revision=repository.names["v1"])
    assert by_sha == tagged


def test_unknown_revision(server, client, published, tmp_path):
    server.add("owner/plain", published)
    outcome = client("owner/plain", tmp_path, revision="v9")
    assert outcome["error"].startswith("'owner/plain' has no revision 'v9' on the hub: check --revision")


def test_sharded(server, client, tmp_path):
    folder = save_checkpoint(tmp_path / "sharded", shard="40KB")
    server.add("owner/sharded", folder)
    outcome = client("owner/sharded", tmp_path / "cache")
    assert outcome["weights"] == digest_of(folder)
    assert len([file for file in outcome["files"] if file.startswith("model-0000")]) > 2


def test_private_repository(server, client, published, weights, tmp_path):
    server.add("owner/private", published, private=True)
    without = client("owner/private", tmp_path / "a")
    assert without["error"] == (
        "the hub shows no 'owner/private': check the id, and pass --token if the repository is private"
    )
    wrong = client("owner/private", tmp_path / "b", token="hf_wrong")
    assert wrong["error"] == "the hub shows no 'owner/private' to this token: check the id and --token"
    assert client("owner/private", tmp_path / "c", token=TOKEN)["weights"] == weights


def test_unknown_repository(client, tmp_path):
    without = client("owner/nowhere", tmp_path)["error"]
    assert without.startswith("the hub shows no 'owner/nowhere': check the id")
    with_token = client("owner/nowhere", tmp_path, token=TOKEN)["error"]
    assert with_token.startswith("the hub shows no 'owner/nowhere' to this token")


def test_gated_repository(server, client, published, tmp_path):
    server.add("owner/gated", published, gated=True)
    assert client("owner/gated", tmp_path)["error"].startswith("'owner/gated' is gated: accept its terms")


def test_forbidden(server, client, published, tmp_path):
    server.add("owner/forbidden", published, status=403)
    assert client("owner/forbidden", tmp_path)["error"].startswith("the hub shows no 'owner/forbidden'")


def test_hub_out_of_order(server, client, published, tmp_path):
    server.add("owner/busy", published, status=500)
    assert client("owner/busy", tmp_path)["error"].startswith("the hub answered 500 for 'owner/busy'")


def test_no_config(server, client, published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "no-config")
    (folder / "config.json").unlink()
    server.add("owner/no-config", folder)
    outcome = client("owner/no-config", tmp_path / "cache")
    assert outcome["error"].startswith("'owner/no-config' has no config.json")


def test_another_model_is_refused_before_its_weights_are_downloaded(server, client, published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "llama")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    server.add("owner/llama", folder)
    assert 'model_type is "llama"' in client("owner/llama", tmp_path / "cache")["error"]
    assert "model.safetensors" not in server.files_asked_for("owner/llama")


def test_pickled_weights_only(server, client, published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    server.add("owner/pickled", folder)
    outcome = client("owner/pickled", tmp_path / "cache")
    assert outcome["error"].startswith("'owner/pickled' has only pickled weights (pytorch_model.bin), which can run")
    assert "pytorch_model.bin" not in server.files_asked_for("owner/pickled")


def test_no_weights(server, client, published, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    shutil.copy(published / "config.json", folder)
    server.add("owner/empty", folder)
    assert client("owner/empty", tmp_path / "cache")["error"].startswith("'owner/empty' has neither model.safetensors")
    # What else the repository has, only the hub could tell.
    offline = client("owner/empty", tmp_path / "cache", offline=True)
    assert "is not complete in the local cache and downloading is switched off" in offline["error"]


def test_missing_shard(server, client, tmp_path):
    folder = save_checkpoint(tmp_path / "sharded", shard="40KB")
    lost = sorted(folder.glob("model-*"))[1]
    lost.unlink()
    server.add("owner/lost-shard", folder)
    assert f"{lost.name} is missing" in client("owner/lost-shard", tmp_path / "cache")["error"]


class TestBrokenTransfer:
    def test_a_dropped_connection_is_resumed(self, server, client, tmp_path):
        """The client keeps what it has in pieces of 10 MiB, so the file must be larger than one."""
        folder = save_checkpoint(tmp_path / "large", vocab_size=24_000)
        size = (folder / "model.safetensors").stat().st_size
        server.add("owner/dropped-once", folder, drop_after=[size - 1000])
        outcome = client("owner/dropped-once", tmp_path / "cache")
        assert outcome["weights"] == digest_of(folder)
        assert server.files_asked_for("owner/dropped-once").count("model.safetensors") == 2
        assert server.ranges == [f"bytes={10 * 2**20}-"]

    def test_a_connection_that_always_drops(self, server, client, published, weights, tmp_path):
        repository = server.add("owner/dropped", published, drop_after=[1000, 0])
        outcome = client("owner/dropped", tmp_path)
        assert outcome["error"].startswith("downloading 'owner/dropped' failed (RemoteProtocolError: ")
        assert "run the command again" in outcome["error"]
        # Nothing of the broken file counts as downloaded, and the next run starts over.
        offline = client("owner/dropped", tmp_path, offline=True)
        assert offline["error"].startswith("'owner/dropped' at revision")
        assert list(tmp_path.rglob("*.safetensors")) == []
        repository.drop_after = []
        assert client("owner/dropped", tmp_path)["weights"] == weights

    def test_a_body_that_is_too_short(self, server, client, published, tmp_path):
        server.add("owner/short", published, spoil=lambda body: body[:-100])
        assert client("owner/short", tmp_path)["error"].startswith("downloading 'owner/short' failed (")
        assert list(tmp_path.rglob("*.safetensors")) == []

    def test_a_flipped_bit_that_leaves_a_plausible_weight(self, server, client, published, weights, tmp_path):
        repository = server.add("owner/flipped", published, spoil=lambda body: body[:-4] + b"\1" + body[-3:])
        error = client("owner/flipped", tmp_path)["error"]
        assert error.startswith(
            "model.safetensors in the download cache is damaged (its sha256 differs from the hub's)"
        )
        # The advice of the message works.
        repository.spoil = bytes
        Path(error.split("delete ")[1].split(" and run")[0]).unlink()
        assert client("owner/flipped", tmp_path)["weights"] == weights


class TestOffline:
    def test_with_a_cached_copy(self, server, client, published, weights, tmp_path):
        repository = server.add("owner/cached", published)
        online = client("owner/cached", tmp_path)
        before = len(server.requests)
        offline = client("owner/cached", tmp_path, offline=True)
        assert offline == online
        assert offline["weights"] == weights
        assert client("owner/cached", tmp_path, offline=True, revision=repository.names["main"]) == online
        assert len(server.requests) == before

    def test_without_a_cached_copy(self, server, client, published, tmp_path):
        server.add("owner/uncached", published)
        before = len(server.requests)
        outcome = client("owner/uncached", tmp_path, offline=True)
        assert outcome["error"] == (
            "'owner/uncached' is not complete in the local cache and downloading is switched off:"
            " run once without --offline (or HF_HUB_OFFLINE), or check --cache-dir"
        )
        assert len(server.requests) == before

    def test_another_revision_is_cached(self, server, client, published, tmp_path):
        server.add("owner/cached", published)
        client("owner/cached", tmp_path)
        outcome = client("owner/cached", tmp_path, offline=True, revision="v1")
        assert outcome["error"].startswith("'owner/cached' at revision 'v1' is not complete in the local cache")

    def test_weights_removed_from_the_cache(self, server, client, published, tmp_path):
        server.add("owner/cached", published)
        online = client("owner/cached", tmp_path)
        (Path(online["folder"]) / "model.safetensors").unlink()
        outcome = client("owner/cached", tmp_path, offline=True)
        assert "is not complete in the local cache" in outcome["error"]

    def test_switched_off_by_the_environment(self, server, start_client, published):
        server.add("owner/plain", published)
        switched_off = start_client(server.endpoint, HF_HUB_OFFLINE="1")
        error = switched_off("owner/plain", None)["error"]
        assert "is not complete in the local cache and downloading is switched off" in error

    def test_hub_out_of_reach(self, server, client, start_client, published, tmp_path):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
        unreachable = start_client(dead)
        error = unreachable("owner/plain", tmp_path / "empty")["error"]
        assert error.startswith("downloading 'owner/plain' failed (ConnectError: ")
        assert "pass --offline to use a cached copy" in error
        server.add("owner/plain", published)
        online = client("owner/plain", tmp_path / "full")
        assert unreachable("owner/plain", tmp_path / "full") == online


def test_cache_folder_that_cannot_be(server, client, published, tmp_path):
    server.add("owner/plain", published)
    (tmp_path / "file").write_text("")
    error = client("owner/plain", tmp_path / "file")["error"]
    assert error.startswith("cannot keep the download of 'owner/plain' (") and "--cache-dir" in error


def test_an_adapter_and_its_base_model(server, client, published, tmp_path):
    base = server.add("owner/base", published)
    folder = tmp_path / "adapter"
    folder.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj."
    torch.manual_seed(0)
    tensors = {f"{name}lora_A.weight": torch.randn(2, 64), f"{name}lora_B.weight": torch.randn(64, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "owner/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    server.add("owner/adapter", folder)
    alone = client("owner/adapter", tmp_path / "cache")
    assert alone["revision"] == base.names["main"]
    assert any("LoRA adapter" in note for note in alone["notes"])
    named = client("owner/base", tmp_path / "cache", adapter="owner/adapter")
    assert named["weights"] == alone["weights"] != client("owner/base", tmp_path / "cache")["weights"]
    missing = client("owner/base", tmp_path / "cache", adapter="owner/no-adapter")
    assert missing["error"].startswith("the hub shows no 'owner/no-adapter'")


def test_a_half_filled_cache_is_told_offline_and_filled_online(server, client, published, tmp_path):
    server.add("owner/half", published)
    folder = Path(client("owner/half", tmp_path)["folder"])
    (folder / "tokenizer.json").unlink()
    told = "tokenizer.json is missing: the exported folder will take token ids only"
    assert client("owner/half", tmp_path, offline=True)["notes"][0].startswith(told)
    for listing in tmp_path.rglob("trees/*.json"):  # which transformers does not leave in a cache that it fills
        listing.unlink()
    assert client("owner/half", tmp_path, offline=True)["notes"][0].startswith(told)
    assert "tokenizer.json" in client("owner/half", tmp_path)["files"]


def test_a_vocabulary_is_fetched_where_there_is_no_tokenizer(server, client, published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "model")
    (folder / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    (folder / "merges.txt").write_text("a b")
    server.add("owner/both", folder)
    assert "vocab.json" not in client("owner/both", tmp_path / "a")["files"]
    (folder / "tokenizer.json").unlink()
    server.add("owner/vocabulary", folder)
    outcome = client("owner/vocabulary", tmp_path / "b")
    assert "is made by transformers" in outcome["notes"][0]
    assert client("owner/vocabulary", tmp_path / "b", offline=True) == outcome


def test_an_export_is_fetched_by_its_id(server, client, published, exported, tmp_path):
    folder = shutil.copytree(exported(max_length=32), tmp_path / "export")
    (folder / "onnx" / "not_in_the_manifest.py").write_text("")
    server.add("owner/doge-onnx", folder)
    fetched = Path(client("owner/doge-onnx", None, export=True)["folder"])
    assert verify_files(fetched) == []
    assert not list(fetched.rglob("*.py"))
    assert client("owner/doge-onnx", None, export=True)["folder"] == str(fetched)
    error = client("owner/doge-onnx", tmp_path / "cache")["error"]
    assert error.startswith("'owner/doge-onnx' is an exported folder, not a checkpoint: `doge-export generate owner")
    server.add("owner/model", published)
    assert "`doge-export onnx owner/model OUT` exports it" in client("owner/model", None, export=True)["error"]


@pytest.mark.parametrize("option", [{"revision": "\udcff"}, {"token": "hf_\udcff"}])
def test_options_that_are_no_text(server, client, published, tmp_path, option):
    server.add("owner/plain", published)
    error = client("owner/plain", tmp_path, **option)["error"]
    assert "--revision" in error and "\udcff" not in error
