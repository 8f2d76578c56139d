// What TensorRT would hand to a plugin: dimension expressions, descriptions of tensors, a logger.
#pragma once

#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "fields.h"
#include "host.h"
#include "tensor.h"

namespace doge::testing {

// A size that is known (0 or more), or one that only a run will tell. Each is an object of its own, so that a test sees
// which of them a plugin hands on.
class Dimension final : public nvinfer1::IDimensionExpr {
public:
    explicit Dimension(int64_t size) : size_(size) { mImpl = &size_; }

private:
    class Size final : public nvinfer1::apiv::VDimensionExpr {
    public:
        explicit Size(int64_t size) : size_(size) {}
        bool isConstant() const override { return size_ != trt::Shape::kUnknown; }
        int64_t getConstantValue() const override { return size_; }
        bool isSizeTensor() const override { return false; }

    private:
        int64_t size_;
    };

    Size size_;
};

// Refuses to make expressions: our outputs have no size that is not one of an input.
class ExprBuilder final : public nvinfer1::IExprBuilder {
public:
    ExprBuilder() { mImpl = &builder_; }

    int32_t asked() const { return builder_.asked; }

private:
    struct Builder final : nvinfer1::apiv::VExprBuilder {
        const nvinfer1::IDimensionExpr* constant(int64_t) override { return ++asked, nullptr; }
        const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation, const nvinfer1::IDimensionExpr&,
                                                  const nvinfer1::IDimensionExpr&) override {
            return ++asked, nullptr;
        }
        const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                          const nvinfer1::IDimensionExpr&) override {
            return ++asked, nullptr;
        }
        int32_t asked = 0;
    };

    Builder builder_;
};

// The logger of a TensorRT of either generation, and what finds it.
template <class Interface>
class LoggerOf final : public Interface {
public:
    void log(abi::Severity severity, const char* line) noexcept override {
        lines.push_back(line);
        all_errors = all_errors && severity == abi::Severity::error;
    }

    // The lines since it was last asked, one after the other.
    std::string taken() {
        std::string text;
        for (const std::string& line : lines) {
            text += (text.empty() ? "" : "\n") + line;
        }
        lines.clear();
        return text;
    }

    std::vector<std::string> lines;
    bool all_errors = true;
};

template <class Interface, class Logger>
class LoggerFinderOf final : public Interface {
public:
    explicit LoggerFinderOf(Logger* logger) : logger_(logger) {}
    ~LoggerFinderOf() override = default;
    Logger* findLogger() override { return logger_; }

private:
    Logger* logger_;
};

using Logger = LoggerOf<abi::eleven::Logger>;
using LoggerFinder = LoggerFinderOf<abi::eleven::LoggerFinder, abi::eleven::Logger>;
using LoggerOfTen = LoggerOf<abi::ten::Logger>;
using LoggerFinderOfTen = LoggerFinderOf<abi::ten::LoggerFinder, abi::ten::Logger>;

// The version of the TensorRT that these objects say they belong to: see getInferLibVersion below.
inline int32_t tensorrt_version = 110000;

inline nvinfer1::DataType data_type(trt::Type type) {
    switch (type) {
        case trt::Type::float32: return nvinfer1::DataType::kFLOAT;
        case trt::Type::float16: return nvinfer1::DataType::kHALF;
        case trt::Type::bfloat16: return nvinfer1::DataType::kBF16;
        case trt::Type::int32: return nvinfer1::DataType::kINT32;
        case trt::Type::int64: return nvinfer1::DataType::kINT64;
        case trt::Type::other: break;
    }
    return nvinfer1::DataType::kINT8;
}

inline nvinfer1::Dims dims(const trt::Shape& shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = shape.rank;
    std::copy_n(shape.axes, shape.rank, dims.d);
    return dims;
}

inline nvinfer1::PluginTensorDesc desc(const trt::Tensor& tensor) {
    const auto format = tensor.linear ? nvinfer1::TensorFormat::kLINEAR : nvinfer1::TensorFormat::kCHW32;
    return {dims(tensor.shape), data_type(tensor.type), format, 1.0F};
}

inline std::vector<nvinfer1::PluginTensorDesc> descs(const std::vector<trt::Tensor>& tensors) {
    std::vector<nvinfer1::PluginTensorDesc> result;
    for (const trt::Tensor& tensor : tensors) {
        result.push_back(desc(tensor));
    }
    return result;
}

// With these as the largest sizes of a profile, the sizes themselves open.
inline std::vector<nvinfer1::DynamicPluginTensorDesc> dynamic_descs(const std::vector<trt::Tensor>& largest) {
    std::vector<nvinfer1::DynamicPluginTensorDesc> result;
    for (const trt::Tensor& tensor : largest) {
        nvinfer1::DynamicPluginTensorDesc dynamic{desc(tensor), dims(tensor.shape), dims(tensor.shape),
                                                  dims(tensor.shape)};
        for (int32_t axis = 0; axis < tensor.shape.rank; ++axis) {
            dynamic.desc.dims.d[axis] = -1;
            dynamic.min.d[axis] = dynamic.opt.d[axis] = 1;
        }
        result.push_back(dynamic);
    }
    return result;
}

// TensorRT's form of given fields; lives on the values of `given`.
class FieldCollection {
public:
    explicit FieldCollection(const Values& values) : given_(values) {
        for (const trt::Field& field : given_.fields()) {
            const auto type = field.type == trt::FieldType::int32     ? nvinfer1::PluginFieldType::kINT32
                              : field.type == trt::FieldType::float32 ? nvinfer1::PluginFieldType::kFLOAT32
                                                                      : nvinfer1::PluginFieldType::kCHAR;
            fields_.emplace_back(field.name, field.data, type, field.length);
        }
        collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    }
    FieldCollection(const FieldCollection&) = delete;

    const nvinfer1::PluginFieldCollection* get() const { return &collection_; }

private:
    GivenFields given_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_;
};

// A plugin and the interfaces it has.
struct Made {
    std::unique_ptr<nvinfer1::IPluginV3> plugin;

    explicit Made(nvinfer1::IPluginV3* made) : plugin(made) {}
    explicit operator bool() const { return plugin != nullptr; }

    nvinfer1::IPluginV3OneCore& core() const { return as<nvinfer1::IPluginV3OneCore>(Capability::kCORE); }
    nvinfer1::IPluginV3OneBuildV2& build() const { return as<nvinfer1::IPluginV3OneBuildV2>(Capability::kBUILD); }
    nvinfer1::IPluginV3OneRuntime& runtime() const { return as<nvinfer1::IPluginV3OneRuntime>(Capability::kRUNTIME); }

private:
    using Capability = nvinfer1::PluginCapabilityType;

    template <class Interface>
    Interface& as(Capability type) const {
        // As TensorRT does: it knows the base class alone.
        return static_cast<Interface&>(*plugin->getCapabilityInterface(type));
    }
};

inline Made create(nvinfer1::IPluginCreatorV3One& creator, const Values& values,
                   nvinfer1::TensorRTPhase phase = nvinfer1::TensorRTPhase::kBUILD) {
    const FieldCollection fields(values);
    return Made(creator.createPlugin("layer", fields.get(), phase));
}

}  // namespace doge::testing

// This program plays TensorRT, so it tells its version as TensorRT's library does. Included in one file of a program.
extern "C" __attribute__((visibility("default"))) int32_t getInferLibVersion() { return doge::testing::tensorrt_version; }
