// Routing alone, against a sort of the whole grid: the same experts, whatever ties there are.
#include "../../kernels/cdmoe_prefill.cuh"

#include <set>

#include "cdmoe_case.h"

using namespace doge;
using namespace doge::emulation;

namespace {

struct Scores {
    std::vector<float> x, y;
};
using Make = std::function<Scores(int num_keys, Random&)>;

Make each(std::function<float(Random&)> score) {
    return [score](int num_keys, Random& random) {
        Scores scores;
        for (int i = 0; i < num_keys; ++i) scores.x.push_back(score(random));
        for (int i = 0; i < num_keys; ++i) scores.y.push_back(score(random));
        return scores;
    };
}

// How the scores of a token are drawn.
const std::pair<const char*, Make> kinds[] = {
    {"normal", each([](Random& r) { return r.normal(); })},
    {"all equal", each([](Random&) { return 0.25f; })},
    {"zeros of both signs", each([](Random& r) { return r.below(2) ? 0.0f : -0.0f; })},
    {"three values", each([](Random& r) { return static_cast<float>(r.below(3)); })},
    {"sixteenths", each([](Random& r) { return static_cast<float>(r.below(64)) / 16; })},
    {"negative", each([](Random& r) { return -1000 - std::fabs(r.normal()); })},
    {"1e30", each([](Random& r) { return 1e30f * r.normal(); })},
    {"of very different size", each([](Random& r) { return std::ldexp(r.normal(), r.below(60) - 30); })},
    {"one side drowns the other",  // sums of different pairs are rounded to the same number
     [](int num_keys, Random& random) {
         Scores scores = each([](Random& r) { return r.normal(); })(num_keys, random);
         std::vector<float>& large = random.below(2) ? scores.x : scores.y;
         for (float& value : large)
             value = static_cast<float>(1 << (20 + random.below(6))) + static_cast<float>(random.below(4));
         return scores;
     }},
    {"ascending",
     [](int num_keys, Random&) {
         Scores scores;
         for (int i = 0; i < num_keys; ++i) scores.x.push_back(static_cast<float>(i));
         scores.y = scores.x;
         return scores;
     }},
    {"descending, y of no weight",
     [](int num_keys, Random&) {
         Scores scores;
         for (int i = 0; i < num_keys; ++i) scores.x.push_back(static_cast<float>(-i));
         scores.y.assign(num_keys, 0.0f);
         return scores;
     }},
};

struct Routed {
    std::vector<int> experts;
    std::vector<float> weights;
};

// Tokens that all have one routing head.
std::vector<Routed> route(const std::vector<Scores>& tokens, int num_keys, int k) {
    DeviceBuffer<float> x(tokens.size() * num_keys), y(tokens.size() * num_keys), weights(tokens.size() * k);
    DeviceBuffer<int> experts(tokens.size() * k);
    for (std::size_t token = 0; token < tokens.size(); ++token) {
        std::copy(tokens[token].x.begin(), tokens[token].x.end(), x.data() + token * num_keys);
        std::copy(tokens[token].y.begin(), tokens[token].y.end(), y.data() + token * num_keys);
    }
    doge_cdmoe_params p{};
    p.tokens = static_cast<int>(tokens.size());
    p.num_routing_heads = 1;
    p.num_keys = num_keys;
    p.score_stride = num_keys;
    p.num_experts_per_tok = k;
    p.scores_x = x.data();
    p.scores_y = y.data();
    launch(cdmoe::cdmoe_route, p.tokens, cdmoe::kThreads, sizeof(cdmoe::Routing), nullptr, p,
           cdmoe::Picks{experts.data(), weights.data(), nullptr});
    std::vector<Routed> routed;
    for (std::size_t token = 0; token < tokens.size(); ++token) {
        routed.push_back({{experts.data() + token * k, experts.data() + (token + 1) * k},
                          {weights.data() + token * k, weights.data() + (token + 1) * k}});
    }
    return routed;
}

void check_token(const Scores& scores, const Routed& routed, int num_keys, int k, const std::string& name) {
    std::vector<float> sums(static_cast<std::size_t>(num_keys) * num_keys);
    for (int pair = 0; pair < num_keys * num_keys; ++pair)
        sums[pair] = scores.x[pair / num_keys] + scores.y[pair % num_keys];
    std::vector<int> order(sums.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return sums[a] > sums[b]; });
    const std::set<int> expected(order.begin(), order.begin() + k);
    const std::set<int> seen(routed.experts.begin(), routed.experts.end());
    CHECK(seen == expected, name + ": other experts");
    double total = 0;
    for (int expert : expected) total += std::exp(static_cast<double>(sums[expert]) - sums[order[0]]);
    for (int n = 0; n < k && seen == expected; ++n) {
        const double below =
            static_cast<double>(sums[order[0]]) - sums[routed.experts[n]];  // rounded to float32 by the kernel
        const double weight = std::exp(-below) / total;
        CHECK(std::fabs(routed.weights[n] - weight) <= (1e-6 + 1e-7 * below) * weight + 1e-37,
              name + ": weight of pick " + std::to_string(n));
    }
}

