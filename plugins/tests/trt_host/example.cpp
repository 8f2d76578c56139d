#include "example.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <random>

#include "doge/operators.h"
#include "numbers.h"
#include "params.h"

namespace doge::testing {

using trt::Tensor;
using trt::Type;

namespace {

// Sizes that the kernels cover, small enough for the reference: keys are selected (w < P + S) in some rows only.
constexpr AttentionSizes kSizes = {3, 1, 96, 8, 2, 2, 64};
constexpr int32_t kWindow = 32;

enum Input { query, key, value, score, past_key, past_value, past_score, past_lengths, new_lengths, past_slots };
enum Output { output, present_key, present_value, present_score, present_slots };

int64_t volume(const Tensor& tensor) {
    return std::accumulate(tensor.shape.axes, tensor.shape.axes + tensor.shape.rank, int64_t{1}, std::multiplies<>());
}

doge_dtype dtype_of(const Tensor& tensor) {
    return trt::dtype_of(tensor.type == Type::int32 ? Type::float32 : tensor.type);
}

template <class Number>
Number* at(Memory& memory) {
    return reinterpret_cast<Number*>(memory.data());
}

int32_t integer(const Memory& memory, size_t place) {
    int32_t value;
    std::memcpy(&value, memory.data() + place * sizeof value, sizeof value);
    return value;
}

// Places in the text of the keys in a bounded cache: some of those read so far, each once.
std::vector<int32_t> slots_for(const std::vector<int32_t>& lengths, int64_t heads, int64_t capacity,
                               std::mt19937_64& random) {
    std::vector<int32_t> slots;
    for (const int32_t past : lengths) {
        for (int64_t head = 0; head < heads; ++head) {
            std::vector<int32_t> places(static_cast<size_t>(std::max<int64_t>(past, capacity)), 0);
            std::iota(places.begin(), places.end(), 0);
            if (past > capacity) {
                std::shuffle(places.begin(), places.end(), random);
            }
            slots.insert(slots.end(), places.begin(), places.begin() + capacity);
        }
    }
    return slots;
}

void run_attention_reference(Example& e) {
    const AttentionSizes& s = kSizes;
    doge_attention_params p = {};
    p.batch = static_cast<int32_t>(s.batch);
    p.new_tokens = static_cast<int32_t>(e.inputs[query].shape.axes[1]);
    p.capacity = static_cast<int32_t>(e.inputs[past_key].shape.axes[2]);
    p.num_heads = static_cast<int32_t>(s.num_heads);
    p.num_kv_heads = static_cast<int32_t>(s.num_kv_heads);
    p.num_score_heads = static_cast<int32_t>(s.num_score_heads);
    p.head_size = static_cast<int32_t>(s.head_size);
    p.keep_window_size = kWindow;
    p.scale = 0.125F;
    p.dtype = trt::dtype_of(e.type);
    p.query = e.input_data[query].data();
    p.key = e.input_data[key].data();
    p.value = e.input_data[value].data();
    p.score = at<float>(e.input_data[score]);
    p.past_key = e.input_data[past_key].data();
    p.past_value = e.input_data[past_value].data();
    p.past_score = at<float>(e.input_data[past_score]);
    p.past_lengths = at<int32_t>(e.input_data[past_lengths]);
    p.output = e.expected[output].data();
    p.present_key = e.expected[present_key].data();
    p.present_value = e.expected[present_value].data();
    p.present_score = at<float>(e.expected[present_score]);
    if (e.is_bounded()) {
        p.new_lengths = at<int32_t>(e.input_data[new_lengths]);
        p.past_slots = at<int32_t>(e.input_data[past_slots]);
        p.present_slots = at<int32_t>(e.expected[present_slots]);
    }
    if (doge_attention_reference(&p) != DOGE_SUCCESS) {
        throw std::logic_error(e.name + ": the reference refused it");
    }
}

void run_cdmoe_reference(Example& e) {
    doge_cdmoe_params p = {};
    p.tokens = static_cast<int32_t>(e.inputs[0].shape.axes[0] * e.inputs[0].shape.axes[1]);
    p.hidden_size = static_cast<int32_t>(e.inputs[0].shape.axes[2]);
    p.num_experts = static_cast<int32_t>(e.inputs[3].shape.axes[0]);
    p.num_keys = static_cast<int32_t>(e.inputs[1].shape.axes[3]);
    p.num_routing_heads = static_cast<int32_t>(e.inputs[1].shape.axes[2]);
    p.num_experts_per_tok = std::get<int32_t>(e.attributes[0].second);
    p.weights_inside = std::get<int32_t>(e.attributes[1].second);
    p.dtype = trt::dtype_of(e.type);
    p.hidden = e.input_data[0].data();
    p.scores_x = at<float>(e.input_data[1]);
    p.scores_y = at<float>(e.input_data[2]);
    p.down_embed = e.input_data[3].data();
    p.up_embed = e.input_data[4].data();
    p.output = e.expected[0].data();
    if (doge_cdmoe_reference(&p) != DOGE_SUCCESS) {
        throw std::logic_error(e.name + ": the reference refused it");
    }
}

// How many of a row's new tokens are no padding.
int64_t real_tokens(const Example& e, int64_t row) {
    return e.is_bounded() ? integer(e.input_data[new_lengths], static_cast<size_t>(row))
                          : e.inputs[0].shape.axes[1];
}

// The slots in use of one row and head, by the place in the text of their keys.
std::vector<int64_t> used_slots(const Example& e, const std::vector<Memory>& outputs, int64_t row, int64_t head,
                                int64_t capacity) {
    const int64_t past = integer(e.input_data[static_cast<size_t>(e.lengths_input())], static_cast<size_t>(row));
    std::vector<int64_t> slots(static_cast<size_t>(std::min(capacity, past + real_tokens(e, row))));
    std::iota(slots.begin(), slots.end(), 0);
    if (e.is_bounded()) {
        const auto place = [&](int64_t slot) {
            const int64_t first = (row * kSizes.num_kv_heads + head) * capacity;
            return integer(outputs[present_slots], static_cast<size_t>(first + slot));
        };
        std::sort(slots.begin(), slots.end(), [&](int64_t a, int64_t b) { return place(a) < place(b); });
    }
    return slots;
}

// The numbers of an output that the operator specifies, in an order that does not depend on how a cache is kept.
std::vector<double> specified(const Example& e, const std::vector<Memory>& outputs, size_t index) {
    const trt::Shape& shape = e.outputs[index].shape;
    std::vector<double> numbers;
    const auto take = [&](int64_t first, int64_t count) {
        if (e.outputs[index].type == Type::int32) {
            for (int64_t place = first; place < first + count; ++place) {
                numbers.push_back(integer(outputs[index], static_cast<size_t>(place)));
            }
        } else {
            const auto values = read(dtype_of(e.outputs[index]), outputs[index].data(), static_cast<size_t>(first),
                                     static_cast<size_t>(count));
            numbers.insert(numbers.end(), values.begin(), values.end());
        }
    };
    if (!e.is_attention()) {
        take(0, volume(e.outputs[index]));
        return numbers;
    }
    for (int64_t row = 0; row < shape.axes[0]; ++row) {
        if (index == output) {
            const int64_t width = shape.axes[2];
            take(row * shape.axes[1] * width, real_tokens(e, row) * width);
            continue;
        }
        const int64_t heads = shape.axes[1], capacity = shape.axes[2], width = shape.rank == 4 ? shape.axes[3] : 1;
        for (int64_t head = 0; head < heads; ++head) {
            for (const int64_t slot : used_slots(e, outputs, row, head, capacity)) {
                take(((row * heads + head) * capacity + slot) * width, width);
            }
        }
    }
    return numbers;
}

}  // namespace

Memory random_numbers(const Tensor& tensor, double deviation, std::mt19937_64& random, double mean) {
    Memory memory(bytes_of(tensor));
    std::normal_distribution<double> normal(mean, deviation);
    for (int64_t place = 0; place < volume(tensor); ++place) {
        write(dtype_of(tensor), memory.data(), static_cast<size_t>(place), normal(random));
    }
    return memory;
}

Memory integers(const std::vector<int32_t>& values) {
    Memory memory(values.size() * sizeof(int32_t));
    std::memcpy(memory.data(), values.data(), memory.size());
    return memory;
}

size_t bytes_of(const Tensor& tensor) {
    const size_t each = tensor.type == Type::int32 ? sizeof(int32_t) : size_of(dtype_of(tensor));
    return static_cast<size_t>(volume(tensor)) * each;
}

void run_reference(Example& example) {
    example.expected.clear();
    for (const Tensor& tensor : example.outputs) {
        example.expected.emplace_back(bytes_of(tensor), '\0');
    }
    const std::map<std::string, void (*)(Example&)> references = {
        {"DynamicMaskAttention", run_attention_reference},
        {"FusedDynamicMaskAttention", run_fused_attention_reference},
        {"CDMoE", run_cdmoe_reference},
        {"FusedCDMoE", run_fused_cdmoe_reference},
    };
    references.at(example.node)(example);
}

void set_past_lengths(Example& example, const std::vector<int32_t>& lengths) {
    example.input_data[static_cast<size_t>(example.lengths_input())] = integers(lengths);
    run_reference(example);
}

Example attention_example(const std::string& name, Type type, const AttentionOptions& options, uint64_t seed) {
    std::mt19937_64 random(seed);
    AttentionSizes sizes = kSizes;
    sizes.new_tokens = options.new_tokens;
    sizes.capacity = options.bounded ? kWindow : kSizes.capacity;
    Example e;
    e.name = name + " " + type_name(type);
    e.node = "DynamicMaskAttention";
    e.attributes = {{"num_heads", 8},
                    {"kv_num_heads", 2},
                    {"scale", 0.125F},
                    {"keep_window_size", kWindow},
                    {"bounded", options.bounded ? 1 : 0}};
    e.type = type;
    e.inputs = attention_inputs(sizes, type, options.bounded);
    e.outputs = attention_outputs(sizes, type, options.bounded);
    e.past = {-1, past_key, past_value, past_score};
    for (size_t input = 0; input <= past_score; ++input) {
        e.input_data.push_back(random_numbers(e.inputs[input], 1, random));
    }
    e.input_data.push_back(integers(options.past_lengths));
    if (options.bounded) {
        e.past.push_back(past_slots);
        e.input_data.push_back(integers(options.new_lengths));
        e.input_data.push_back(integers(slots_for(options.past_lengths, sizes.num_kv_heads, sizes.capacity, random)));
    }
    run_reference(e);
    return e;
}

Example cdmoe_example(const std::string& name, Type type, const CdmoeSizes& sizes, uint64_t seed) {
    std::mt19937_64 random(seed);
    Example e;
    e.name = name + " " + type_name(type);
    e.node = "CDMoE";
    e.attributes = {{"num_experts_per_tok", 8}, {"weights_inside", static_cast<int32_t>(seed % 2)}};
    e.type = type;
    e.inputs = cdmoe_inputs(sizes, type);
    e.outputs = {e.inputs[0]};
    e.past = {-1};
    for (size_t input = 0; input < e.inputs.size(); ++input) {
        // Rows of the tables such that a product with `hidden` is of the size of one.
        const double deviation = input < 3 ? 1 : 1 / std::sqrt(static_cast<double>(sizes.hidden_size));
        e.input_data.push_back(random_numbers(e.inputs[input], deviation, random));
    }
    run_reference(e);
    return e;
}

std::vector<Example> all_examples() {
    std::vector<Example> examples;
    uint64_t seed = 0;
    for (const Type type : {Type::float32, Type::float16, Type::bfloat16}) {
        examples.push_back(attention_example("decode", type, {}, ++seed));
        examples.push_back(attention_example("prefill", type, {11, false, {0, 40, 85}, {}}, ++seed));
        examples.push_back(attention_example("bounded decode", type, {1, true, {0, 20, 500}, {1, 1, 1}}, ++seed));
        examples.push_back(attention_example("bounded prefill", type, {11, true, {0, 20, 500}, {11, 7, 3}}, ++seed));
        examples.push_back(cdmoe_example("experts decode", type, {1, 1, 256, 1, 16, 256}, 2 * ++seed));
        examples.push_back(cdmoe_example("experts prefill", type, {2, 5, 256, 2, 16, 300}, 2 * ++seed + 1));
        examples.push_back(fused_attention_example("fused decode", type, {}, ++seed));
        examples.push_back(fused_attention_example("fused prefill", type, {11, false, {0, 40, 85}, {}}, ++seed, false));
        examples.push_back(fused_cdmoe_example("mixed experts", type, {2, 5, 256, 2, 16, 300}, true, ++seed));
        examples.push_back(fused_cdmoe_example("experts by token", type, {2, 5, 256, 2, 16, 300}, false, ++seed));
    }
    return examples;
}

trt::MakeOperator operator_of(const Example& example) {
    for (const trt::MakeOperator make : trt::kOperators) {
        if (make()->name() == example.node) {
            return make;
        }
    }
    throw std::logic_error(example.node + " is no operator");
}

double error_of(const Example& example, const std::vector<Memory>& seen, size_t index) {
    const std::vector<double> a = specified(example, seen, index), b = specified(example, example.expected, index);
    double difference = 0, norm = 0;
    for (size_t place = 0; place < b.size(); ++place) {
        if (!std::isfinite(a[place]) || (example.outputs[index].type == Type::int32 && a[place] != b[place])) {
            return INFINITY;
        }
        difference += (a[place] - b[place]) * (a[place] - b[place]);
        norm += b[place] * b[place];
    }
    return std::sqrt(difference / norm);
}

double error_limit(const Example& example, size_t output) {
    switch (example.outputs[output].type) {
        case Type::float32: return 1e-5;
        case Type::float16: return 2e-3;
        case Type::bfloat16: return 1.5e-2;
        default: return 0;
    }
}

}  // namespace doge::testing
