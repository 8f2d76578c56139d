"""TensorRT engines: planned and checked anywhere, built and run where TensorRT and a GPU are.

Arrows: `plan` decides, `lint` finds what TensorRT would refuse, `builder` builds, `sidecar` says what was built,
`engine` opens it, `runner` runs it in `buffers` on a `device`, `decoder` is what sessions see; `make` is all of it.
"""
