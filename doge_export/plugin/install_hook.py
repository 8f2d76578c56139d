"""Build hook of an install: compile the native decoder into the wheel, or into the checkout of an editable install.

hatchling runs it in an environment that has nothing else, so it imports what is of the standard library alone. An
install never fails for want of a compiler: one line says why there is no native decoder. Where zig is at hand, which a
wheel for a named system needs, the modules for pages come along.

Environment variables:
    DOGE_EXPORT_CPU         0 leaves the native decoder out
    DOGE_EXPORT_CPU_TARGET  a name of `cpu_targets.CPU_TARGETS`: the wheel is for that system, compiled by zig; then a
                            failure is an error
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeDecoderHook(BuildHookInterface):
    """Adds the compiled library, and with it the platform's tag, to a wheel."""

    PLUGIN_NAME = "custom"
    _temporary: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel is written."""
        target = os.environ.get("DOGE_EXPORT_CPU_TARGET") or None
        if os.environ.get("DOGE_EXPORT_CPU") == "0":
            self._say("the native decoder is left out, as DOGE_EXPORT_CPU says")
            return
        sys.path.insert(0, self.root)
        try:
            self._compile(version, target, build_data)
        except Exception as error:  # whatever it is, folders run as they did before
            self._tidy()
            if target is not None:
                raise
            reason = " ".join(str(error).split())[:300]
            self._say(f"without the native decoder ({reason}); later: doge-export plugin build --cpu")
        finally:
            sys.path.remove(self.root)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Delete what the wheel now holds."""
        self._tidy()

    def _tidy(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _compile(self, version: str, target: str | None, build_data: dict[str, Any]) -> None:
        from doge_export.plugin.compile_cpu import compile_cpu, describe_build
        from doge_export.plugin.cpp_compiler import find_cpp_compiler
        from doge_export.plugin.cpu_targets import CPU_TARGETS, library_name, wheel_tag
        from doge_export.plugin.sources import native_hash

        root = Path(self.root)
        sources = root / "plugins"
        if target is not None and target not in CPU_TARGETS:
            raise ValueError(f"DOGE_EXPORT_CPU_TARGET is {target}, expected one of {', '.join(CPU_TARGETS)}")
        compiler = find_cpp_compiler(zig=target is not None)
        name = CPU_TARGETS[target].file if target else library_name()
        is_editable = version == "editable"
        if is_editable:
            folder = root / "doge_export" / "_native"
            folder.mkdir(exist_ok=True)
        else:
            folder = self._temporary = Path(tempfile.mkdtemp(prefix="doge-native-"))
        present = native_hash(sources)
        staged = folder / f"{name}.new"
        compile_cpu(sources, staged, compiler, target)
        staged.replace(folder / name)
        self._write_facts(folder, describe_build(present, target, compiler.version))
        self._say(f"the native decoder is compiled by {compiler.version}")
        self._add_modules(folder, present, is_required=target is not None)
        if is_editable:
            return
        for path in (path for path in folder.rglob("*") if path.is_file()):
            build_data["force_include"][str(path)] = f"doge_export/_native/{path.relative_to(folder).as_posix()}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{CPU_TARGETS[target].wheel if target else wheel_tag()}"

    def _add_modules(self, folder: Path, present: str, *, is_required: bool) -> None:
        """Compile the WebAssembly modules into a folder `wasm`, where zig is at hand."""
        from doge_export.plugin.compile_cpu import describe_build
        from doge_export.plugin.compile_wasm import WASM, compile_wasm
        from doge_export.plugin.cpp_compiler import find_zig

        zig = find_zig()
        if zig is None:
            return
        staged = folder / f"{WASM}.new"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        try:
            compile_wasm(Path(self.root) / "plugins", staged, zig)
            self._write_facts(staged, describe_build(present, WASM, zig.version))
            shutil.rmtree(folder / WASM, ignore_errors=True)
            staged.rename(folder / WASM)
            self._say("so are its modules for pages, by zig")
        except Exception as error:  # the library is there all the same
            if is_required:
                raise
            self._say(f"without the modules for pages ({' '.join(str(error).split())[:300]})")
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _write_facts(self, folder: Path, facts: dict[str, Any]) -> None:
        (folder / "build.json").write_text(json.dumps(facts, indent=2) + "\n")

    def _say(self, line: str) -> None:
        self.app.display_info(f"doge-export: {line}")
