"""What `register` puts behind torch.ops.doge gives what PyTorch's operators give. Here on the CPU, by the reference."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys

import torch

from doge_export.assets import bundled
from doge_export.checkpoint import open_checkpoint
from doge_export.model import DogeForExport, operators
from doge_export.plugin.library import KernelLibrary
from doge_export.plugin.torch_ops import register

checkpoint = open_checkpoint(bundled(sys.argv[1]))
model = DogeForExport.from_tensors(checkpoint.architecture, checkpoint.tensors)
ids = torch.arange(40).reshape(2, 20) + 5
is_token = torch.ones_like(ids)
if checkpoint.architecture.moe is None:  # its routing mixes tokens, and what padding gives is not specified
    is_token[0, :7] = 0


def run():
    positions = (is_token.cumsum(1) - 1).clamp_min(0)
    first, cache = model(ids[:, :19], is_token[:, :19], positions[:, :19])
    last, cache = model(ids[:, 19:], is_token[:, 19:], positions[:, 19:], cache)
    return torch.cat([first, last], dim=1)[is_token.bool()], cache


class Counting(KernelLibrary):
    calls = []

    def attention(self, *arguments, **options):
        self.calls.append("attention")
        return super().attention(*arguments, **options)

    def cdmoe(self, *arguments, **options):
        self.calls.append("cdmoe")
        return super().cdmoe(*arguments, **options)


with torch.no_grad():
    expected, expected_cache = run()
    register(Counting(sys.argv[2]), "cpu")
    actual, cache = run()
    calls = list(Counting.calls)
    with operators.dynamic_mask_attention.set_kernel_enabled("cpu", False):
        with operators.cdmoe.set_kernel_enabled("cpu", False):
            assert torch.equal(run()[0], expected)
assert Counting.calls == calls
layers = checkpoint.architecture.num_hidden_layers
assert calls.count("attention") == 2 * layers, calls
assert calls.count("cdmoe") == (2 * layers if checkpoint.architecture.moe else 0), calls
torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)
for layer, expected_layer in zip(cache, expected_cache):
    for tensor, wanted in zip(layer, expected_layer):
        real = is_token.bool()[:, None, :] if tensor.ndim == 3 else is_token.bool()[:, None, :, None]
        torch.testing.assert_close(tensor.where(real, 0), wanted.where(real, 0), rtol=1e-4, atol=2e-5)

# Gradients go through PyTorch's own body, whatever runs forward.
model.train()
run()[0].square().mean().backward()
assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
"""


@pytest.mark.parametrize("name", ["doge-nano", "doge-nano-moe"])
def test_a_model_runs_on_the_library(library, name):
    """In a process of its own: an operator keeps what is registered."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, library.path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
