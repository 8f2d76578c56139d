#include "tensor.h"

namespace doge::trt {

const char* type_name(Type type) {
    switch (type) {
        case Type::float32: return "float32";
        case Type::float16: return "float16";
        case Type::bfloat16: return "bfloat16";
        case Type::int32: return "int32";
        case Type::int64: return "int64";
        case Type::other: break;
    }
    return "an unsupported type";
}

std::string shape_text(const Shape& shape) {
    std::string text = "[";
    for (int32_t axis = 0; axis < shape.rank; ++axis) {
        text += axis == 0 ? "" : ", ";
        text += shape.axes[axis] == Shape::kUnknown ? "?" : std::to_string(shape.axes[axis]);
    }
    return text + "]";
}

}  // namespace doge::trt
