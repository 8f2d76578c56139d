// FusedCDMoE: CDMoE of a router's projection as it is, from which CDMoE takes two contiguous halves.
#include "doge/operators.h"
#include "operator.h"
#include "params.h"
#include "problem.h"

namespace doge::trt {
namespace {

const std::vector<Axis> kHidden = {Axis::batch, Axis::new_tokens, Axis::hidden_size};
const std::vector<Axis> kTable = {Axis::num_experts, Axis::hidden_size};

enum Input { hidden, scores, down_embed, up_embed };

const Signature kTensors = {
    {
        {"hidden", Element::real, kHidden},
        {"scores", Element::float32, {Axis::batch, Axis::new_tokens, Axis::routing_width}},
        {"down_embed", Element::real, kTable},
        {"up_embed", Element::real, kTable},
    },
    {{"output", Element::real, kHidden}},
};

class FusedCDMoE final : public Operator {
public:
    const char* name() const override { return "FusedCDMoE"; }
    const Signature& tensors() const override { return kTensors; }

    Attributes attributes() override {
        return {
            {"num_experts_per_tok", &num_experts_per_tok_, kOneOrMore, true},
            {"weights_inside", &weights_inside_, kFlag, true},
            {"num_routing_heads", &num_routing_heads_, kOneOrMore, true},
            {"mixes_tokens", &mixes_tokens_, kFlag, true},
        };
    }

    void check(const Sizes& sizes, Type type) const override {
        const int64_t width = sizes[Axis::routing_width];
        if (width != Shape::kUnknown && width % (2 * int64_t{num_routing_heads_}) != 0) {
            throw Problem("scores is " + std::to_string(width) + " wide; a multiple of 2 * num_routing_heads " +
                          std::to_string(num_routing_heads_) + " expected");
        }
        if (complete(sizes)) {
            const doge_cdmoe_params p = params(sizes, type);
            throw_if(doge_cdmoe_problem(&p));
        }
    }

    size_t workspace_bytes(const Sizes& sizes, Type type) const override {
        const doge_cdmoe_params p = params(sizes, type);
        return doge_cdmoe_workspace_bytes(&p);
    }

    int run(const Sizes& sizes, Type type, const void* const* inputs, void* const* outputs, void* workspace,
            void* stream) const override {
        doge_cdmoe_params p = params(sizes, type);
        const size_t half = static_cast<size_t>(p.num_routing_heads) * static_cast<size_t>(p.num_keys);
        p.hidden = inputs[hidden];
        p.scores_x = static_cast<const float*>(inputs[scores]);
        // Mixed, the halves are those of all tokens together; else each token has its own.
        p.scores_y = p.scores_x + half * (mixes_tokens_ != 0 ? static_cast<size_t>(p.tokens) : 1);
        p.down_embed = inputs[down_embed];
        p.up_embed = inputs[up_embed];
        p.output = outputs[0];
        return doge_cdmoe(&p, workspace, doge_cdmoe_workspace_bytes(&p), stream);
    }

private:
    doge_cdmoe_params params(const Sizes& sizes, Type type) const {
        doge_cdmoe_params p = {};
        p.tokens = tokens_of(sizes);
        p.hidden_size = sizes.known(Axis::hidden_size);
        p.num_experts = sizes.known(Axis::num_experts);
        p.num_keys = sizes.known(Axis::routing_width) / 2 / num_routing_heads_;
        p.num_routing_heads = num_routing_heads_;
        p.num_experts_per_tok = num_experts_per_tok_;
        p.weights_inside = weights_inside_;
        p.score_stride = mixes_tokens_ != 0 ? 0 : sizes.known(Axis::routing_width);
        p.dtype = dtype_of(type);
        return p;
    }

    int32_t num_experts_per_tok_ = 0;
    int32_t weights_inside_ = 0;
    int32_t num_routing_heads_ = 0;
    int32_t mixes_tokens_ = 0;
};

}  // namespace

std::unique_ptr<Operator> make_fused_cdmoe() { return std::make_unique<FusedCDMoE>(); }

}  // namespace doge::trt
