// Types, formats and shapes, for the tensors of both operators.
#include "check.h"
#include "fields.h"
#include "tensors.h"

using namespace doge::testing;
using namespace doge::trt;

namespace {

constexpr Type kTypes[] = {Type::float32, Type::float16, Type::bfloat16, Type::int32, Type::int64, Type::other};
constexpr Type kReal[] = {Type::float32, Type::float16, Type::bfloat16};

std::unique_ptr<Operator> made(MakeOperator make, const Values& values) {
    const GivenFields given(values);
    std::unique_ptr<Operator> node = make();
    node->read(given.fields(), Phase::build);
    return node;
}

// As TensorRT asks: position by position, a wrong one ends a branch.
std::vector<std::vector<Tensor>> combinations(const Signature& signature) {
    std::vector<std::vector<Tensor>> kept = {{}};
    for (size_t position = 0; position < signature.inputs.size() + signature.outputs.size(); ++position) {
        std::vector<std::vector<Tensor>> longer;
        for (const std::vector<Tensor>& before : kept) {
            for (const Type type : kTypes) {
                for (const bool linear : {true, false}) {
                    std::vector<Tensor> tensors = before;
                    tensors.push_back({type, linear, {}});
                    if (supports(signature, static_cast<int32_t>(position), tensors.data())) {
                        longer.push_back(tensors);
                    }
                }
            }
        }
        kept = longer;
    }
    return kept;
}

// A strongly typed network fixes T: one combination is then left, and it is that of the tables in operators.h.
void formats() {
    const auto unbounded = made(make_dynamic_mask_attention, attention_values());
    const auto bounded = made(make_dynamic_mask_attention, bounded_values());
    const auto cdmoe = made(make_cdmoe, cdmoe_values());
    for (const Operator* node : {unbounded.get(), bounded.get(), cdmoe.get()}) {
        CHECK_EQUAL(combinations(node->signature()).size(), std::size(kReal));
    }
    for (size_t index = 0; index < std::size(kReal); ++index) {
        const Type t = kReal[index], f32 = Type::float32, i32 = Type::int32;
        const std::pair<const Operator*, std::vector<Type>> expected[] = {
            {bounded.get(), {t, t, t, f32, t, t, f32, i32, i32, i32, t, t, t, f32, i32}},
            {cdmoe.get(), {t, f32, f32, t, t, t}},
        };
        for (const auto& [node, types] : expected) {
            const std::vector<Tensor> seen = combinations(node->signature()).at(index);
            CHECK_EQUAL(seen.size(), types.size());
            for (size_t position = 0; position < types.size(); ++position) {
                CHECK_EQUAL(type_name(seen[position].type), std::string(type_name(types[position])));
                CHECK(seen[position].linear);
            }
        }
    }
}

void output_types() {
    const auto node = made(make_dynamic_mask_attention, bounded_values());
    for (const Type type : kReal) {
        const Type expected[] = {type, type, type, Type::float32, Type::int32};
        for (int32_t output = 0; output < 5; ++output) {
            CHECK(output_type(node->signature(), output, type) == expected[output]);
        }
    }
}

void wrong_types() {
    const auto node = made(make_dynamic_mask_attention, attention_values());
    const auto with_type = [&](size_t input, Type type) {
        std::vector<Tensor> inputs = attention_inputs({}, Type::float16);
        inputs[input].type = type;
        check_types(node->signature(), inputs.data(), 8);
    };
    for (const Type type : kReal) {
        CHECK_EQUAL(problem_of([&] { check_types(node->signature(), attention_inputs({}, type).data(), 8); }),
                    "no problem");
    }
    CHECK_PROBLEM(with_type(0, Type::int32), "query is int32; float32, float16 or bfloat16 expected");
    CHECK_PROBLEM(with_type(2, Type::float32), "value is float32; float16 expected, as query");
    CHECK_PROBLEM(with_type(3, Type::float16), "score is float16; float32 expected");
    CHECK_PROBLEM(with_type(7, Type::other), "past_lengths is an unsupported type; int32 expected");
    CHECK_PROBLEM(with_type(7, Type::int64), "past_lengths is int64; int32 expected");
    const auto experts = made(make_cdmoe, cdmoe_values());
    std::vector<Tensor> inputs = cdmoe_inputs({}, Type::float16);
    inputs[2].type = Type::float16;
    CHECK_PROBLEM(check_types(experts->signature(), inputs.data(), 5), "scores_y is float16; float32 expected");
}

void sizes() {
    const auto node = made(make_dynamic_mask_attention, bounded_values());
    const Sizes sizes = sizes_of(node->signature(), attention_inputs({}, Type::float16, true).data(), 10);
    const std::pair<Axis, int64_t> expected[] = {
        {Axis::batch, 2},       {Axis::new_tokens, 3},   {Axis::query_width, 512},
        {Axis::key_width, 256}, {Axis::num_kv_heads, 4}, {Axis::num_score_heads, 4},
        {Axis::capacity, 2048}, {Axis::head_size, 64},   {Axis::hidden_size, Shape::kUnknown},
    };
    for (const auto& [axis, size] : expected) {
        CHECK_EQUAL(sizes[axis], size);
    }
    // What one shape leaves open another tells.
    std::vector<Tensor> inputs = attention_inputs({}, Type::float16, true);
    inputs[0].shape.axes[0] = inputs[4].shape.axes[0] = Shape::kUnknown;
    CHECK_EQUAL(sizes_of(node->signature(), inputs.data(), 10)[Axis::batch], 2);
    for (Tensor& input : inputs) {
        input.shape.axes[0] = Shape::kUnknown;
    }
    CHECK_EQUAL(sizes_of(node->signature(), inputs.data(), 10)[Axis::batch], Shape::kUnknown);
    CHECK_PROBLEM(sizes_of(node->signature(), inputs.data(), 10).known(Axis::batch),
                  "B is not known; a size from 1 to 2147483647 expected");
}

void wrong_sizes() {
    const auto node = made(make_dynamic_mask_attention, attention_values());
    const auto with_shape = [&](size_t input, std::initializer_list<int64_t> axes) {
        std::vector<Tensor> inputs = attention_inputs({}, Type::float16);
        inputs[input].shape = shape(axes);
        sizes_of(node->signature(), inputs.data(), 8);
    };
    CHECK_PROBLEM(with_shape(0, {2, 3}), "query is [2, 3]; [B, S, Hq*D] expected");
    CHECK_PROBLEM(with_shape(7, {2, 1}), "past_lengths is [2, 1]; [B] expected");
    CHECK_PROBLEM(with_shape(1, {2, 4, 256}),
                  "key is [2, 4, 256]; [B, S, Hkv*D] expected with S 3, as in the inputs before it");
    CHECK_PROBLEM(with_shape(6, {2, 4, Shape::kUnknown, 1}), "past_score is [2, 4, ?, 1]; [B, Hs, C] expected");
    CHECK_PROBLEM(
        with_shape(4, {2, 4, 0, 64}),
        "past_key is [2, 4, 0, 64]; [B, Hkv, C, D] expected, none of them empty (a cache has its full capacity, "
        "whatever its length)");
    CHECK_PROBLEM(sizes_of(node->signature(), attention_inputs({}, Type::float16, true).data(), 10),
                  "10 inputs; 8 expected: query, key, value, score, past_key, past_value, past_score, past_lengths");
}

// Every axis of an output is an axis of an input of the same name.
void sources() {
    const auto attention = made(make_dynamic_mask_attention, bounded_values());
    const auto cdmoe = made(make_cdmoe, cdmoe_values());
    for (const Operator* node : {attention.get(), cdmoe.get()}) {
        for (const TensorRule& output : node->signature().outputs) {
            for (const Axis axis : output.axes) {
                const Source source = source_of(node->signature(), axis);
                CHECK(node->signature()
                          .inputs[static_cast<size_t>(source.input)]
                          .axes[static_cast<size_t>(source.axis)] == axis);
            }
        }
    }
}

}  // namespace

int main() {
    formats();
    output_types();
    wrong_types();
    sizes();
    wrong_sizes();
    sources();
    return outcome();
}
