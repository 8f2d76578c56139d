// The tensors of a node at given sizes.
#pragma once

#include <initializer_list>
#include <vector>

#include "operator.h"

namespace doge::testing {

struct AttentionSizes {
    int64_t batch = 2, new_tokens = 3, capacity = 2048, num_heads = 8, num_kv_heads = 4, num_score_heads = 4,
            head_size = 64;
};

struct CdmoeSizes {
    int64_t batch = 2, new_tokens = 3, hidden_size = 512, num_routing_heads = 1, num_keys = 32, num_experts = 1024;
};

inline trt::Shape shape(std::initializer_list<int64_t> axes) {
    trt::Shape shape;
    for (const int64_t axis : axes) {
        shape.axes[shape.rank++] = axis;
    }
    return shape;
}

// The product, or unknown where a factor is.
inline int64_t times(int64_t a, int64_t b) { return a < 0 || b < 0 ? trt::Shape::kUnknown : a * b; }

inline std::vector<trt::Tensor> attention_inputs(const AttentionSizes& s, trt::Type type, bool bounded = false) {
    const trt::Shape query = shape({s.batch, s.new_tokens, times(s.num_heads, s.head_size)});
    const trt::Shape key = shape({s.batch, s.new_tokens, times(s.num_kv_heads, s.head_size)});
    const trt::Shape cache = shape({s.batch, s.num_kv_heads, s.capacity, s.head_size});
    const trt::Type f32 = trt::Type::float32, i32 = trt::Type::int32;
    std::vector<trt::Tensor> inputs = {
        {type, true, query},
        {type, true, key},
        {type, true, key},
        {f32, true, shape({s.batch, s.new_tokens, s.num_score_heads})},
        {type, true, cache},
        {type, true, cache},
        {f32, true, shape({s.batch, s.num_score_heads, s.capacity})},
        {i32, true, shape({s.batch})},
    };
    if (bounded) {
        inputs.push_back({i32, true, shape({s.batch})});
        inputs.push_back({i32, true, shape({s.batch, s.num_kv_heads, s.capacity})});
    }
    return inputs;
}

inline std::vector<trt::Tensor> attention_outputs(const AttentionSizes& s, trt::Type type, bool bounded = false) {
    const std::vector<trt::Tensor> inputs = attention_inputs(s, type, bounded);
    std::vector<trt::Tensor> outputs = {inputs[0], inputs[4], inputs[5], inputs[6]};
    if (bounded) {
        outputs.push_back(inputs[9]);
    }
    return outputs;
}

inline std::vector<trt::Tensor> fused_attention_inputs(const AttentionSizes& s, int64_t score_inputs, trt::Type type,
                                                       bool norm, bool bounded = false) {
    const int64_t half = s.head_size < 0 ? trt::Shape::kUnknown : s.head_size / 2;
    const trt::Shape angles = shape({s.batch, s.new_tokens, half});
    const trt::Type f32 = trt::Type::float32;
    std::vector<trt::Tensor> inputs = attention_inputs(s, type);
    inputs.erase(inputs.begin(), inputs.begin() + 4);
    const int64_t width = times(s.num_heads + 2 * s.num_kv_heads, s.head_size);
    const std::vector<trt::Tensor> first = {
        {type, true, shape({s.batch, s.new_tokens, width})},
        {f32, true, shape({s.batch, s.new_tokens, score_inputs})},
        {f32, true, shape({s.num_score_heads, score_inputs})},
        {f32, true, shape({s.num_score_heads})},
        {f32, true, angles},
        {f32, true, angles},
    };
    inputs.insert(inputs.begin(), first.begin(), first.end());
    for (int n = 0; n < 2 && norm; ++n) {
        inputs.push_back({f32, true, shape({s.head_size})});
    }
    if (bounded) {
        inputs.push_back({trt::Type::int32, true, shape({s.batch})});
        inputs.push_back({trt::Type::int32, true, shape({s.batch, s.num_kv_heads, s.capacity})});
    }
    return inputs;
}

inline std::vector<trt::Tensor> cdmoe_inputs(const CdmoeSizes& s, trt::Type type) {
    const trt::Shape routing = shape({s.batch, s.new_tokens, s.num_routing_heads, s.num_keys});
    const trt::Shape table = shape({s.num_experts, s.hidden_size});
    return {
        {type, true, shape({s.batch, s.new_tokens, s.hidden_size})},
        {trt::Type::float32, true, routing},
        {trt::Type::float32, true, routing},
        {type, true, table},
        {type, true, table},
    };
}

inline std::vector<trt::Tensor> fused_cdmoe_inputs(const CdmoeSizes& s, trt::Type type) {
    std::vector<trt::Tensor> inputs = cdmoe_inputs(s, type);
    inputs.erase(inputs.begin() + 2);
    inputs[1].shape = shape({s.batch, s.new_tokens, 2 * s.num_routing_heads * s.num_keys});
    return inputs;
}

}  // namespace doge::testing
