"""Run a TensorRT engine.

`sidecar` reads what an engine is, `open_engine` opens it, `runner` runs it in `buffers` on a `device`, and
`engine_decoder` is the decoder that sessions use. Nothing here imports TensorRT or CUDA before an engine is opened.
"""
