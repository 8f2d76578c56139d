// What the two operators make of attributes and sizes, up to the very arguments of the kernels: these are replaced here
// by functions that note what they are given.
#include "doge/operators.h"
#include "check.h"
#include "fields.h"
#include "tensors.h"

using namespace doge::testing;
using namespace doge::trt;

namespace {

doge_attention_params attention_seen;
doge_cdmoe_params cdmoe_seen;
struct {
    void* workspace;
    size_t workspace_bytes;
    void* stream;
} launch_seen;

}  // namespace

size_t doge_attention_workspace_bytes(const doge_attention_params* p) {
    return 1000 + static_cast<size_t>(p->batch) * static_cast<size_t>(p->capacity);
}

size_t doge_cdmoe_workspace_bytes(const doge_cdmoe_params* p) { return 1000 + static_cast<size_t>(p->tokens); }

int doge_attention(const doge_attention_params* params, void* workspace, size_t workspace_bytes, void* stream) {
    attention_seen = *params;
    launch_seen = {workspace, workspace_bytes, stream};
    return 11;
}

int doge_cdmoe(const doge_cdmoe_params* params, void* workspace, size_t workspace_bytes, void* stream) {
    cdmoe_seen = *params;
    launch_seen = {workspace, workspace_bytes, stream};
    return 12;
}

