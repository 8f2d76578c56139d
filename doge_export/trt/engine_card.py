"""The README.md of an engine's folder: what the engine is, where it runs, and how it compares with PyTorch."""

from __future__ import annotations

from pathlib import Path

from doge_export.package import Manifest, validation_line
from doge_export.plugin.tensorrt_versions import dotted
from doge_export.runtime.engine.kinds import KINDS, RTX
from doge_export.runtime.engine.sidecar import Sidecar


def write_card(folder: Path, manifest: Manifest, sidecar: Sidecar) -> None:
    """Write README.md into `folder`; `manifest.files` may be empty."""
    calls = (
        f"It calls the plugin of doge-export ({sidecar.plugin['name']}): `doge-export plugin build`."
        if (sidecar.plugin and not sidecar.plugin_embedded)
        else "It needs no plugin."
    )
    name, kind = Path(manifest.source.model).name, KINDS[sidecar.builder]
    text = f"""# {name} as an engine of {kind.title}

Made by doge-export {manifest.doge_export} from `{name}`: {sidecar.precision}, attention by {sidecar.attention}, up
to {sidecar.max_batch} rows of {sidecar.max_length} tokens.

- {_built(sidecar)}
- {calls}{_cache(manifest)}
- against PyTorch: {validation_line(manifest)}

With this folder as `out`, once doge-export is installed (`pip install ".[{kind.extra}]"` in a clone of its repository):

    doge-export generate out "Once upon a time"
    doge-export chat out
    doge-export validate out

`engine/engine.json` names inputs, outputs, profiles and caches; an engine holds code: open only one you trust.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def _cache(manifest: Manifest) -> str:
    """Return a line that says of bounded caches what they hold; nothing of others."""
    if manifest.cache != "bounded":
        return ""
    return (
        f"\n- its caches are bounded, exactly: each layer and head holds the "
        f"{manifest.architecture.get('keep_window_size')} keys that a later token may\n  attend to, at any length"
    )


def _built(sidecar: Sidecar) -> str:
    """Return what built the engine, for which GPUs."""
    title = f"{KINDS[sidecar.builder].title} {sidecar.tensorrt}"
    capabilities = ", ".join(map(dotted, sidecar.compute_capabilities))
    if sidecar.builder == RTX.name:
        return (
            f"built by {title} for GPUs of compute capability {capabilities}; the first start on a GPU\n  compiles it "
            "for that GPU"
        )
    return f"built by {title} on {sidecar.gpu}, compute capability\n  {capabilities}; `--hw-compat {sidecar.hardware}`"
