"""Weights in fewer bits: chosen, packed, and judged against the float32 graph."""
