"""Whole commands: export (`onnx`), graphs in fewer bits (`quantize`), rewrite of a checkpoint (`convert`)."""
