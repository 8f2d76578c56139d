"""The CUDA kernels and the TensorRT plugin: built on the user's machine, loaded, and registered with PyTorch.

`sources` and `toolchain` find what a build needs, `build` compiles it, `library` calls it on tensors, and `torch_ops`
registers it as the CUDA implementation of `torch.ops.doge`. Only the last two need torch.
"""
