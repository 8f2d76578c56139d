// FusedDynamicMaskAttention: DynamicMaskAttention and what stands between the projections and it;
// include/doge/operators.h says what it computes.
#include "attention_sizes.h"
#include "doge/operators.h"
#include "operator.h"
#include "params.h"
#include "problem.h"

namespace doge::trt {
namespace {

const std::vector<Axis> kCache = {Axis::batch, Axis::num_kv_heads, Axis::capacity, Axis::head_size};
const std::vector<Axis> kScores = {Axis::batch, Axis::num_score_heads, Axis::capacity};
const std::vector<Axis> kSlots = {Axis::batch, Axis::num_kv_heads, Axis::capacity};
const std::vector<Axis> kAngles = {Axis::batch, Axis::new_tokens, Axis::half_head_size};

// The order of inputs, as far as it is fixed: behind past_lengths come the norms, if there are any, and then those of
// bounded mode.
enum Input {
    projected,
    score_source,
    score_weight,
    score_rate,
    cosines,
    sines,
    past_key,
    past_value,
    past_score,
    past_lengths,
    query_norm,
    key_norm
};
enum Output { output, present_key, present_value, present_score, present_slots };

const Signature kTensors = {
    {
        {"projected", Element::real, {Axis::batch, Axis::new_tokens, Axis::projected_width}},
        {"score_source", Element::float32, {Axis::batch, Axis::new_tokens, Axis::num_score_inputs}},
        {"score_weight", Element::float32, {Axis::num_score_heads, Axis::num_score_inputs}},
        {"score_rate", Element::float32, {Axis::num_score_heads}},
        {"cos", Element::float32, kAngles},
        {"sin", Element::float32, kAngles},
        {"past_key", Element::real, kCache},
        {"past_value", Element::real, kCache},
        {"past_score", Element::float32, kScores},
        {"past_lengths", Element::int32, {Axis::batch}},
        {"query_norm", Element::float32, {Axis::head_size}, "qk_norm"},
        {"key_norm", Element::float32, {Axis::head_size}, "qk_norm"},
        {"new_lengths", Element::int32, {Axis::batch}, "bounded"},
        {"past_slots", Element::int32, kSlots, "bounded"},
    },
    {
        {"output", Element::real, {Axis::batch, Axis::new_tokens, Axis::query_width}},
        {"present_key", Element::real, kCache, nullptr, "past_key"},
        {"present_value", Element::real, kCache, nullptr, "past_value"},
        {"present_score", Element::float32, kScores, nullptr, "past_score"},
        {"present_slots", Element::int32, kSlots, "bounded", "past_slots"},
    },
};

class FusedDynamicMaskAttention final : public Operator {
public:
    const char* name() const override { return "FusedDynamicMaskAttention"; }
    const Signature& tensors() const override { return kTensors; }

    Attributes attributes() override {
        return {
            {"num_heads", &num_heads_, kOneOrMore, true},
            {"kv_num_heads", &kv_num_heads_, kOneOrMore, true},
            {"scale", &scale_, kPositive, true},
            {"keep_window_size", &keep_window_size_, kNotNegative, true},
            {"exponential_score", &exponential_score_, kFlag, true},
            {"qk_norm", &qk_norm_, kFlag, true},
            {"epsilon", &epsilon_, kPositive, true},
            {"bounded", &bounded_, kFlag, false},
            {"alias_kv_cache", &alias_kv_cache_, kFlag, false},
        };
    }

    void check(const Sizes& sizes, Type type) const override {
        const int64_t heads = int64_t{num_heads_} + 2 * int64_t{kv_num_heads_}, size = sizes[Axis::head_size];
        check_width("projected", sizes[Axis::projected_width], "num_heads + 2 * kv_num_heads", heads, size);
        const int64_t half = sizes[Axis::half_head_size];
        if (size != Shape::kUnknown && half != Shape::kUnknown && size != 2 * half) {
            throw Problem("cos is " + std::to_string(half) + " wide; half of head size " + std::to_string(size) +
                          " expected");
        }
        check_kv_heads(sizes, kv_num_heads_);
        if (complete(sizes)) {
            const doge_fused_attention_params p = params(sizes, type);
            throw_if(doge_fused_attention_problem(&p));
        }
    }

