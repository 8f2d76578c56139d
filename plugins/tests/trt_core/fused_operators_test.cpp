// What the two fused operators make of attributes and sizes, up to the very arguments of the kernels.
#include "check.h"
#include "doge/operators.h"
#include "fields.h"
#include "problem.h"
#include "tensors.h"

using namespace doge::testing;
using namespace doge::trt;

namespace {

doge_fused_attention_params attention_seen;
doge_cdmoe_params cdmoe_seen;

}  // namespace

size_t doge_fused_attention_workspace_bytes(const doge_fused_attention_params* p) {
    return 1000 + static_cast<size_t>(p->attention.batch) * static_cast<size_t>(p->num_score_inputs);
}
size_t doge_cdmoe_workspace_bytes(const doge_cdmoe_params* p) { return 1000 + static_cast<size_t>(p->tokens); }

int doge_fused_attention(const doge_fused_attention_params* params, void*, size_t, void*) {
    attention_seen = *params;
    return 11;
}
int doge_cdmoe(const doge_cdmoe_params* params, void*, size_t, void*) {
    cdmoe_seen = *params;
    return 12;
}

namespace {

std::unique_ptr<Operator> made(MakeOperator make, const Values& values) {
    const GivenFields given(values);
    std::unique_ptr<Operator> node = make();
    node->read(given.fields(), Phase::build);
    return node;
}

Sizes sizes_for(const Operator& node, const std::vector<Tensor>& inputs) {
    return sizes_of(node.signature(), inputs.data(), static_cast<int32_t>(inputs.size()));
}

std::string problem_of(const Operator& node, const std::vector<Tensor>& inputs) {
    try {
        node.check(sizes_for(node, inputs), Type::float16);
    } catch (const Problem& problem) {
        return problem.what();
    }
    return "none";
}

// Memory that nobody reads: only where it is matters.
char memory[32];

void attention_arguments(bool norm, bool bounded) {
    const void* inputs[14];
    void* outputs[5];
    for (size_t index = 0; index < 14; ++index) {
        inputs[index] = memory + index;
    }
    for (size_t index = 0; index < 5; ++index) {
        outputs[index] = memory + 14 + index;
    }
    const Values values = with(fused_attention_values(), "qk_norm", norm ? 1 : 0);
    const auto node = made(make_fused_dynamic_mask_attention, with(values, "bounded", bounded ? 1 : 0));
    const Sizes sizes = sizes_for(*node, fused_attention_inputs({}, 512, Type::bfloat16, norm, bounded));
    node->check(sizes, Type::bfloat16);
    CHECK_EQUAL(node->run(sizes, Type::bfloat16, inputs, outputs, memory + 20, memory + 21), 11);
    const doge_fused_attention_params& p = attention_seen;
    CHECK_EQUAL(p.attention.batch, 2);
    CHECK_EQUAL(p.attention.new_tokens, 3);
    CHECK_EQUAL(p.attention.capacity, 2048);
    CHECK_EQUAL(p.attention.num_heads, 8);
    CHECK_EQUAL(p.attention.num_kv_heads, 4);
    CHECK_EQUAL(p.attention.num_score_heads, 4);
    CHECK_EQUAL(p.attention.head_size, 64);
    CHECK_EQUAL(p.attention.keep_window_size, 2048);
    CHECK_EQUAL(p.attention.scale, 0.125F);
    CHECK_EQUAL(p.attention.dtype, DOGE_BFLOAT16);
    CHECK_EQUAL(p.num_score_inputs, 512);
    CHECK_EQUAL(p.exponential_score, 1);
    CHECK_EQUAL(p.epsilon, 1e-6F);
    const size_t last = norm ? 12 : 10;
    CHECK(static_cast<const void*>(p.attention.new_lengths) == (bounded ? inputs[last] : nullptr));
    CHECK(static_cast<const void*>(p.attention.past_slots) == (bounded ? inputs[last + 1] : nullptr));
    CHECK(static_cast<void*>(p.attention.present_slots) == (bounded ? outputs[4] : nullptr));
    const void* given[] = {p.projected, p.score_source,       p.score_weight,         p.score_rate,
                           p.cos,       p.sin,                p.attention.past_key,   p.attention.past_value,
                           p.attention.past_score, p.attention.past_lengths};
    for (size_t index = 0; index < std::size(given); ++index) {
        CHECK(given[index] == inputs[index]);
    }
    CHECK(static_cast<const void*>(p.query_norm) == (norm ? inputs[10] : nullptr));
    CHECK(static_cast<const void*>(p.key_norm) == (norm ? inputs[11] : nullptr));
    const void* made_there[] = {p.attention.output, p.attention.present_key, p.attention.present_value,
                                p.attention.present_score};
    for (size_t index = 0; index < std::size(made_there); ++index) {
        CHECK(made_there[index] == outputs[index]);
    }
    CHECK_EQUAL(node->workspace_bytes(sizes, Type::bfloat16), 1000U + 2 * 512);
    CHECK_EQUAL(node->told(Axis::query_width, sizes), 8 * 64);
    CHECK_EQUAL(node->told(Axis::batch, sizes), Shape::kUnknown);
}

void attention_problems() {
    const auto node = made(make_fused_dynamic_mask_attention, fused_attention_values());
    CHECK_EQUAL(problem_of(*node, fused_attention_inputs({}, 512, Type::float16, true)), "none");
    AttentionSizes sizes;
    sizes.num_heads = 6;
    CHECK_EQUAL(problem_of(*node, fused_attention_inputs(sizes, 512, Type::float16, true)),
                "projected is 896 wide; num_heads + 2 * kv_num_heads 16 times head size 64 expected");
    CHECK_EQUAL(problem_of(*node, fused_attention_inputs({}, 510, Type::float16, true)),
                "num_score_inputs is 510; the kernels cover multiples of 4");
    const auto bounded = made(make_fused_dynamic_mask_attention, with(fused_attention_values(), "bounded", 1));
    CHECK_EQUAL(problem_of(*bounded, fused_attention_inputs({}, 512, Type::float16, true, true)), "none");
    sizes = {};
    sizes.capacity = 1024;
    CHECK_EQUAL(problem_of(*bounded, fused_attention_inputs(sizes, 512, Type::float16, true, true)),
                "a bounded cache needs keep_window_size (2048) equal to capacity (1024)");
    std::vector<Tensor> inputs = fused_attention_inputs({}, 512, Type::float16, true);
    inputs[4].shape = inputs[5].shape = shape({2, 3, 64});
    CHECK_EQUAL(problem_of(*node, inputs), "cos is 64 wide; half of head size 64 expected");
    CHECK_EQUAL(problem_of(*node, fused_attention_inputs({}, 512, Type::float16, false)),
                "10 inputs; 12 expected: projected, score_source, score_weight, score_rate, cos, sin, past_key, "
                "past_value, past_score, past_lengths, query_norm, key_norm");
}

void aliases() {
    for (const int32_t aliasing : {0, 1}) {
        const auto node =
            made(make_fused_dynamic_mask_attention, with(fused_attention_values(), "alias_kv_cache", aliasing));
        CHECK_EQUAL(node->aliased_input(0), -1);
        CHECK_EQUAL(node->aliased_input(1), aliasing != 0 ? 6 : -1);
        CHECK_EQUAL(node->aliased_input(3), aliasing != 0 ? 8 : -1);
    }
    for (const int32_t norm : {0, 1}) {
        Values values = with(with(fused_attention_values(), "alias_kv_cache", 1), "bounded", 1);
        const auto node = made(make_fused_dynamic_mask_attention, with(values, "qk_norm", norm));
        CHECK_EQUAL(node->aliased_input(4), norm != 0 ? 13 : 11);
    }
}

void experts(int32_t mixes_tokens) {
    const void* inputs[] = {memory, memory + 4, memory + 8, memory + 12};
    void* outputs[] = {memory + 16};
    const Values values = with(with(fused_cdmoe_values(), "mixes_tokens", mixes_tokens), "num_routing_heads", 2);
    const auto node = made(make_fused_cdmoe, values);
    const CdmoeSizes given = {2, 3, 512, 2, 16, 300};
    const Sizes sizes = sizes_for(*node, fused_cdmoe_inputs(given, Type::float16));
    CHECK_EQUAL(node->run(sizes, Type::float16, inputs, outputs, memory + 20, memory + 21), 12);
    const doge_cdmoe_params& p = cdmoe_seen;
    CHECK_EQUAL(p.tokens, 6);
    CHECK_EQUAL(p.hidden_size, 512);
    CHECK_EQUAL(p.num_experts, 300);
    CHECK_EQUAL(p.num_keys, 16);
    CHECK_EQUAL(p.num_routing_heads, 2);
    CHECK_EQUAL(p.num_experts_per_tok, 4);
    CHECK_EQUAL(p.score_stride, mixes_tokens != 0 ? 0 : 64);
    CHECK(static_cast<const void*>(p.scores_x) == inputs[1]);
    CHECK(p.scores_y == p.scores_x + (mixes_tokens != 0 ? 6 * 32 : 32));
    CHECK(p.hidden == inputs[0] && p.down_embed == inputs[2] && p.up_embed == inputs[3] && p.output == outputs[0]);
    std::vector<Tensor> odd = fused_cdmoe_inputs(given, Type::float16);
    odd[1].shape = shape({2, 3, 66});
    CHECK_EQUAL(problem_of(*node, odd), "scores is 66 wide; a multiple of 2 * num_routing_heads 2 expected");
}

}  // namespace

int main() {
    for (const bool norm : {false, true}) {
        attention_arguments(norm, false);
        attention_arguments(norm, true);
    }
    attention_problems();
    aliases();
    experts(0);
    experts(1);
    return outcome();
}