namespace {

std::unique_ptr<Operator> made(MakeOperator make, const Values& values) {
    const GivenFields given(values);
    std::unique_ptr<Operator> node = make();
    node->read(given.fields(), Phase::build);
    return node;
}

std::unique_ptr<Operator> attention(const Values& values) { return made(make_dynamic_mask_attention, values); }

Sizes sizes_for(const Operator& node, const std::vector<Tensor>& inputs) {
    return sizes_of(node.signature(), inputs.data(), static_cast<int32_t>(inputs.size()));
}

// Memory that nobody reads: only where it is matters.
char memory[32];

void attention_arguments() {
    const void* inputs[10];
    void* outputs[5];
    for (size_t index = 0; index < 10; ++index) {
        inputs[index] = memory + index;
    }
    for (size_t index = 0; index < 5; ++index) {
        outputs[index] = memory + 10 + index;
    }
    for (const bool bounded : {false, true}) {
        const auto node = attention(bounded ? bounded_values() : attention_values());
        const Sizes sizes = sizes_for(*node, attention_inputs({}, Type::bfloat16, bounded));
        CHECK_EQUAL(node->run(sizes, Type::bfloat16, inputs, outputs, memory + 20, memory + 21), 11);
        const doge_attention_params& p = attention_seen;
        CHECK_EQUAL(p.batch, 2);
        CHECK_EQUAL(p.new_tokens, 3);
        CHECK_EQUAL(p.capacity, 2048);
        CHECK_EQUAL(p.num_heads, 8);
        CHECK_EQUAL(p.num_kv_heads, 4);
        CHECK_EQUAL(p.num_score_heads, 4);
        CHECK_EQUAL(p.head_size, 64);
        CHECK_EQUAL(p.keep_window_size, 2048);
        CHECK_EQUAL(p.scale, 0.125F);
        CHECK_EQUAL(p.dtype, DOGE_BFLOAT16);
        const void* given[] = {p.query,    p.key,        p.value,      p.score,
                               p.past_key, p.past_value, p.past_score, p.past_lengths};
        for (size_t index = 0; index < std::size(given); ++index) {
            CHECK(given[index] == inputs[index]);
        }
        const void* made_there[] = {p.output, p.present_key, p.present_value, p.present_score};
        for (size_t index = 0; index < std::size(made_there); ++index) {
            CHECK(made_there[index] == outputs[index]);
        }
        CHECK(static_cast<const void*>(p.new_lengths) == (bounded ? inputs[8] : nullptr));
        CHECK(static_cast<const void*>(p.past_slots) == (bounded ? inputs[9] : nullptr));
        CHECK(static_cast<void*>(p.present_slots) == (bounded ? outputs[4] : nullptr));
        CHECK(launch_seen.workspace == memory + 20 && launch_seen.stream == memory + 21);
        CHECK_EQUAL(launch_seen.workspace_bytes, 1000U + 2 * 2048);
        CHECK_EQUAL(node->workspace_bytes(sizes, Type::bfloat16), 1000U + 2 * 2048);
    }
}

void cdmoe_arguments() {
    const void* inputs[] = {memory, memory + 1, memory + 2, memory + 3, memory + 4};
    void* outputs[] = {memory + 5};
    for (const int32_t inside : {0, 1}) {
        const auto node = made(make_cdmoe, with(cdmoe_values(), "weights_inside", inside));
        const Sizes sizes = sizes_for(*node, cdmoe_inputs({}, Type::float16));
        CHECK_EQUAL(node->run(sizes, Type::float16, inputs, outputs, memory + 20, memory + 21), 12);
        const doge_cdmoe_params& p = cdmoe_seen;
        CHECK_EQUAL(p.tokens, 6);
        CHECK_EQUAL(p.hidden_size, 512);
        CHECK_EQUAL(p.num_experts, 1024);
        CHECK_EQUAL(p.num_keys, 32);
        CHECK_EQUAL(p.num_routing_heads, 1);
        CHECK_EQUAL(p.num_experts_per_tok, 4);
        CHECK_EQUAL(p.weights_inside, inside);
        CHECK_EQUAL(p.dtype, DOGE_FLOAT16);
        const void* given[] = {p.hidden, p.scores_x, p.scores_y, p.down_embed, p.up_embed};
        for (size_t index = 0; index < std::size(given); ++index) {
            CHECK(given[index] == inputs[index]);
        }
        CHECK(p.output == outputs[0]);
        CHECK(launch_seen.workspace == memory + 20 && launch_seen.stream == memory + 21);
        CHECK_EQUAL(launch_seen.workspace_bytes, 1006U);
        CHECK_EQUAL(node->workspace_bytes(sizes, Type::float16), 1006U);
    }
}

void types() {
    const auto node = made(make_cdmoe, cdmoe_values());
    const Sizes sizes = sizes_for(*node, cdmoe_inputs({}, Type::float32));
    const void* inputs[5] = {};
    void* outputs[1] = {};
    const std::pair<Type, doge_dtype> expected[] = {
        {Type::float32, DOGE_FLOAT32}, {Type::float16, DOGE_FLOAT16}, {Type::bfloat16, DOGE_BFLOAT16}};
    for (const auto& [type, dtype] : expected) {
        node->run(sizes, type, inputs, outputs, nullptr, nullptr);
        CHECK_EQUAL(cdmoe_seen.dtype, dtype);
    }
    CHECK_PROBLEM(node->workspace_bytes(sizes, Type::int32),
                  "the first input is int32; float32, float16 or bfloat16 expected");
}

std::string attention_problem(const Values& values, const AttentionSizes& sizes) {
    return problem_of([&] {
        const auto node = attention(values);
        const bool bounded = node->signature().inputs.size() == 10;
        node->check(sizes_for(*node, attention_inputs(sizes, Type::float16, bounded)), Type::float16);
    });
}

void attention_checks() {
    const auto sized = [](auto AttentionSizes::* member, int64_t size) {
        AttentionSizes sizes;
        sizes.*member = size;
        return sizes;
    };
    CHECK_EQUAL(attention_problem(attention_values(), {}), "no problem");
    CHECK_EQUAL(attention_problem(bounded_values(), {}), "no problem");
    CHECK_EQUAL(attention_problem(attention_values(), sized(&AttentionSizes::num_heads, 16)),
                "query is 1024 wide; num_heads 8 times head size 64 expected");
    CHECK_EQUAL(attention_problem(with(attention_values(), "kv_num_heads", 2), {}),
                "key is 256 wide; kv_num_heads 2 times head size 64 expected");
    CHECK_EQUAL(problem_of([] {
                    const auto node = attention(attention_values());
                    std::vector<Tensor> inputs = attention_inputs({}, Type::float16);
                    inputs[4].shape.axes[1] = inputs[5].shape.axes[1] = 2;
                    node->check(sizes_for(*node, inputs), Type::float16);
                }),
                "past_key has 2 heads; kv_num_heads 4 expected");
    // What the kernels' own check finds comes through: it knows whether the cache is bounded.
    CHECK_EQUAL(attention_problem(attention_values(), sized(&AttentionSizes::head_size, 72)),
                "head_size is 72; the kernels cover 64, 80, 96, 128 and 256");
    CHECK_EQUAL(attention_problem(attention_values(), sized(&AttentionSizes::capacity, 1024)), "no problem");
    CHECK_EQUAL(attention_problem(bounded_values(), sized(&AttentionSizes::capacity, 1024)),
                "a bounded cache needs keep_window_size (2048) equal to capacity (1024)");
    CHECK_EQUAL(attention_problem(attention_values(), sized(&AttentionSizes::num_score_heads, 1)), "no problem");
    CHECK_EQUAL(attention_problem(bounded_values(), sized(&AttentionSizes::num_score_heads, 1)),
                "a bounded cache needs num_score_heads (1) equal to num_kv_heads (4)");
    CHECK_EQUAL(attention_problem(attention_values(), sized(&AttentionSizes::batch, int64_t{1} << 31)),
                "B is 2147483648; a size from 1 to 2147483647 expected");
    // While a size is open the others are looked at all the same.
    AttentionSizes open = sized(&AttentionSizes::batch, Shape::kUnknown);
    CHECK_EQUAL(attention_problem(attention_values(), open), "no problem");
    open.num_heads = 16;
    CHECK_EQUAL(attention_problem(attention_values(), open),
                "query is 1024 wide; num_heads 8 times head size 64 expected");
}

void cdmoe_checks() {
    const auto problem = [](const Values& values, const CdmoeSizes& sizes) {
        return problem_of([&] {
            const auto node = made(make_cdmoe, values);
            node->check(sizes_for(*node, cdmoe_inputs(sizes, Type::float16)), Type::float16);
        });
    };
    CdmoeSizes sizes;
    CHECK_EQUAL(problem(cdmoe_values(), sizes), "no problem");
    CHECK_EQUAL(problem(with(cdmoe_values(), "num_experts_per_tok", 65), sizes),
                "num_experts_per_tok is 65; the kernels cover up to 64");
    sizes.num_keys = 33;
    CHECK_EQUAL(problem(cdmoe_values(), sizes),
                "num_keys is 33, not at least 1 with num_keys * num_keys <= num_experts (1024)");
    sizes.num_keys = 32;
    sizes.batch = sizes.new_tokens = 1 << 16;
    CHECK_EQUAL(problem(cdmoe_values(), sizes), "B * S is 4294967296; up to 2147483647 expected");
}

void aliases() {
    const auto inputs_of = [](const Values& values) {
        const auto node = attention(values);
        std::vector<int32_t> inputs;
        for (size_t output = 0; output < node->signature().outputs.size(); ++output) {
            inputs.push_back(node->aliased_input(static_cast<int32_t>(output)));
        }
        return inputs;
    };
    CHECK(inputs_of(attention_values()) == std::vector<int32_t>({-1, -1, -1, -1}));
    CHECK(inputs_of(with(attention_values(), "alias_kv_cache", 1)) == std::vector<int32_t>({-1, 4, 5, 6}));
    CHECK(inputs_of(bounded_values()) == std::vector<int32_t>({-1, 4, 5, 6, 9}));
    CHECK_EQUAL(made(make_cdmoe, cdmoe_values())->aliased_input(0), -1);
}

}  // namespace

int main() {
    attention_arguments();
    cdmoe_arguments();
    types();
    attention_checks();
    cdmoe_checks();
    aliases();
    return outcome();
}
