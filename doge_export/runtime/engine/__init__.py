"""Runs a TensorRT engine.

`sidecar` says what an engine is, `open_engine` opens it, `runner` runs it in `buffers` on a `device`, and `decoder` is
what sessions see. Nothing here imports TensorRT or CUDA before an engine is opened.
"""
