// One file, compiled twice: over our own declarations of TensorRT's interface and over NVIDIA's headers. Each of the two
// libraries tells sizes, offsets and names, implements the interfaces by objects that write down how they are called, and
// calls such objects. tests/plugins/test_abi.py lets each call the objects of the other.
#include <cstddef>
#include <sstream>
#include <string>
#include <typeinfo>

#ifdef DOGE_NVIDIA_HEADERS
#include <NvInferRuntime.h>
using Logger = nvinfer1::ILogger;
using LoggerFinder = nvinfer1::ILoggerFinder;
using Severity = nvinfer1::ILogger::Severity;
constexpr Severity kWarning = Severity::kWARNING;
#else
#include "host.h"
#ifdef DOGE_TEN
namespace generation = doge::abi::ten;
#else
namespace generation = doge::abi::eleven;
#endif
using generation::Logger;
using generation::LoggerFinder;
using doge::abi::Severity;
constexpr Severity kWarning = Severity::warning;
#endif

using namespace nvinfer1;

namespace {

std::ostringstream called;  // on our objects
std::ostringstream seen;    // by our calls

const void* pointer(int tag) { return reinterpret_cast<const void*>(static_cast<size_t>(tag) * 16); }

template <class T>
T* fake(int tag) {
    return static_cast<T*>(const_cast<void*>(pointer(tag)));
}

void put(std::ostringstream& to, const char* text) { to << ' ' << (text == nullptr ? "null" : text); }
template <class T>
void put(std::ostringstream& to, T* address) {
    to << ' ' << reinterpret_cast<size_t>(address);
}
template <class T>
std::enable_if_t<std::is_enum_v<T>> put(std::ostringstream& to, T value) {
    to << ' ' << static_cast<long long>(value);
}
template <class T>
std::enable_if_t<std::is_arithmetic_v<T>> put(std::ostringstream& to, T value) {
    to << ' ' << static_cast<long long>(value);
}
void put(std::ostringstream& to, const InterfaceInfo& info) {
    to << ' ' << info.kind << ' ' << info.major << '.' << info.minor;
}

template <class... Values>
void note(const char* function, Values... values) {
    called << function;
    (put(called, values), ...);
    called << '\n';
}

template <class Value>
void see(const char* function, const Value& value) {
    seen << function;
    put(seen, value);
    seen << '\n';
}

// --- The objects ---

class Plugin final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuildV2, public IPluginV3OneRuntime {
public:
    ~Plugin() noexcept override { note("~Plugin"); }
    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        note("getCapabilityInterface", type);
        switch (type) {
            case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuildV2*>(this);
            case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    IPluginV3* clone() noexcept override { return note("clone"), new Plugin; }

    const char* getPluginName() const noexcept override { return note("getPluginName"), "a name"; }
    const char* getPluginVersion() const noexcept override { return note("getPluginVersion"), "a version"; }
    const char* getPluginNamespace() const noexcept override { return note("getPluginNamespace"), "a namespace"; }

    int32_t configurePlugin(const DynamicPluginTensorDesc* in, int32_t num_in, const DynamicPluginTensorDesc* out,
                            int32_t num_out) noexcept override {
        return note("configurePlugin", in, num_in, out, num_out), 101;
    }
    int32_t getOutputDataTypes(DataType* out, int32_t num_out, const DataType* in,
                               int32_t num_in) const noexcept override {
        return note("getOutputDataTypes", out, num_out, in, num_in), 102;
    }
    int32_t getOutputShapes(const DimsExprs* in, int32_t num_in, const DimsExprs* shapes, int32_t num_shapes,
                            DimsExprs* out, int32_t num_out, IExprBuilder& builder) noexcept override {
        return note("getOutputShapes", in, num_in, shapes, num_shapes, out, num_out, &builder), 103;
    }
    bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t num_in,
                                   int32_t num_out) noexcept override {
        return note("supportsFormatCombination", position, tensors, num_in, num_out), true;
    }
    int32_t getNbOutputs() const noexcept override { return note("getNbOutputs"), 104; }
    size_t getWorkspaceSize(const DynamicPluginTensorDesc* in, int32_t num_in, const DynamicPluginTensorDesc* out,
                            int32_t num_out) const noexcept override {
        return note("getWorkspaceSize", in, num_in, out, num_out), size_t{1} << 40;
    }
    int32_t getValidTactics(int32_t* tactics, int32_t count) noexcept override {
        return note("getValidTactics", tactics, count), 105;
    }
    int32_t getNbTactics() noexcept override { return note("getNbTactics"), 106; }
    const char* getTimingCacheID() noexcept override { return note("getTimingCacheID"), "an id"; }
    int32_t getFormatCombinationLimit() noexcept override { return note("getFormatCombinationLimit"), 107; }
    const char* getMetadataString() noexcept override { return note("getMetadataString"), "metadata"; }
    int32_t getAliasedInput(int32_t output) noexcept override { return note("getAliasedInput", output), 108; }

