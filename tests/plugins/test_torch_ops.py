"""What `register` puts behind torch.ops.doge gives what PyTorch's operators give. Here on the CPU, by the reference."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys

import torch

from doge_export.assets import bundled
from doge_export.checkpoint import open_checkpoint
from doge_export.model import DogeForExport, operators
from doge_export.plugin.library import KernelLibrary
from doge_export.plugin.torch_ops import register

IDS = torch.arange(40).reshape(2, 20) + 5


class Subject:
    def __init__(self, name):
        checkpoint = open_checkpoint(bundled(name))
        self.architecture = checkpoint.architecture
        self.model = DogeForExport.from_tensors(checkpoint.architecture, checkpoint.tensors)
        self.is_token = torch.ones_like(IDS)
        if self.architecture.moe is None:  # its routing mixes tokens, and what padding gives is not specified
            self.is_token[0, :7] = 0

    def run(self):
        is_token, positions = self.is_token, (self.is_token.cumsum(1) - 1).clamp_min(0)
        first, cache = self.model(IDS[:, :19], is_token[:, :19], positions[:, :19])
        last, cache = self.model(IDS[:, 19:], is_token[:, 19:], positions[:, 19:], cache)
        return torch.cat([first, last], dim=1)[is_token.bool()], cache


class Counting(KernelLibrary):
    calls = []

    def attention(self, *arguments, **options):
        self.calls.append("attention")
        return super().attention(*arguments, **options)

    def cdmoe(self, *arguments, **options):
        self.calls.append("cdmoe")
        return super().cdmoe(*arguments, **options)


def check(subject, expected, expected_cache):
    Counting.calls.clear()
    with torch.no_grad():
        actual, cache = subject.run()
        calls = list(Counting.calls)
        with operators.dynamic_mask_attention.set_kernel_enabled("cpu", False):
            with operators.cdmoe.set_kernel_enabled("cpu", False):
                assert torch.equal(subject.run()[0], expected)
    assert Counting.calls == calls
    layers, moe = subject.architecture.num_hidden_layers, subject.architecture.moe
    assert calls.count("attention") == 2 * layers, calls
    assert calls.count("cdmoe") == (2 * layers if moe else 0), calls
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)
    for layer, expected_layer in zip(cache, expected_cache):
        for tensor, wanted in zip(layer, expected_layer):
            real = subject.is_token.bool()[:, None, :]
            real = real if tensor.ndim == 3 else real[..., None]
            torch.testing.assert_close(tensor.where(real, 0), wanted.where(real, 0), rtol=1e-4, atol=2e-5)

    # Gradients go through PyTorch's own body, whatever runs forward.
    subject.model.train()
    subject.run()[0].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in subject.model.parameters() if p.requires_grad)


subjects = [Subject("doge-nano"), Subject("doge-nano-moe")]
with torch.no_grad():
    expected = [subject.run() for subject in subjects]
register(Counting(sys.argv[1]), "cpu")
for subject, (logits, cache) in zip(subjects, expected):
    check(subject, logits, cache)
"""


def test_models_run_on_the_library(library):
    """In a process of its own: an operator keeps what is registered."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, library.path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
