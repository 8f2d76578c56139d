// CDMoE as operators.h defines it, one token after the other.
#include <algorithm>
#include <cmath>
#include <vector>

#include "numbers.h"
#include "ranking.h"
#include "sizes.h"

namespace doge {
namespace {

struct Routing {
    std::vector<int> experts;     // [k]
    std::vector<double> weights;  // [k], of sum 1
};

// The k best of x[a] + y[b]. The sums are float32, as PyTorch's are: which pair is best depends on their rounding.
Routing route(const doge_cdmoe_params& p, int token, int routing_head) {
    const int stride = p.score_stride != 0 ? p.score_stride : p.num_routing_heads * p.num_keys;
    const size_t place = size_t(token) * stride + size_t(routing_head) * p.num_keys;
    const float *x = p.scores_x + place, *y = p.scores_y + place;
    std::vector<float> sums;
    for (int a = 0; a < p.num_keys; ++a) {
        std::transform(y, y + p.num_keys, std::back_inserter(sums), [&](float of_y) { return x[a] + of_y; });
    }

    Routing routing;
    routing.experts = best(sums.data(), static_cast<int>(sums.size()), p.num_experts_per_tok);
    double largest = sums[routing.experts.front()];
    for (int expert : routing.experts) {
        largest = std::max<double>(largest, sums[expert]);
    }
    double total = 0;
    for (int expert : routing.experts) {
        total += routing.weights.emplace_back(std::exp(sums[expert] - largest));
    }
    for (double& weight : routing.weights) {
        weight /= total;
    }
    return routing;
}

double silu(double x) { return x / (1 + std::exp(-x)); }

void add_experts(const doge_cdmoe_params& p, const Routing& routing, const std::vector<float>& hidden,
                 std::vector<double>& output) {
    for (size_t pick = 0; pick < routing.experts.size(); ++pick) {
        const size_t place = size_t(routing.experts[pick]) * p.hidden_size;
        const double weight = routing.weights[pick];
        const std::vector<float> down = read(p.dtype, p.down_embed, place, p.hidden_size);
        const std::vector<float> up = read(p.dtype, p.up_embed, place, p.hidden_size);
        double product = 0;
        for (int h = 0; h < p.hidden_size; ++h) {
            product += static_cast<double>(down[h]) * hidden[h];
        }
        const double activation = p.weights_inside ? silu(product * weight) : silu(product) * weight;
        for (int h = 0; h < p.hidden_size; ++h) {
            output[h] += activation * up[h];
        }
    }
}

}  // namespace
}  // namespace doge

int doge_cdmoe_reference(const doge_cdmoe_params* params) {
    if (doge::cdmoe_malformed(*params) != nullptr) {
        return DOGE_BAD_SHAPE;
    }
    for (int token = 0; token < params->tokens; ++token) {
        const size_t place = size_t(token) * params->hidden_size;
        const std::vector<float> hidden = doge::read(params->dtype, params->hidden, place, params->hidden_size);
        std::vector<double> output(params->hidden_size);
        for (int head = 0; head < params->num_routing_heads; ++head) {
            doge::add_experts(*params, doge::route(*params, token, head), hidden, output);
        }
        for (int h = 0; h < params->hidden_size; ++h) {
            doge::write(params->dtype, params->output, place + h, output[h]);
        }
    }
    return DOGE_SUCCESS;
}
