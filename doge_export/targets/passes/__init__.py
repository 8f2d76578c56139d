"""Passes over the graph, one idea a file; a target is a list of them."""
