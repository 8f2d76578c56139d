// What TensorRT says of a tensor, in types of our own, so that every decision can be tested without its headers.
#pragma once

#include <cstdint>
#include <string>

namespace doge::trt {

// int64 is there to be named in messages; no tensor of ours has it.
enum class Type { float32, float16, bfloat16, int32, int64, other };

// "float16"; "an unsupported type" for `other`.
const char* type_name(Type type);

// As long as TensorRT's Dims: shapes are made on every enqueue, so they do not allocate.
struct Shape {
    static constexpr int32_t kMaxRank = 8;
    static constexpr int64_t kUnknown = -1;  // an axis that is known only when the engine runs

    int32_t rank = 0;
    int64_t axes[kMaxRank] = {};
};

// "[2, ?, 64]"
std::string shape_text(const Shape& shape);

struct Tensor {
    Type type = Type::other;
    bool linear = true;  // contiguous, last axis fastest
    Shape shape;
};

}  // namespace doge::trt
