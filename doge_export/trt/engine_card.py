"""The README.md of an engine's folder: what the engine is, where it runs, and how it compares with PyTorch."""

from __future__ import annotations

from pathlib import Path

from doge_export.package import Manifest, validation_line
from doge_export.plugin.tensorrt_versions import dotted
from doge_export.runtime.engine.sidecar import Sidecar


def write_card(folder: Path, manifest: Manifest, sidecar: Sidecar) -> None:
    """Write README.md into `folder`; `manifest.files` may be empty."""
    calls = (
        f"It calls the plugin of doge-export ({sidecar.plugin['name']}): `doge-export plugin build`."
        if (sidecar.plugin and not sidecar.plugin_embedded)
        else "It needs no plugin."
    )
    name = Path(manifest.source.model).name
    text = f"""# {name} as a TensorRT engine

Made by doge-export {manifest.doge_export} from `{name}`: {sidecar.precision}, attention by {sidecar.attention}, up
to {sidecar.max_batch} rows of {sidecar.max_length} tokens.

- built by TensorRT {sidecar.tensorrt} on {sidecar.gpu}, compute capability
  {dotted(sidecar.compute_capability)}; `--hw-compat {sidecar.hardware}`
- {calls}
- against PyTorch: {validation_line(manifest)}

With this folder as `out`, once doge-export is installed (`pip install ".[trt]"` in a clone of its repository):

    doge-export generate out "Once upon a time"
    doge-export chat out
    doge-export validate out

`engine/engine.json` names inputs, outputs, profiles and caches; an engine holds code: open only one you trust.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
