"""The models and targets that `--cache bounded` is refused for, each with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from doge_export.errors import DogeExportError

if TYPE_CHECKING:
    from doge_export.checkpoint.architecture import Architecture
    from doge_export.targets import Target


def check_bounded(target: Target, architecture: Architecture, max_length: int) -> None:
    """Refuse a bounded cache where it would not be exact, or could not be built.

    Raises:
        DogeExportError: the target has no bounded cache, or the model's later tokens may need any earlier key.
    """
    a, which = architecture, f"{architecture.generation} of Doge"
    if a.task != "text-generation":
        raise DogeExportError(f"--cache bounded is for text-generation, this is {a.task}: it has no cache; drop it")
    if target.bounded_interface is None:
        raise DogeExportError(
            f"target {target.name} has no bounded cache yet: export for onnxruntime or portable, or drop "
            "--cache bounded"
        )
    if a.ratio_mask is not None:
        raise DogeExportError(
            f"--cache bounded would not be exact for {which}: dynamic_mask_ratio ranks all keys anew as the text "
            "grows, so a key left out may come back; drop it"
        )
    if a.score == "threshold" or a.keep_window_size == 0:
        raise DogeExportError(
            f"--cache bounded has no bound for this {which}: without keep_window_size every token may attend to every "
            "earlier one; drop it"
        )
    if a.score == "none" or a.score_heads != a.num_key_value_heads:
        group = a.num_attention_heads // a.num_key_value_heads
        raise DogeExportError(
            f"--cache bounded needs one score for each of the {a.num_key_value_heads} key/value heads, this {which} "
            f"has {a.score_heads}: each would keep keys of its own, {group} caches in the "
            "place of one; drop it"
        )
    if max_length <= a.keep_window_size:
        raise DogeExportError(
            f"--cache bounded keeps {a.keep_window_size} keys and max length {max_length} needs no more: drop it, or "
            "add --max-length unlimited"
        )
