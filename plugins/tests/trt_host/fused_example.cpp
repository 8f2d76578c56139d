// Examples of the fused operators.
#include <cmath>

#include "doge/operators.h"
#include "example.h"
#include "params.h"

namespace doge::testing {

using trt::Tensor;
using trt::Type;

namespace {

constexpr AttentionSizes kSizes = {3, 1, 96, 8, 2, 2, 64};
constexpr int64_t kScoreInputs = 40;
constexpr int32_t kWindow = 32;
constexpr float kEpsilon = 1e-2F;

float* floats(Memory& memory) { return reinterpret_cast<float*>(memory.data()); }

void require(int status, const Example& example) {
    if (status != DOGE_SUCCESS) {
        throw std::logic_error(example.name + ": the reference refused it");
    }
}

}  // namespace

void run_fused_attention_reference(Example& e) {
    doge_fused_attention_params p = {};
    doge_attention_params& a = p.attention;
    a.batch = static_cast<int32_t>(kSizes.batch);
    a.new_tokens = static_cast<int32_t>(e.inputs[0].shape.axes[1]);
    a.capacity = static_cast<int32_t>(kSizes.capacity);
    a.num_heads = static_cast<int32_t>(kSizes.num_heads);
    a.num_kv_heads = static_cast<int32_t>(kSizes.num_kv_heads);
    a.num_score_heads = static_cast<int32_t>(kSizes.num_score_heads);
    a.head_size = static_cast<int32_t>(kSizes.head_size);
    a.keep_window_size = kWindow;
    a.scale = 0.125F;
    a.dtype = trt::dtype_of(e.type);
    p.num_score_inputs = static_cast<int32_t>(kScoreInputs);
    p.exponential_score = 1;
    p.epsilon = kEpsilon;
    std::vector<Memory>& in = e.input_data;
    p.projected = in[0].data();
    p.score_source = floats(in[1]);
    p.score_weight = floats(in[2]);
    p.score_rate = floats(in[3]);
    p.cos = floats(in[4]);
    p.sin = floats(in[5]);
    a.past_key = in[6].data();
    a.past_value = in[7].data();
    a.past_score = floats(in[8]);
    a.past_lengths = reinterpret_cast<int32_t*>(in[9].data());
    p.query_norm = in.size() > 10 ? floats(in[10]) : nullptr;
    p.key_norm = in.size() > 10 ? floats(in[11]) : nullptr;
    a.output = e.expected[0].data();
    a.present_key = e.expected[1].data();
    a.present_value = e.expected[2].data();
    a.present_score = floats(e.expected[3]);
    require(doge_fused_attention_reference(&p), e);
}

void run_fused_cdmoe_reference(Example& e) {
    const trt::Shape& hidden = e.inputs[0].shape;
    doge_cdmoe_params p = {};
    p.num_experts_per_tok = std::get<int32_t>(e.attributes[0].second);
    p.weights_inside = std::get<int32_t>(e.attributes[1].second);
    p.num_routing_heads = std::get<int32_t>(e.attributes[2].second);
    const bool mixes_tokens = std::get<int32_t>(e.attributes[3].second) != 0;
    const auto width = static_cast<int32_t>(e.inputs[1].shape.axes[2]);
    p.tokens = static_cast<int32_t>(hidden.axes[0] * hidden.axes[1]);
    p.hidden_size = static_cast<int32_t>(hidden.axes[2]);
    p.num_experts = static_cast<int32_t>(e.inputs[2].shape.axes[0]);
    p.num_keys = width / 2 / p.num_routing_heads;
    p.dtype = trt::dtype_of(e.type);
    p.hidden = e.input_data[0].data();
    // The halves, made contiguous.
    std::vector<float> halves[2];
    const float* scores = floats(e.input_data[1]);
    for (int32_t place = 0; place < p.tokens * width; ++place) {
        const bool is_second = mixes_tokens ? place >= p.tokens * width / 2 : place % width >= width / 2;
        halves[is_second ? 1 : 0].push_back(scores[place]);
    }
    p.scores_x = halves[0].data();
    p.scores_y = halves[1].data();
    p.down_embed = e.input_data[2].data();
    p.up_embed = e.input_data[3].data();
    p.output = e.expected[0].data();
    require(doge_cdmoe_reference(&p), e);
}

Example fused_attention_example(const std::string& name, Type type, const AttentionOptions& options, uint64_t seed,
                                bool norm) {
    std::mt19937_64 random(seed);
    AttentionSizes sizes = kSizes;
    sizes.new_tokens = options.new_tokens;
    Example e;
    e.name = name + " " + type_name(type);
    e.node = "FusedDynamicMaskAttention";
    e.attributes = fused_attention_values();
    e.attributes = with(e.attributes, "qk_norm", norm ? 1 : 0);
    e.attributes = with(e.attributes, "kv_num_heads", 2);
    e.attributes = with(e.attributes, "keep_window_size", kWindow);
    e.attributes = with(e.attributes, "epsilon", kEpsilon);
    e.type = type;
    e.inputs = fused_attention_inputs(sizes, kScoreInputs, type, norm);
    e.outputs = attention_outputs(sizes, type);
    e.past = {-1, 6, 7, 8};
    const double small = 1 / std::sqrt(static_cast<double>(kScoreInputs));
    for (size_t input = 0; input < e.inputs.size(); ++input) {
        const bool is_norm = input > 9;
        e.input_data.push_back(input == 9 ? integers(options.past_lengths)
                                          : random_numbers(e.inputs[input], input == 2 ? small : is_norm ? 0.2 : 1,
                                                           random, is_norm ? 1 : 0));
    }
    run_reference(e);
    return e;
}

Example fused_cdmoe_example(const std::string& name, Type type, const CdmoeSizes& sizes, bool mixes_tokens,
                            uint64_t seed) {
    std::mt19937_64 random(seed);
    const std::vector<Tensor> apart = cdmoe_inputs(sizes, type);
    Example e;
    e.name = name + " " + type_name(type);
    e.node = "FusedCDMoE";
    e.attributes = fused_cdmoe_values();
    e.attributes = with(e.attributes, "num_routing_heads", static_cast<int32_t>(sizes.num_routing_heads));
    e.attributes = with(e.attributes, "mixes_tokens", mixes_tokens ? 1 : 0);
    e.type = type;
    e.inputs = fused_cdmoe_inputs(sizes, type);
    e.outputs = {e.inputs[0]};
    e.past = {-1};
    for (size_t input = 0; input < e.inputs.size(); ++input) {
        const double deviation = input < 2 ? 1 : 1 / std::sqrt(static_cast<double>(sizes.hidden_size));
        e.input_data.push_back(random_numbers(e.inputs[input], deviation, random));
    }
    run_reference(e);
    return e;
}

}  // namespace doge::testing
