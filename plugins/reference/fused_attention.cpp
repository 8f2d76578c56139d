// What the fused operator makes of a projection, rounded as it is for the kernels, and then DynamicMaskAttention.
#include <algorithm>
#include <cmath>
#include <vector>

#include "numbers.h"
#include "sizes.h"

namespace doge {
namespace {

// What DynamicMaskAttention takes, in the memory of this object.
class Prepared {
public:
    explicit Prepared(const doge_fused_attention_params& params)
        : fused_(params), p_(params.attention), element_(size_of(p_.dtype)) {
        const size_t tokens = size_t(p_.batch) * p_.new_tokens;
        query_.resize(tokens * p_.num_heads * p_.head_size * element_);
        key_.resize(tokens * p_.num_kv_heads * p_.head_size * element_);
        value_.resize(key_.size());
        score_.resize(tokens * p_.num_score_heads);
        for (size_t token = 0; token < tokens; ++token) {
            prepare(token);
        }
    }

    doge_attention_params params() const {
        doge_attention_params p = p_;
        p.query = query_.data();
        p.key = key_.data();
        p.value = value_.data();
        p.score = score_.data();
        return p;
    }

private:
    void prepare(size_t token) {
        const int heads = p_.num_heads, kv_heads = p_.num_kv_heads, size = p_.head_size;
        const size_t first = token * (heads + 2 * kv_heads) * size;
        for (int head = 0; head < heads; ++head) {
            rotate(token, first + size_t(head) * size, fused_.query_norm, query_, (token * heads + head) * size);
        }
        for (int head = 0; head < kv_heads; ++head) {
            const size_t to = (token * kv_heads + head) * size;
            rotate(token, first + size_t(heads + head) * size, fused_.key_norm, key_, to);
            const size_t from = first + size_t(heads + kv_heads + head) * size;
            const std::vector<float> value = read(p_.dtype, fused_.projected, from, size);
            for (int n = 0; n < size; ++n) {
                write(p_.dtype, value_.data(), to + n, value[n]);
            }
        }
        for (int head = 0; head < p_.num_score_heads; ++head) {
            score_[token * p_.num_score_heads + head] = score(token, head);
        }
    }

    // Normalises and rotates the head that begins at `from` of the projection.
    void rotate(size_t token, size_t from, const float* norm, std::vector<char>& to, size_t place) const {
        const int size = p_.head_size, half = size / 2;
        const std::vector<float> read_head = read(p_.dtype, fused_.projected, from, size);
        std::vector<double> head(read_head.begin(), read_head.end());
        if (norm != nullptr) {
            double squares = 0;
            for (const double x : head) {
                squares += x * x;
            }
            const double root = std::sqrt(squares / size + fused_.epsilon);
            for (int n = 0; n < size; ++n) {
                head[n] = head[n] / root * norm[n];
            }
        }
        for (int n = 0; n < half; ++n) {
            const double cosine = fused_.cos[token * half + n], sine = fused_.sin[token * half + n];
            write(p_.dtype, to.data(), place + n, head[n] * cosine - head[half + n] * sine);
            write(p_.dtype, to.data(), place + half + n, head[half + n] * cosine + head[n] * sine);
        }
    }

    float score(size_t token, int head) const {
        double step = 0;
        for (int n = 0; n < fused_.num_score_inputs; ++n) {
            step += static_cast<double>(fused_.score_source[token * fused_.num_score_inputs + n]) *
                    fused_.score_weight[size_t(head) * fused_.num_score_inputs + n];
        }
        const double softplus = std::max(step, 0.0) + std::log1p(std::exp(-std::fabs(step)));
        const double scaled = fused_.score_rate[head] * softplus;
        return static_cast<float>(fused_.exponential_score != 0 ? std::exp(scaled) : scaled);
    }

    const doge_fused_attention_params& fused_;
    const doge_attention_params& p_;
    const size_t element_;
    std::vector<char> query_, key_, value_;
    std::vector<float> score_;
};

}  // namespace
}  // namespace doge

int doge_fused_attention_reference(const doge_fused_attention_params* params) {
    if (doge::fused_attention_malformed(*params) != nullptr) {
        return DOGE_BAD_SHAPE;
    }
    const doge::Prepared prepared(*params);
    const doge_attention_params attention = prepared.params();
    return doge_attention_reference(&attention);
}
