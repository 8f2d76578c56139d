// From a node's sizes to the parameters of the kernels.
#pragma once

#include <string>

#include "doge/operators.h"
#include "problem.h"
#include "signature.h"

namespace doge::trt {

inline doge_dtype dtype_of(Type type) {
    switch (type) {
        case Type::float32: return DOGE_FLOAT32;
        case Type::float16: return DOGE_FLOAT16;
        case Type::bfloat16: return DOGE_BFLOAT16;
        default:
            throw Problem(std::string("the first input is ") + type_name(type) +
                          "; float32, float16 or bfloat16 expected");
    }
}

// B * S
inline int32_t tokens_of(const Sizes& sizes) {
    const int64_t tokens = int64_t{sizes.known(Axis::batch)} * sizes.known(Axis::new_tokens);
    if (tokens > INT32_MAX) {
        throw Problem("B * S is " + std::to_string(tokens) + "; up to 2147483647 expected");
    }
    return static_cast<int32_t>(tokens);
}

inline void throw_if(const char* problem) {
    if (problem != nullptr) {
        throw Problem(problem);
    }
}

}  // namespace doge::trt
