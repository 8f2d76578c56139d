"""Limits and defaults that the command line, the plan and the lint share. Imports nothing, so that --help is fast."""

MAX_TOP_K = 3840
"""The largest K of TensorRT's TopK layer."""
MAX_ELEMENTS = 2**31 - 1
"""The most elements of a tensor, which TensorRT counts in 31 bits."""

CANDIDATES = 64
"""Default number of best next tokens: more than the 50 that transformers samples from by default."""
MAX_LOGITS = 64
"""Default number of tokens of a row whose logits one run may give."""
MAX_PROMPT = 4096
"""Default for the tokens of a prompt that must be read whole, where caches are bounded and texts are not."""
