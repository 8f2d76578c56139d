// A CDMoE call with random tensors, run by the emulated kernels and by the reference.
#ifndef DOGE_TESTS_CDMOE_CASE_H
#define DOGE_TESTS_CDMOE_CASE_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>

#include "doge/operators.h"
#include "testing.h"

namespace doge::tests {

using emulation::DeviceBuffer;
using emulation::Random;

template <class T>
struct Storage;
template <>
struct Storage<float> {
    static constexpr doge_dtype dtype = DOGE_FLOAT32;
    static constexpr double bar = 1e-5;
    static constexpr const char* name = "fp32";
};
template <>
struct Storage<__half> {
    static constexpr doge_dtype dtype = DOGE_FLOAT16;
    static constexpr double bar = 2e-3;
    static constexpr const char* name = "fp16";
};
template <>
struct Storage<__nv_bfloat16> {
    static constexpr doge_dtype dtype = DOGE_BFLOAT16;
    static constexpr double bar = 1.5e-2;
    static constexpr const char* name = "bf16";
};

struct CdmoeSizes {
    int tokens, hidden_size, num_experts, num_keys, num_routing_heads, num_experts_per_tok;
    bool weights_inside = false;
};

// score(random) gives each routing score; others are normal, rows of down_embed of norm 1.
using Score = std::function<float(Random&)>;
inline float normal_score(Random& random) { return random.normal(); }

template <class T>
class CdmoeCase {
  public:
    explicit CdmoeCase(CdmoeSizes sizes, Score score = normal_score, std::uint64_t seed = 1)
        : hidden(std::size_t(sizes.tokens) * sizes.hidden_size),
          down(std::size_t(sizes.num_experts) * sizes.hidden_size),
          up(down.size()),
          output(hidden.size()),
          expected(hidden.size()),
          scores_x(std::size_t(sizes.tokens) * sizes.num_routing_heads * sizes.num_keys),
          scores_y(scores_x.size()) {
        Random random(seed);
        const float scale = 1 / std::sqrt(static_cast<float>(sizes.hidden_size));
        fill(hidden, [&] { return random.normal(); });
        fill(scores_x, [&] { return score(random); });
        fill(scores_y, [&] { return score(random); });
        fill(down, [&] { return random.normal() * scale; });
        fill(up, [&] { return random.normal(); });
        params.tokens = sizes.tokens;
        params.hidden_size = sizes.hidden_size;
        params.num_experts = sizes.num_experts;
        params.num_keys = sizes.num_keys;
        params.num_routing_heads = sizes.num_routing_heads;
        params.num_experts_per_tok = sizes.num_experts_per_tok;
        params.weights_inside = sizes.weights_inside;
        params.dtype = Storage<T>::dtype;
        params.hidden = hidden.data();
        params.scores_x = scores_x.data();
        params.scores_y = scores_y.data();
        params.down_embed = down.data();
        params.up_embed = up.data();
        name = std::string(Storage<T>::name) + ", " + std::to_string(sizes.tokens) + " tokens, H " +
               std::to_string(sizes.hidden_size) + ", E " + std::to_string(sizes.num_experts) + ", K " +
               std::to_string(sizes.num_keys) + ", R " + std::to_string(sizes.num_routing_heads) + ", k " +
               std::to_string(sizes.num_experts_per_tok);
    }

    void run_reference() {
        doge_cdmoe_params p = params;
        p.output = expected.data();
        const int status = doge_cdmoe_reference(&p);
        CHECK(status == DOGE_SUCCESS, name + ": the reference says " + doge_status_message(status));
    }

    // The kernels, with the workspace as it is.
    void run_kernels(DeviceBuffer<char>& workspace) {
        output.poison();
        doge_cdmoe_params p = params;
        p.output = output.data();
        const int status = doge_cdmoe(&p, workspace.data(), workspace.size(), nullptr);
        CHECK(status == DOGE_SUCCESS, name + ": the kernels say " + doge_status_message(status));
    }

    // The worst token's error, relative to its norm or, for tokens that are small by cancellation, to the average one.
    double error() const {
        const std::size_t width = params.hidden_size;
        std::vector<double> norms, differences;
        double all = 0;
        for (int token = 0; token < params.tokens; ++token) {
            double norm = 0, difference = 0;
            for (std::size_t i = token * width; i < (token + 1) * width; ++i) {
                const double ours = static_cast<float>(output[i]), theirs = static_cast<float>(expected[i]);
                if (!std::isfinite(ours)) return INFINITY;
                norm += theirs * theirs;
                difference += (ours - theirs) * (ours - theirs);
            }
            norms.push_back(std::sqrt(norm));
            differences.push_back(std::sqrt(difference));
            all += norm;
        }
        const double average = std::sqrt(all / params.tokens);
        double worst = 0;
        for (int token = 0; token < params.tokens; ++token) {
            worst = std::max(worst, differences[token] / std::max(norms[token], average));
        }
        return worst;
    }

    std::string name;
    doge_cdmoe_params params{};
    DeviceBuffer<T> hidden, down, up, output, expected;
    DeviceBuffer<float> scores_x, scores_y;

  private:
    template <class Number, class Make>
    static void fill(DeviceBuffer<Number>& buffer, Make make) {
        for (std::size_t i = 0; i < buffer.size(); ++i) buffer[i] = make();
    }
};

// The worst error of all cases of a type, which the tests print.
template <class T>
inline double worst_error = 0;

inline void print_worst_errors() {
    std::printf("worst errors: fp32 %.1e, fp16 %.1e, bf16 %.1e\n", worst_error<float>, worst_error<__half>,
                worst_error<__nv_bfloat16>);
}

// Against the reference, and the same bits under every schedule, from a workspace of NaN and from a used one.
template <class T>
void check_case(CdmoeCase<T>& test) {
    test.run_reference();
    DeviceBuffer<char> workspace(doge_cdmoe_workspace_bytes(&test.params), 256);
    std::vector<T> first;
    emulation::under_every_schedule([&](const char* schedule) {
        test.run_kernels(workspace);
        const double error = test.error();
        worst_error<T> = std::max(worst_error<T>, error);
        CHECK(error <= Storage<T>::bar, test.name + ", " + schedule + ": error " + std::to_string(error));
        if (first.empty()) first = test.output.host();
        CHECK(std::memcmp(first.data(), test.output.data(), first.size() * sizeof(T)) == 0,
              test.name + ", " + schedule + ": other bits than before");
    });
}

template <class T>
void check_sizes(CdmoeSizes sizes, Score score = normal_score) {
    CdmoeCase<T> test(sizes, score);
    check_case(test);
}

inline void check_in_all_types(CdmoeSizes sizes, Score score = normal_score) {
    check_sizes<float>(sizes, score);
    check_sizes<__half>(sizes, score);
    check_sizes<__nv_bfloat16>(sizes, score);
}

}  // namespace doge::tests
#endif
