"""Whole commands: a checkpoint becomes a validated folder (`onnx`), or a checkpoint in today's layout (`convert`)."""
