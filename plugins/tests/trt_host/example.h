// A node with numbers: random inputs, and what the reference makes of them.
#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fields.h"
#include "operator.h"
#include "tensors.h"

namespace doge::testing {

using Memory = std::vector<char>;

struct Example {
    std::string name;
    std::string node;
    Values attributes;
    trt::Type type;
    std::vector<trt::Tensor> inputs, outputs;
    std::vector<Memory> input_data, expected;
    std::vector<int> past;  // by output: the input whose memory it may have, or -1

    bool is_attention() const { return lengths_input() >= 0; }
    bool is_bounded() const { return node == "DynamicMaskAttention" && inputs.size() == 10; }
    // The number of past_lengths, or -1.
    int lengths_input() const {
        return node == "DynamicMaskAttention" ? 7 : node == "FusedDynamicMaskAttention" ? 9 : -1;
    }
};

struct AttentionOptions {
    int64_t new_tokens = 1;
    bool bounded = false;
    // By row of the batch. Unbounded: past + new_tokens <= 96, the capacity; bounded: any, new <= new_tokens.
    std::vector<int32_t> past_lengths = {0, 40, 85}, new_lengths = {};
};

Example attention_example(const std::string& name, trt::Type type, const AttentionOptions& options, uint64_t seed);
Example cdmoe_example(const std::string& name, trt::Type type, const CdmoeSizes& sizes, uint64_t seed);

// Of the same sizes; with `norm`, queries and keys are normalised.
Example fused_attention_example(const std::string& name, trt::Type type, const AttentionOptions& options,
                                uint64_t seed, bool norm = true);
Example fused_cdmoe_example(const std::string& name, trt::Type type, const CdmoeSizes& sizes, bool mixes_tokens,
                            uint64_t seed);

// Of the example's node.
trt::MakeOperator operator_of(const Example& example);

// Attention in every mode and CDMoE in both generations, fused and not, in all three types.
std::vector<Example> all_examples();

// Computes `expected` anew from the inputs.
void run_reference(Example& example);

// The same example with rows of other lengths: what a decode step in a captured graph meets.
void set_past_lengths(Example& example, const std::vector<int32_t>& lengths);

size_t bytes_of(const trt::Tensor& tensor);

// What makes examples: numbers of a deviation around a mean, and integers.
Memory random_numbers(const trt::Tensor& tensor, double deviation, std::mt19937_64& random, double mean = 0);
Memory integers(const std::vector<int32_t>& values);
void run_fused_attention_reference(Example& example);
void run_fused_cdmoe_reference(Example& example);

// ||seen - expected|| / ||expected|| of an output, over what the operator specifies: not the slots of a cache that no
// token has, not padding; a bounded cache may have its keys in any order. Infinite where a place differs or a number is
// not finite.
double error_of(const Example& example, const std::vector<Memory>& seen, size_t output);

// The largest error that kernels with float32 sums may have; 0 for places, which are found exactly or not at all.
double error_limit(const Example& example, size_t output);

}  // namespace doge::testing
