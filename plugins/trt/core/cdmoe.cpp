// CDMoE: the routed experts; include/doge/operators.h says what it computes.
#include "doge/operators.h"
#include "operator.h"
#include "params.h"
#include "problem.h"

namespace doge::trt {
namespace {

const std::vector<Axis> kHidden = {Axis::batch, Axis::new_tokens, Axis::hidden_size};
const std::vector<Axis> kRouting = {Axis::batch, Axis::new_tokens, Axis::num_routing_heads, Axis::num_keys};
const std::vector<Axis> kTable = {Axis::num_experts, Axis::hidden_size};

enum Input { hidden, scores_x, scores_y, down_embed, up_embed };

const Signature kTensors = {
    {
        {"hidden", Element::real, kHidden},
        {"scores_x", Element::float32, kRouting},
        {"scores_y", Element::float32, kRouting},
        {"down_embed", Element::real, kTable},
        {"up_embed", Element::real, kTable},
    },
    {{"output", Element::real, kHidden}},
};

class CDMoE final : public Operator {
public:
    const char* name() const override { return "CDMoE"; }
    const Signature& tensors() const override { return kTensors; }

    Attributes attributes() override {
        return {
            {"num_experts_per_tok", &num_experts_per_tok_, kOneOrMore, true},
            {"weights_inside", &weights_inside_, kFlag, true},
        };
    }

    void check(const Sizes& sizes, Type type) const override {
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
        p.hidden = inputs[hidden];
        p.scores_x = static_cast<const float*>(inputs[scores_x]);
        p.scores_y = static_cast<const float*>(inputs[scores_y]);
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
        p.num_keys = sizes.known(Axis::num_keys);
        p.num_routing_heads = sizes.known(Axis::num_routing_heads);
        p.num_experts_per_tok = num_experts_per_tok_;
        p.weights_inside = weights_inside_;
        p.dtype = dtype_of(type);
        return p;
    }

    int32_t num_experts_per_tok_ = 0;
    int32_t weights_inside_ = 0;
};

}  // namespace

std::unique_ptr<Operator> make_cdmoe() { return std::make_unique<CDMoE>(); }

}  // namespace doge::trt
