// The inputs and outputs of an operator as a table: types and shapes follow from it, for all operators alike.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "tensor.h"

namespace doge::trt {

// The axes of the tensors; an axis has one size wherever it stands.
enum class Axis {
    batch,              // B
    new_tokens,         // S
    query_width,        // Hq * D
    key_width,          // Hkv * D
    projected_width,    // (Hq + 2 Hkv) * D
    num_kv_heads,       // Hkv
    num_score_heads,    // Hs
    capacity,           // C
    head_size,          // D
    half_head_size,     // D / 2
    num_score_inputs,   // X
    hidden_size,        // H
    num_routing_heads,  // R
    num_keys,           // K
    routing_width,      // 2 R * K
    num_experts,        // E
};
inline constexpr size_t kNumAxes = static_cast<size_t>(Axis::num_experts) + 1;

// "Hq*D"
const char* axis_name(Axis axis);

enum class Element {
    real,     // T: float32, float16 or bfloat16, one for the whole node, that of its first input
    float32,  // whatever T is
    int32
};

struct TensorRule {
    const char* name;
    Element element;
    std::vector<Axis> axes;
    const char* only_with = nullptr;  // the attribute that must be 1 for it to be there; else it always is
    const char* past = nullptr;       // of an output that is a cache: the input it may share memory with
};

struct Signature {
    std::vector<TensorRule> inputs, outputs;
};

// The size of each axis, Shape::kUnknown where no shape tells it.
struct Sizes {
    std::array<int64_t, kNumAxes> values;

    int64_t operator[](Axis axis) const { return values[static_cast<size_t>(axis)]; }
    // Of an axis whose size is known and fits: throws Problem otherwise.
    int32_t known(Axis axis) const;
};

// Reads the sizes off the inputs' shapes; throws Problem where a rank is wrong, an axis is empty or two axes differ.
Sizes sizes_of(const Signature& signature, const Tensor* inputs, int32_t num_inputs);

// Whether the plugin takes tensor `position` (inputs, then outputs) as it is, given those before it.
bool supports(const Signature& signature, int32_t position, const Tensor* tensors);

// Throws Problem on the first input whose type the operator does not take.
void check_types(const Signature& signature, const Tensor* inputs, int32_t num_inputs);

Type output_type(const Signature& signature, int32_t output, Type first_input);

// Where the size of an output's axis is found: every one of them is an axis of an input.
struct Source {
    int32_t input, axis;
};
Source source_of(const Signature& signature, Axis axis);

// The input that an output may share memory with, or -1.
int32_t past_of(const Signature& signature, int32_t output);

}  // namespace doge::trt
