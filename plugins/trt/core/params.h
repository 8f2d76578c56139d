// From a node's sizes to the parameters of the kernels.
#pragma once

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

inline void throw_if(const char* problem) {
    if (problem != nullptr) {
        throw Problem(problem);
    }
}

}  // namespace doge::trt
