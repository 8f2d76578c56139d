// From TensorRT's types to those of core/.
#pragma once

#include <algorithm>
#include <stdexcept>

#include "attributes.h"
#include "tensor.h"
#include "tensorrt.h"

namespace doge::trt {

inline Type type_of(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT: return Type::float32;
        case nvinfer1::DataType::kHALF: return Type::float16;
        case nvinfer1::DataType::kBF16: return Type::bfloat16;
        case nvinfer1::DataType::kINT32: return Type::int32;
        case nvinfer1::DataType::kINT64: return Type::int64;
        default: return Type::other;
    }
}

// Of an output.
inline nvinfer1::DataType data_type_of(Type type) {
    switch (type) {
        case Type::float32: return nvinfer1::DataType::kFLOAT;
        case Type::float16: return nvinfer1::DataType::kHALF;
        case Type::bfloat16: return nvinfer1::DataType::kBF16;
        case Type::int32: return nvinfer1::DataType::kINT32;
        default: throw std::logic_error(std::string("no output is ") + type_name(type));
    }
}

inline Shape shape_of(const nvinfer1::Dims& dims) {
    Shape shape;
    shape.rank = dims.nbDims;
    std::copy_n(dims.d, std::clamp(dims.nbDims, 0, Shape::kMaxRank), shape.axes);
    return shape;
}

// Sizes are known only when they are the same in every run.
inline Shape shape_of(const nvinfer1::DimsExprs& dims) {
    Shape shape;
    shape.rank = dims.nbDims;
    for (int32_t axis = 0; axis < dims.nbDims; ++axis) {
        shape.axes[axis] = dims.d[axis]->isConstant() ? dims.d[axis]->getConstantValue() : Shape::kUnknown;
    }
    return shape;
}

inline Tensor tensor_of(const nvinfer1::PluginTensorDesc& desc, const nvinfer1::Dims& dims) {
    return {type_of(desc.type), desc.format == nvinfer1::TensorFormat::kLINEAR, shape_of(dims)};
}

inline FieldType field_type_of(nvinfer1::PluginFieldType type) {
    switch (type) {
        case nvinfer1::PluginFieldType::kFLOAT32: return FieldType::float32;
        case nvinfer1::PluginFieldType::kINT32: return FieldType::int32;
        case nvinfer1::PluginFieldType::kCHAR: return FieldType::text;
        default: return FieldType::other;
    }
}

// Of what the plugin itself announces and stores.
inline nvinfer1::PluginField plugin_field(const char* name, FieldType type, const void* data, int32_t length) {
    const auto field_type =
        type == FieldType::float32 ? nvinfer1::PluginFieldType::kFLOAT32 : nvinfer1::PluginFieldType::kINT32;
    return {name, data, field_type, length};
}

}  // namespace doge::trt
