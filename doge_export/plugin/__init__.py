"""The CUDA kernels and the TensorRT plugin: built on the user's machine, loaded, and put behind `torch.ops.doge`.

Arrows: `sources` and `toolchain` find what is needed, `build` compiles it, `library` calls it on tensors, `torch_ops`
makes it what PyTorch runs on a GPU. Only the last two need torch.
"""