    int32_t setTactic(int32_t tactic) noexcept override { return note("setTactic", tactic), 109; }
    int32_t onShapeChange(const PluginTensorDesc* in, int32_t num_in, const PluginTensorDesc* out,
                          int32_t num_out) noexcept override {
        return note("onShapeChange", in, num_in, out, num_out), 110;
    }
    int32_t enqueue(const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        return note("enqueue", in, out, inputs, outputs, workspace, stream), 111;
    }
    IPluginV3* attachToContext(IPluginResourceContext* context) noexcept override {
        return note("attachToContext", context), this;
    }
    const PluginFieldCollection* getFieldsToSerialize() noexcept override {
        return note("getFieldsToSerialize"), fake<PluginFieldCollection>(12);
    }
};

class Creator final : public IPluginCreatorV3One {
public:
    ~Creator() override { note("~Creator"); }
    IPluginV3* createPlugin(const char* layer, const PluginFieldCollection* fields,
                            TensorRTPhase phase) noexcept override {
        return note("createPlugin", layer, fields, phase), fake<IPluginV3>(13);
    }
    const PluginFieldCollection* getFieldNames() noexcept override {
        return note("getFieldNames"), fake<PluginFieldCollection>(14);
    }
    const char* getPluginName() const noexcept override { return note("creator.getPluginName"), "a name"; }
    const char* getPluginVersion() const noexcept override { return note("creator.getPluginVersion"), "a version"; }
    const char* getPluginNamespace() const noexcept override { return note("creator.getPluginNamespace"), "another"; }
};

class ItsLogger final : public Logger {
public:
    ~ItsLogger() override { note("~Logger"); }
    void log(Severity severity, const char* line) noexcept override { note("log", severity, line); }
};

class ItsLoggerFinder final : public LoggerFinder {
public:
    ~ItsLoggerFinder() override = default;
    Logger* findLogger() override { return note("findLogger"), fake<Logger>(15); }
};

class Size final : public apiv::VDimensionExpr {
public:
    bool isConstant() const override { return note("isConstant"), true; }
    int64_t getConstantValue() const override { return note("getConstantValue"), int64_t{1} << 41; }
    bool isSizeTensor() const override { return note("isSizeTensor"), false; }
};

class Dimension final : public IDimensionExpr {
public:
    Dimension() { mImpl = &size_; }

private:
    Size size_;
};

class Sizes final : public apiv::VExprBuilder {
public:
    const IDimensionExpr* constant(int64_t value) override { return note("constant", value), fake<IDimensionExpr>(16); }
    const IDimensionExpr* operation(DimensionOperation operation, const IDimensionExpr& left,
                                    const IDimensionExpr& right) override {
        return note("operation", operation, &left, &right), fake<IDimensionExpr>(17);
    }
    const IDimensionExpr* declareSizeTensor(int32_t output, const IDimensionExpr& optimal,
                                            const IDimensionExpr& largest) override {
        return note("declareSizeTensor", output, &optimal, &largest), fake<IDimensionExpr>(18);
    }
};

class ExprBuilder final : public IExprBuilder {
public:
    ExprBuilder() { mImpl = &sizes_; }

private:
    Sizes sizes_;
};

#ifndef DOGE_NVIDIA_HEADERS
class Registry final : public generation::Registry {
public:
    ~Registry() noexcept override = default;
#ifdef DOGE_TEN
    bool registerOldCreator(void* creator, const char* its_namespace) noexcept override {
        return note("registerOldCreator", creator, its_namespace), true;
    }
    void* const* getOldCreators(int32_t* count) const noexcept override {
        return note("getOldCreators", count), fake<void*>(19);
    }
    void* getOldCreator(const char* name, const char* version, const char* its_namespace) noexcept override {
        return note("getOldCreator", name, version, its_namespace), fake<void>(20);
    }
    bool deregisterOldCreator(const void* creator) noexcept override {
        return note("deregisterOldCreator", creator), true;
    }
#endif
    void setErrorRecorder(void* recorder) noexcept override { note("setErrorRecorder", recorder); }
    void* getErrorRecorder() const noexcept override { return note("getErrorRecorder"), fake<void>(21); }
    bool isParentSearchEnabled() const override { return note("isParentSearchEnabled"), true; }
    void setParentSearchEnabled(bool enabled) override { note("setParentSearchEnabled", enabled); }
    void* loadLibrary(const char* path) noexcept override { return note("loadLibrary", path), fake<void>(22); }
    void deregisterLibrary(void* library) noexcept override { note("deregisterLibrary", library); }
    bool registerCreator(void* creator, const char* its_namespace) noexcept override {
        return note("registerCreator", creator, its_namespace), true;
    }
    void* const* getAllCreators(int32_t* count) const noexcept override {
        return note("getAllCreators", count), fake<void*>(23);
    }
    void* getCreator(const char* name, const char* version, const char* its_namespace) noexcept override {
        return note("getCreator", name, version, its_namespace), fake<void>(24);
    }
};
#endif

struct Objects {
    IPluginV3* plugin;
    IPluginCreatorInterface* creator;
    Logger* logger;
    LoggerFinder* finder;
    IDimensionExpr* dimension;
    IExprBuilder* builder;
};

// --- The calls ---

#define SEE(call) see(#call, call)

void call_plugin(IPluginV3& plugin) {
    SEE(plugin.getAPILanguage());
    SEE(plugin.getInterfaceInfo());
    delete plugin.clone();
    IPluginCapability* core_part = plugin.getCapabilityInterface(PluginCapabilityType::kCORE);
    IPluginCapability* build_part = plugin.getCapabilityInterface(PluginCapabilityType::kBUILD);
    IPluginCapability* runtime_part = plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME);
    SEE(plugin.getCapabilityInterface(static_cast<PluginCapabilityType>(7)) == nullptr);
    SEE(dynamic_cast<IPluginV3OneCore*>(core_part) == core_part);
    SEE(dynamic_cast<IPluginV3OneBuildV2*>(build_part) == build_part);
    SEE(dynamic_cast<v_1_0::IPluginV3OneBuild*>(build_part) == build_part);
    SEE(dynamic_cast<IPluginV3OneRuntime*>(runtime_part) == runtime_part);
    SEE(dynamic_cast<IPluginV3OneRuntime*>(core_part) == runtime_part);
    SEE(dynamic_cast<IPluginV3*>(core_part) == &plugin);

