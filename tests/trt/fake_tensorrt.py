"""TensorRT as a recorder: objects that stand for its own, hand out nothing that those do not have, and keep a record.

Every name, signature and settable property is looked up in the real bindings. What an "engine" computes is the graph
that it was "built" from, run by onnxruntime on the memory that is bound: so sessions run over it end to end.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from fake_cuda import FakeCuda
from signatures import check_call

_TYPES = {1: "FLOAT", 10: "HALF", 16: "BF16", 6: "INT32"}
_NUMPY = {name: np.dtype(known) for name, known in (("FLOAT", "f4"), ("HALF", "f2"), ("BF16", "u2"), ("INT32", "i4"))}
"""bfloat16 as its 16 bits."""
_FACTORIES = ("Builder", "OnnxParser", "Runtime")

Execute = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class Fake:
    """An object of a class of TensorRT. Methods are those of FakeTensorRT named Class_method."""

    def __init__(self, world: FakeTensorRT, kind: str, **state: Any) -> None:
        self.__dict__.update(_world=world, _kind=kind, **state)

    def __getattr__(self, name: str) -> Any:
        world, kind = self._world, self._kind
        known = world.member(kind, name)
        if f"{kind}_{name}" in world.values:
            return world.values[f"{kind}_{name}"]
        script = getattr(type(world), f"{kind}_{name}", None)
        assert script is not None, f"no script for {kind}.{name}"
        if isinstance(known, property):
            return script(world, self)

        def call(*arguments: Any) -> Any:
            check_call(world.real, f"{kind}.{name}", known, arguments)
            world.calls[f"{kind}.{name}"] += 1
            return script(world, self, *arguments)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        known = self._world.member(self._kind, name)
        assert isinstance(known, property) and known.fset is not None, f"{self._kind}.{name} cannot be set"
        self._world.settings[f"{self._kind}.{name}"] = value


class FakeTensorRT:
    """Stands for the module tensorrt, or for that of TensorRT for RTX if `real` is that.

    Attributes:
        calls: how often each method was called. settings: what properties were set to. bound: addresses by tensor.
        profiles: what the builder was told.
    """

    __version__ = "11.4.0.106"

    def __init__(self, real: ModuleType, cuda: FakeCuda, execute: Callable[[bytes], Execute] | None = None) -> None:
        self.real, self.cuda, self.make_execute = real, cuda, execute
        self.calls: Counter[str] = Counter()
        self.settings: dict[str, Any] = {}
        self.values: dict[str, Any] = {}
        self.flags: list[Any] = []
        self.profiles: list[dict[str, Any]] = []
        self.enqueued: Counter[str] = Counter()
        self.libraries: list[str] = []
        self.plugin_layers: int | None = None
        self.refuses: set[str] = set()
        self.registry = Fake(self, "IPluginRegistry")

    def member(self, kind: str, name: str) -> Any:
        known = getattr(self.real, kind).__dict__.get(name) or getattr(getattr(self.real, kind), name, None)
        assert known is not None, f"tensorrt.{kind} has no {name}"
        return known

    def __getattr__(self, name: str) -> Any:
        known = getattr(self.real, name, None)
        assert known is not None, f"tensorrt has no {name}"
        if name not in _FACTORIES:
            return known

        def make(*arguments: Any) -> Fake:
            check_call(self.real, name, known.__init__, arguments)
            return Fake(self, name, given=arguments)

        return make

    def get_plugin_registry(self) -> Fake:
        return self.registry

    def IPluginRegistry_all_creators(self, registry: Fake) -> list[Fake]:
        return [Fake(self, "IPluginCreatorV3One")] if self.libraries else []

    def IPluginCreatorV3One_name(self, creator: Fake) -> str:
        return "DynamicMaskAttention"

    def IPluginCreatorV3One_plugin_namespace(self, creator: Fake) -> str:
        return "doge"

    def IPluginRegistry_load_library(self, registry: Fake, path: str) -> Any:
        if "load_library" in self.refuses:
            return None
        self.libraries.append(path)
        return "handle"

    # -- build ---------------------------------------------------------------------------------------------------------
    def Builder_create_network(self, builder: Fake, flags: int) -> Fake:
        self.network = Fake(self, "INetworkDefinition")
        self.flags.append(flags)
        return self.network

    def Builder_create_builder_config(self, builder: Fake) -> Fake:
        self.profiles = []
        return Fake(self, "IBuilderConfig")

    def Builder_create_optimization_profile(self, builder: Fake) -> Fake:
        return Fake(self, "IOptimizationProfile", shapes={})

    def Builder_build_serialized_network(self, builder: Fake, network: Fake, config: Fake) -> bytes | None:
        monitor = self.settings["IBuilderConfig.progress_monitor"]
        monitor.phase_start("Building Engine", None, 2)
        if not all(monitor.step_complete("Building Engine", step) for step in range(2)) or "build" in self.refuses:
            builder.given[0].log(self.real.ILogger.Severity.ERROR, "no tactic\nleft")
            return None
        monitor.phase_finish("Building Engine")
        return serialized(self.onnx, len(self.profiles))

    def OnnxParser_set_flag(self, parser: Fake, flag: Any) -> None:
        self.flags.append(flag)

    def OnnxParser_parse_from_file(self, parser: Fake, path: str) -> bool:
        assert parser.given[0] is self.network
        with open(path, "rb") as file:  # noqa: PTH123 - the parser is given text
            self.onnx = file.read()
        self.nodes = onnx.load_model_from_string(self.onnx).graph.node
        return "parse" not in self.refuses

    def OnnxParser_num_errors(self, parser: Fake) -> int:
        return 2

    def OnnxParser_get_error(self, parser: Fake, index: int) -> Fake:
        return Fake(self, "ParserError")

    def ParserError_desc(self, error: Fake) -> str:
        return "no importer for Foo"

    def INetworkDefinition_num_layers(self, network: Fake) -> int:
        return len(self.nodes)

    def INetworkDefinition_get_layer(self, network: Fake, index: int) -> Fake:
        return Fake(self, "ILayer", node=self.nodes[index])

    def ILayer_type(self, layer: Fake) -> Any:
        plugin = layer.node.domain == "doge" and "override" not in self.refuses
        return self.real.LayerType.PLUGIN_V3 if plugin else self.real.LayerType.MATRIX_MULTIPLY

    def IOptimizationProfile_set_shape(self, profile: Fake, name: str, low: Any, best: Any, high: Any) -> None:
        assert len(low) == len(best) == len(high) and all(a <= b <= c for a, b, c in zip(low, best, high, strict=True))
        profile.shapes[name] = low, best, high

    def IBuilderConfig_add_optimization_profile(self, config: Fake, profile: Fake) -> int:
        if "profile" in self.refuses:
            return -1
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def IBuilderConfig_set_memory_pool_limit(self, config: Fake, pool: Any, size: int) -> None:
        self.settings[f"pool.{pool.name}"] = size

    def IBuilderConfig_set_flag(self, config: Fake, flag: Any) -> None:
        self.settings[f"flag.{flag.name}"] = True

    def IBuilderConfig_clear_flag(self, config: Fake, flag: Any) -> None:
        self.settings[f"flag.{flag.name}"] = False

    def IBuilderConfig_set_compute_capability(self, config: Fake, capability: Any, index: int) -> bool:
        self.settings[f"capability.{index}"] = capability.name
        return True

    def IBuilderConfig_create_timing_cache(self, config: Fake, stored: bytes) -> Fake | None:
        return None if stored.startswith(b"other") else Fake(self, "ITimingCache", stored=stored)

    def IBuilderConfig_set_timing_cache(self, config: Fake, cache: Fake, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def IBuilderConfig_get_timing_cache(self, config: Fake) -> Fake:
        return self.cache

    def ITimingCache_combine(self, cache: Fake, other: Fake, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch, "measurements of another GPU would be kept"
        cache.__dict__["stored"] += other.stored
        return True

    def ITimingCache_serialize(self, cache: Fake) -> bytes:
        return cache.stored + b"measured"

    # -- run -----------------------------------------------------------------------------------------------------------
    def Runtime_deserialize_cuda_engine(self, runtime: Fake, stored: bytes) -> Fake | None:
        if not stored.startswith(b"FAKE"):
            return None
        head, graph = stored.split(b"\n", 1)
        ports = _ports(graph)
        execute = self.make_execute(graph) if self.make_execute else None
        return Fake(self, "ICudaEngine", ports=ports, execute=execute, profiles_built=json.loads(head[4:]))

    def ICudaEngine_num_io_tensors(self, engine: Fake) -> int:
        return len(engine.ports)

    def ICudaEngine_get_tensor_name(self, engine: Fake, index: int) -> str:
        return [*engine.ports][index]

    def ICudaEngine_get_tensor_mode(self, engine: Fake, name: str) -> Any:
        mode = self.real.TensorIOMode
        return mode.INPUT if engine.ports[name][0] else mode.OUTPUT

    def ICudaEngine_get_tensor_dtype(self, engine: Fake, name: str) -> Any:
        return getattr(self.real.DataType, engine.ports[name][1])

    def ICudaEngine_get_tensor_shape(self, engine: Fake, name: str) -> tuple[int, ...]:
        return engine.ports[name][2]

    def ICudaEngine_get_device_memory_size_for_profile_v2(self, engine: Fake, index: int) -> int:
        assert 0 <= index < engine.profiles_built
        return 1000 * (2 - index)

    def ICudaEngine_create_runtime_config(self, engine: Fake) -> Fake:
        return Fake(self, "IRuntimeConfig", told={})

    def IRuntimeConfig_create_runtime_cache(self, config: Fake) -> Fake:
        return Fake(self, "IRuntimeCache", stored=[])

    def IRuntimeConfig_set_execution_context_allocation_strategy(self, config: Fake, strategy: Any) -> None:
        config.told["strategy"] = strategy

    def IRuntimeConfig_set_runtime_cache(self, config: Fake, cache: Fake) -> bool:
        config.told["cache"] = cache
        return True

    def IRuntimeCache_deserialize(self, cache: Fake, blob: bytes) -> bool:
        if not bytes(blob).startswith(b"compiled"):
            return False
        cache.stored.append(bytes(blob))
        return True

    def IRuntimeCache_serialize(self, cache: Fake) -> bytes | None:
        if "serialize" in self.refuses:
            return None
        return cache.stored[0] if cache.stored else b"compiled " + str(self.real.__name__).encode()

    def IExecutionContext_is_stream_capturable(self, context: Fake, stream: int) -> bool:
        return "capturable" not in self.refuses

    def ICudaEngine_create_execution_context(self, engine: Fake, given: Any) -> Fake:
        if isinstance(given, Fake):
            assert given.told["cache"]._kind == "IRuntimeCache"
            specialization = self.settings["IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy"]
            self.flags.append(specialization.name)
            given = given.told["strategy"]
        assert given == self.real.ExecutionContextAllocationStrategy.USER_MANAGED
        return Fake(self, "IExecutionContext", engine_=engine, addresses={}, shapes={}, profile=[], memory=[])

    def IExecutionContext_set_optimization_profile_async(self, context: Fake, index: int, stream: int) -> bool:
        context.profile.append(index)
        return True

    def IExecutionContext_set_device_memory(self, context: Fake, address: int, size: int) -> None:
        assert len(self.cuda.at(address, size)) >= 1000 * (2 - context.profile[-1])
        context.memory.append(address)

    def IExecutionContext_set_tensor_address(self, context: Fake, name: str, address: int) -> bool:
        assert address % 256 == 0
        context.addresses[name] = address
        return name in context.engine_.ports

    def IExecutionContext_set_input_shape(self, context: Fake, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.profiles[context.profile[-1]][name]
        context.shapes[name] = shape
        return all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

    def IExecutionContext_infer_shapes(self, context: Fake) -> list[str]:
        return [name for name, port in context.engine_.ports.items() if port[0] and name not in context.shapes]

    def IExecutionContext_execute_async_v3(self, context: Fake, stream: int) -> bool:
        if "execute" in self.refuses or ("capture" in self.refuses and self.cuda.captured is not None):
            return False
        assert context.memory and {*context.addresses} == {*context.engine_.ports}
        self.enqueued[["prefill", "decode"][context.profile[-1]]] += 1
        addresses, shapes, ports = dict(context.addresses), dict(context.shapes), context.engine_.ports
        self.cuda.put(lambda: self._execute(context.engine_.execute, ports, addresses, shapes))
        return True

    def _execute(self, execute: Execute, ports: Any, addresses: dict[str, int], shapes: dict[str, Any]) -> None:
        feeds = {}
        for name, (is_input, dtype, _) in ports.items():
            if is_input:
                size = int(np.prod(shapes[name])) * _NUMPY[dtype].itemsize
                raw = self.cuda.at(addresses[name], size).copy()
                feeds[name] = raw.view(_NUMPY[dtype]).reshape(shapes[name])
        for name, array in execute(feeds).items():
            if name not in ports:
                continue
            array = np.ascontiguousarray(array)
            self.cuda.at(addresses[name], array.nbytes)[...] = array.view(np.uint8).reshape(-1)


def serialized(graph: bytes, profiles: int = 2) -> bytes:
    """What the recorder takes for an engine of that graph."""
    return b"FAKE" + json.dumps(profiles).encode() + b"\n" + graph


def _ports(graph: bytes) -> dict[str, tuple[bool, str, tuple[int, ...]]]:
    """Is an input, type and shape (-1 for what is dynamic) by name."""
    model = onnx.load_model_from_string(graph)
    found = {}
    for is_input, values in ((True, model.graph.input), (False, model.graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim)
            found[value.name] = is_input, _TYPES[tensor.elem_type], shape
    return found
