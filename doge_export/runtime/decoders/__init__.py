"""Decoders: token ids in, logits out, with a cache between calls. Each way that a graph keeps its cache has a file."""
