"""The native decoder stack of plugins/cpu: its library, and its own form of a folder's weights.

`support` says which models it runs, `graph_weights` finds their matrices in a graph, `weight_file` packs them, `cache`
keeps what was packed, and `interface` declares the C functions. `decoders/native.py` runs them.
"""