    auto& core = static_cast<IPluginV3OneCore&>(*core_part);
    SEE(core.getInterfaceInfo());
    SEE(core.getPluginName());
    SEE(core.getPluginVersion());
    SEE(core.getPluginNamespace());

    auto& build = static_cast<IPluginV3OneBuildV2&>(*build_part);
    SEE(build.getInterfaceInfo());
    SEE(build.configurePlugin(fake<DynamicPluginTensorDesc>(1), 2, fake<DynamicPluginTensorDesc>(3), 4));
    SEE(build.getOutputDataTypes(fake<DataType>(1), 2, fake<DataType>(3), 4));
    SEE(build.getOutputShapes(fake<DimsExprs>(1), 2, fake<DimsExprs>(3), 4, fake<DimsExprs>(5), 6,
                              *fake<IExprBuilder>(7)));
    SEE(build.supportsFormatCombination(1, fake<DynamicPluginTensorDesc>(2), 3, 4));
    SEE(build.getNbOutputs());
    SEE(build.getWorkspaceSize(fake<DynamicPluginTensorDesc>(1), 2, fake<DynamicPluginTensorDesc>(3), 4));
    SEE(build.getValidTactics(fake<int32_t>(1), 2));
    SEE(build.getNbTactics());
    SEE(build.getTimingCacheID());
    SEE(build.getFormatCombinationLimit());
    SEE(build.getMetadataString());
    SEE(build.getAliasedInput(1));

    auto& runtime = static_cast<IPluginV3OneRuntime&>(*runtime_part);
    SEE(runtime.getInterfaceInfo());
    SEE(runtime.setTactic(1));
    SEE(runtime.onShapeChange(fake<PluginTensorDesc>(1), 2, fake<PluginTensorDesc>(3), 4));
    SEE(runtime.enqueue(fake<PluginTensorDesc>(1), fake<PluginTensorDesc>(2), fake<const void*>(3), fake<void*>(4),
                        fake<void>(5), fake<std::remove_pointer_t<cudaStream_t>>(6)));
    SEE(runtime.attachToContext(fake<IPluginResourceContext>(1)) == &plugin);
    SEE(runtime.getFieldsToSerialize());
    delete &plugin;
}