void experts_are_the_best() {
    const std::pair<int, int> sizes[] = {{1, 1},    {2, 1},    {2, 4},   {3, 5},   {4, 16},  {5, 25},
                                         {7, 49},   {8, 64},   {9, 64},  {11, 3},  {22, 16}, {30, 15},
                                         {31, 33},  {32, 64},  {33, 63}, {64, 32}, {65, 64}, {96, 48},
                                         {127, 64}, {128, 64}, {128, 1}, {128, 2}, {128, 63}};
    Random random(7);
    int runs = 0;
    for (const auto& [num_keys, k] : sizes) {
        std::vector<Scores> tokens;
        std::vector<const char*> names;
        for (const auto& [name, make] : kinds) {
            for (int repeat = 0; repeat < 3; ++repeat) {
                tokens.push_back(make(num_keys, random));
                names.push_back(name);
            }
        }
        set_schedule(schedules[runs++ % 4].schedule);
        const std::vector<Routed> routed = route(tokens, num_keys, k);
        for (std::size_t token = 0; token < tokens.size(); ++token) {
            check_token(tokens[token], routed[token], num_keys, k,
                        std::string(names[token]) + ", K " + std::to_string(num_keys) + ", k " + std::to_string(k));
        }
    }
}

// The case of the header's comment: pair (0, 0) is beyond the hyperbola of k = 1, but no worse after rounding, and
// first.
void rounding_makes_ties() {
    const Routed routed = route({{{0.25f, 0.5f}, {16777216.0f, 0.0f}}}, 2, 1)[0];
    CHECK(routed.experts[0] == 0, "x = (0.25, 0.5), y = (2^24, 0) picks pair " + std::to_string(routed.experts[0]));
}

// What is not a number gives some weights, but experts that exist.
void nan_does_no_harm() {
    Random random(3);
    const float strange[] = {NAN, -NAN, INFINITY, -INFINITY, 1.0f, bits_float(0xFFFFFFFF)};
    for (int num_keys : {5, 40, 128}) {
        std::vector<Scores> tokens;
        for (int token = 0; token < 20; ++token)
            tokens.push_back(each([&](Random& r) { return strange[r.below(6)]; })(num_keys, random));
        tokens.push_back(each([](Random&) { return std::numeric_limits<float>::quiet_NaN(); })(num_keys, random));
        for (int k : {1, 16, 25}) {
            for (const Routed& routed : route(tokens, num_keys, k)) {
                for (int expert : routed.experts)
                    CHECK(expert >= 0 && expert < num_keys * num_keys, "an expert that does not exist");
            }
        }
    }
}

}  // namespace

int main() {
    experts_are_the_best();
    rounding_makes_ties();
    nan_does_no_harm();
    return failures();
}