    size_t workspace_bytes(const Sizes& sizes, Type type) const override {
        const doge_fused_attention_params p = params(sizes, type);
        return doge_fused_attention_workspace_bytes(&p);
    }

    int run(const Sizes& sizes, Type type, const void* const* inputs, void* const* outputs, void* workspace,
            void* stream) const override {
        const auto floats = [&](Input input) { return static_cast<const float*>(inputs[input]); };
        doge_fused_attention_params p = params(sizes, type);
        p.projected = inputs[projected];
        p.score_source = floats(score_source);
        p.score_weight = floats(score_weight);
        p.score_rate = floats(score_rate);
        p.cos = floats(cosines);
        p.sin = floats(sines);
        p.attention.past_key = inputs[past_key];
        p.attention.past_value = inputs[past_value];
        p.attention.past_score = floats(past_score);
        p.attention.past_lengths = static_cast<const int32_t*>(inputs[past_lengths]);
        p.query_norm = qk_norm_ != 0 ? floats(query_norm) : nullptr;
        p.key_norm = qk_norm_ != 0 ? floats(key_norm) : nullptr;
        p.attention.output = outputs[output];
        p.attention.present_key = outputs[present_key];
        p.attention.present_value = outputs[present_value];
        p.attention.present_score = static_cast<float*>(outputs[present_score]);
        if (bounded()) {
            const int new_lengths = qk_norm_ != 0 ? key_norm + 1 : past_lengths + 1;
            p.attention.new_lengths = static_cast<const int32_t*>(inputs[new_lengths]);
            p.attention.past_slots = static_cast<const int32_t*>(inputs[new_lengths + 1]);
            p.attention.present_slots = static_cast<int32_t*>(outputs[present_slots]);
        }
        return doge_fused_attention(&p, workspace, doge_fused_attention_workspace_bytes(&p), stream);
    }

    int64_t told(Axis axis, const Sizes& sizes) const override {
        return axis == Axis::query_width ? int64_t{num_heads_} * sizes.known(Axis::head_size) : Shape::kUnknown;
    }

    int32_t aliased_input(int32_t output) const override {
        return alias_kv_cache_ != 0 ? past_of(signature(), output) : -1;
    }

protected:
    void check_attributes() const override {
        check_heads(num_heads_, kv_num_heads_);
        check_window(bounded(), keep_window_size_);
    }

private:
    bool bounded() const { return bounded_ != 0; }

    doge_fused_attention_params params(const Sizes& sizes, Type type) const {
        // Only whether there are slots decides about sizes; `run` puts the real ones in.
        static int32_t some_slots[1] = {};
        doge_fused_attention_params p = {};
        p.attention.batch = sizes.known(Axis::batch);
        p.attention.new_tokens = sizes.known(Axis::new_tokens);
        p.attention.capacity = sizes.known(Axis::capacity);
        p.attention.num_heads = num_heads_;
        p.attention.num_kv_heads = kv_num_heads_;
        p.attention.num_score_heads = sizes.known(Axis::num_score_heads);
        p.attention.head_size = sizes.known(Axis::head_size);
        p.attention.keep_window_size = keep_window_size_;
        p.attention.scale = scale_;
        p.attention.dtype = dtype_of(type);
        p.attention.past_slots = bounded() ? some_slots : nullptr;
        p.attention.present_slots = bounded() ? some_slots : nullptr;
        p.num_score_inputs = sizes.known(Axis::num_score_inputs);
        p.exponential_score = exponential_score_;
        p.epsilon = epsilon_;
        return p;
    }

    int32_t num_heads_ = 0;
    int32_t kv_num_heads_ = 0;
    float scale_ = 0;
    int32_t keep_window_size_ = 0;
    int32_t exponential_score_ = 0;
    int32_t qk_norm_ = 0;
    float epsilon_ = 0;
    int32_t bounded_ = 0;
    int32_t alias_kv_cache_ = 0;
};

}  // namespace

std::unique_ptr<Operator> make_fused_dynamic_mask_attention() { return std::make_unique<FusedDynamicMaskAttention>(); }

}  // namespace doge::trt
