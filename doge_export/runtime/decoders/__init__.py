"""Decoders: token ids in, logits out, with a cache between calls; one file for each way a graph keeps its caches."""
