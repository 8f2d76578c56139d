// DynamicMaskAttention over caches of fixed capacity; include/doge/operators.h says what it computes.
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

// The order of inputs and outputs; those of bounded mode come last.
enum Input { query, key, value, score, past_key, past_value, past_score, past_lengths, new_lengths, past_slots };
enum Output { output, present_key, present_value, present_score, present_slots };

const Signature kTensors = {
    {
        {"query", Element::real, {Axis::batch, Axis::new_tokens, Axis::query_width}},
        {"key", Element::real, {Axis::batch, Axis::new_tokens, Axis::key_width}},
        {"value", Element::real, {Axis::batch, Axis::new_tokens, Axis::key_width}},
        {"score", Element::float32, {Axis::batch, Axis::new_tokens, Axis::num_score_heads}},
        {"past_key", Element::real, kCache},
        {"past_value", Element::real, kCache},
        {"past_score", Element::float32, kScores},
        {"past_lengths", Element::int32, {Axis::batch}},
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

class DynamicMaskAttention final : public Operator {
public:
    const char* name() const override { return "DynamicMaskAttention"; }
    const Signature& tensors() const override { return kTensors; }

    Attributes attributes() override {
        return {
            {"num_heads", &num_heads_, kOneOrMore, true},
            {"kv_num_heads", &kv_num_heads_, kOneOrMore, true},
            {"scale", &scale_, kPositive, true},
            {"keep_window_size", &keep_window_size_, kNotNegative, true},
            {"bounded", &bounded_, kFlag, false},
            {"alias_kv_cache", &alias_kv_cache_, kFlag, false},
        };
    }

    void check(const Sizes& sizes, Type type) const override {
        check_width("query", sizes[Axis::query_width], "num_heads", num_heads_, sizes[Axis::head_size]);
        check_width("key", sizes[Axis::key_width], "kv_num_heads", kv_num_heads_, sizes[Axis::head_size]);
        check_kv_heads(sizes, kv_num_heads_);
        if (complete(sizes)) {
            const doge_attention_params p = params(sizes, type);
            throw_if(doge_attention_problem(&p));
        }
    }

    size_t workspace_bytes(const Sizes& sizes, Type type) const override {
        const doge_attention_params p = params(sizes, type);
        return doge_attention_workspace_bytes(&p);
    }

    int run(const Sizes& sizes, Type type, const void* const* inputs, void* const* outputs, void* workspace,
            void* stream) const override {
        doge_attention_params p = params(sizes, type);
        p.query = inputs[query];
        p.key = inputs[key];
        p.value = inputs[value];
        p.score = static_cast<const float*>(inputs[score]);
        p.past_key = inputs[past_key];
        p.past_value = inputs[past_value];
        p.past_score = static_cast<const float*>(inputs[past_score]);
        p.past_lengths = static_cast<const int32_t*>(inputs[past_lengths]);
        p.output = outputs[output];
        p.present_key = outputs[present_key];
        p.present_value = outputs[present_value];
        p.present_score = static_cast<float*>(outputs[present_score]);
        if (bounded()) {
            p.new_lengths = static_cast<const int32_t*>(inputs[new_lengths]);
            p.past_slots = static_cast<const int32_t*>(inputs[past_slots]);
            p.present_slots = static_cast<int32_t*>(outputs[present_slots]);
        }
        return doge_attention(&p, workspace, doge_attention_workspace_bytes(&p), stream);
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

    doge_attention_params params(const Sizes& sizes, Type type) const {
        // Only whether there are slots decides about sizes; `run` puts the real ones in.
        static int32_t some_slots[1] = {};
        doge_attention_params p = {};
        p.batch = sizes.known(Axis::batch);
        p.new_tokens = sizes.known(Axis::new_tokens);
        p.capacity = sizes.known(Axis::capacity);
        p.num_heads = num_heads_;
        p.num_kv_heads = kv_num_heads_;
        p.num_score_heads = sizes.known(Axis::num_score_heads);
        p.head_size = sizes.known(Axis::head_size);
        p.keep_window_size = keep_window_size_;
        p.scale = scale_;
        p.dtype = dtype_of(type);
        p.past_slots = bounded() ? some_slots : nullptr;
        p.present_slots = bounded() ? some_slots : nullptr;
        return p;
    }

    int32_t num_heads_ = 0;
    int32_t kv_num_heads_ = 0;
    float scale_ = 0;
    int32_t keep_window_size_ = 0;
    int32_t bounded_ = 0;
    int32_t alias_kv_cache_ = 0;
};

}  // namespace

std::unique_ptr<Operator> make_dynamic_mask_attention() { return std::make_unique<DynamicMaskAttention>(); }

}  // namespace doge::trt