void call_creator(IPluginCreatorInterface& base) {
    SEE(base.getAPILanguage());
    SEE(base.getInterfaceInfo());
    SEE(dynamic_cast<IPluginCreatorV3One*>(&base) == &base);
    auto& creator = static_cast<IPluginCreatorV3One&>(base);
    SEE(creator.createPlugin("a layer", fake<PluginFieldCollection>(1), TensorRTPhase::kRUNTIME));
    SEE(creator.getFieldNames());
    SEE(creator.getPluginName());
    SEE(creator.getPluginVersion());
    SEE(creator.getPluginNamespace());
    delete &creator;
}

void call_expressions(IDimensionExpr& dimension, IExprBuilder& builder) {
    SEE(dimension.isConstant());
    SEE(dimension.getConstantValue());
    SEE(dimension.isSizeTensor());
    SEE(builder.constant(int64_t{1} << 42));
    SEE(builder.operation(DimensionOperation::kCEIL_DIV, *fake<IDimensionExpr>(1), *fake<IDimensionExpr>(2)));
}

void call_logger(LoggerFinder& finder, Logger& logger) {
    SEE(finder.findLogger());
    logger.log(kWarning, "a line");
    delete &logger;
}

void call_registry(void* object) {
#ifdef DOGE_NVIDIA_HEADERS
    auto& registry = *static_cast<IPluginRegistry*>(object);
#if NV_TENSORRT_MAJOR < 11
    see("old creators", registry.registerCreator(*fake<IPluginCreator>(1), "a namespace"));
    see("old creators", registry.getPluginCreatorList(fake<int32_t>(2)));
    see("old creators", registry.getPluginCreator("a name", "a version", "a namespace"));
    see("old creators", registry.deregisterCreator(*static_cast<const IPluginCreator*>(fake<IPluginCreator>(3))));
#endif
    registry.setErrorRecorder(fake<IErrorRecorder>(4));
    see("registerCreator", registry.registerCreator(*fake<IPluginCreatorInterface>(5), "a namespace"));
#else
    auto& registry = *static_cast<generation::Registry*>(object);
#ifdef DOGE_TEN
    see("old creators", registry.registerOldCreator(fake<void>(1), "a namespace"));
    see("old creators", registry.getOldCreators(fake<int32_t>(2)));
    see("old creators", registry.getOldCreator("a name", "a version", "a namespace"));
    see("old creators", registry.deregisterOldCreator(fake<void>(3)));
#endif
    registry.setErrorRecorder(fake<void>(4));
    see("registerCreator", registry.registerCreator(fake<void>(5), "a namespace"));
#endif
    SEE(registry.getErrorRecorder());
    SEE(registry.isParentSearchEnabled());
    registry.setParentSearchEnabled(true);
    SEE(registry.loadLibrary("a path"));
    registry.deregisterLibrary(fake<void>(6));
    SEE(registry.getAllCreators(fake<int32_t>(7)));
    SEE(registry.getCreator("a name", "a version", "a namespace"));
}

// --- Sizes, offsets and values ---

// Objects of a plain type by name; NVIDIA's Dims has another name underneath.
#define SIZE(Type) text << #Type << ' ' << sizeof(Type) << ' ' << alignof(Type) << '\n'
#define OFFSET(Type, member) text << #Type "." #member << ' ' << offsetof(Type, member) << '\n'
#define VALUE(value) text << #value << ' ' << static_cast<int32_t>(value) << '\n'
#define NAME(Type) text << #Type << ' ' << typeid(Type).name() << ' ' << sizeof(Type) << '\n'

