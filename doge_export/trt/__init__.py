"""TensorRT engines: planned and checked anywhere, built and run where TensorRT and a GPU are.

`plan_engine` decides what an engine will be, `lint` finds what TensorRT would refuse, `builder` builds the engine and
`make` does all of it into a folder. `runtime.engine` opens the folder and runs the engine.
"""
