// What the attributes and sizes of both attention operators must agree in.
#pragma once

#include <string>

#include "problem.h"
#include "signature.h"

namespace doge::trt {

// heads * head_size == width, as far as they are known.
inline void check_width(const char* tensor, int64_t width, const char* attribute, int64_t heads, int64_t head_size) {
    if (width != Shape::kUnknown && head_size != Shape::kUnknown && width != heads * head_size) {
        throw Problem(std::string(tensor) + " is " + std::to_string(width) + " wide; " + attribute + " " +
                      std::to_string(heads) + " times head size " + std::to_string(head_size) + " expected");
    }
}

inline void check_kv_heads(const Sizes& sizes, int64_t expected) {
    const int64_t heads = sizes[Axis::num_kv_heads];
    if (heads != Shape::kUnknown && heads != expected) {
        throw Problem("past_key has " + std::to_string(heads) + " heads; kv_num_heads " + std::to_string(expected) +
                      " expected");
    }
}

inline void check_heads(int32_t num_heads, int32_t kv_num_heads) {
    if (num_heads % kv_num_heads != 0) {
        throw Problem("num_heads is " + std::to_string(num_heads) + "; a multiple of kv_num_heads " +
                      std::to_string(kv_num_heads) + " expected");
    }
}

inline void check_window(bool bounded, int32_t keep_window_size) {
    if (bounded && keep_window_size == 0) {
        throw Problem("keep_window_size is 0, which keeps every key; 1 or more expected with bounded 1");
    }
}

}  // namespace doge::trt