std::string facts() {
    std::ostringstream text;
    SIZE(Dims), OFFSET(Dims, nbDims), OFFSET(Dims, d);
    SIZE(PluginTensorDesc), OFFSET(PluginTensorDesc, dims), OFFSET(PluginTensorDesc, type);
    OFFSET(PluginTensorDesc, format), OFFSET(PluginTensorDesc, scale);
    SIZE(DynamicPluginTensorDesc), OFFSET(DynamicPluginTensorDesc, desc), OFFSET(DynamicPluginTensorDesc, min);
    OFFSET(DynamicPluginTensorDesc, max), OFFSET(DynamicPluginTensorDesc, opt);
    SIZE(PluginField), OFFSET(PluginField, name), OFFSET(PluginField, data), OFFSET(PluginField, type);
    OFFSET(PluginField, length), SIZE(PluginFieldCollection), OFFSET(PluginFieldCollection, nbFields);
    OFFSET(PluginFieldCollection, fields), SIZE(DimsExprs), OFFSET(DimsExprs, nbDims), OFFSET(DimsExprs, d);
    SIZE(InterfaceInfo), OFFSET(InterfaceInfo, kind), OFFSET(InterfaceInfo, major), OFFSET(InterfaceInfo, minor);

    VALUE(DataType::kFLOAT), VALUE(DataType::kHALF), VALUE(DataType::kINT8), VALUE(DataType::kINT32);
    VALUE(DataType::kBOOL), VALUE(DataType::kUINT8), VALUE(DataType::kFP8), VALUE(DataType::kBF16);
    VALUE(DataType::kINT64), VALUE(DataType::kINT4), VALUE(DataType::kFP4);
    VALUE(TensorFormat::kLINEAR), VALUE(TensorFormat::kCHW2), VALUE(TensorFormat::kHWC8), VALUE(TensorFormat::kCHW4);
    VALUE(TensorFormat::kCHW16), VALUE(TensorFormat::kCHW32), VALUE(TensorFormat::kDHWC8), VALUE(TensorFormat::kCDHW32);
    VALUE(TensorFormat::kHWC), VALUE(TensorFormat::kDLA_LINEAR), VALUE(TensorFormat::kDLA_HWC4);
    VALUE(TensorFormat::kHWC16), VALUE(TensorFormat::kDHWC);
    VALUE(PluginFieldType::kFLOAT16), VALUE(PluginFieldType::kFLOAT32), VALUE(PluginFieldType::kFLOAT64);
    VALUE(PluginFieldType::kINT8), VALUE(PluginFieldType::kINT16), VALUE(PluginFieldType::kINT32);
    VALUE(PluginFieldType::kCHAR), VALUE(PluginFieldType::kDIMS), VALUE(PluginFieldType::kUNKNOWN);
    VALUE(PluginFieldType::kBF16), VALUE(PluginFieldType::kINT64);
    VALUE(PluginCapabilityType::kCORE), VALUE(PluginCapabilityType::kBUILD), VALUE(PluginCapabilityType::kRUNTIME);
    VALUE(TensorRTPhase::kBUILD), VALUE(TensorRTPhase::kRUNTIME), VALUE(APILanguage::kCPP), VALUE(APILanguage::kPYTHON);
    VALUE(DimensionOperation::kSUM), VALUE(DimensionOperation::kPROD), VALUE(DimensionOperation::kMAX);
    VALUE(DimensionOperation::kMIN), VALUE(DimensionOperation::kSUB), VALUE(DimensionOperation::kEQUAL);
    VALUE(DimensionOperation::kLESS), VALUE(DimensionOperation::kFLOOR_DIV), VALUE(DimensionOperation::kCEIL_DIV);
    VALUE(kWarning);

    NAME(IVersionedInterface), NAME(IPluginCapability), NAME(IPluginV3), NAME(IPluginV3OneCore);
    NAME(IPluginV3OneBuild), NAME(IPluginV3OneBuildV2), NAME(IPluginV3OneRuntime), NAME(IPluginCreatorInterface);
    NAME(IPluginCreatorV3One), NAME(IDimensionExpr), NAME(IExprBuilder);
    return text.str();
}

const char* taken(std::ostringstream& from) {
    static std::string text;
    text = from.str();
    from.str({});
    return text.c_str();
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char* layout_facts() {
    static const std::string text = facts();
    return text.c_str();
}

// Objects of this library's; who calls them deletes those that can be deleted.
EXPORT void layout_objects(Objects* objects) {
    static ItsLoggerFinder finder;
    static Dimension dimension;
    static ExprBuilder builder;
    *objects = {new Plugin, new Creator, new ItsLogger, &finder, &dimension, &builder};
}

// A registry, which only TensorRT implements: nullptr over NVIDIA's headers.
EXPORT void* layout_registry() {
#ifdef DOGE_NVIDIA_HEADERS
    return nullptr;
#else
    static Registry registry;
    return static_cast<generation::Registry*>(&registry);
#endif
}

// Calls every function of objects, of whichever library.
EXPORT void layout_call(const Objects* objects, void* registry) {
    call_plugin(*objects->plugin);
    call_creator(*objects->creator);
    call_logger(*objects->finder, *objects->logger);
    call_expressions(*objects->dimension, *objects->builder);
    call_registry(registry);
}

// How this library's objects were called, and what this library's calls gave, since it was last asked.
EXPORT const char* layout_called() { return taken(called); }
EXPORT const char* layout_seen() { return taken(seen); }
