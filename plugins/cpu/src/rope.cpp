#include "rope.h"

#include <algorithm>
#include <cmath>

namespace doge::cpu {
namespace {

constexpr int32_t TABLE = 4096;  // positions whose angles are kept: a table of all would grow with the length

}  // namespace

Rope::Rope(const doge_cpu_config& config, const Weights& weights)
    : config_(config),
      frequencies_(weights.rope),
      long_frequencies_(weights.rope_long),
      half_(config.head_dim / 2),
      stride_(size_t(config.head_dim)) {}

void Rope::angles(const float* frequencies, int32_t position, float* row) const {
    for (int i = 0; i < half_; i++) {
        const float angle = float(position) * frequencies[i];  // rounded to float32, as the graph's
        row[i] = std::cos(angle) * config_.rope_attention_factor;
        row[half_ + i] = std::sin(angle) * config_.rope_attention_factor;
    }
}

void Rope::grow(int32_t positions) {
    const size_t have = usual_.size() / stride_, want = size_t(positions);
    if (have >= want) return;
    usual_.resize(std::max(want, std::min(have * 2, size_t(config_.max_length))) * stride_);
    for (size_t p = have; p < usual_.size() / stride_; p++) angles(frequencies_, int32_t(p), &usual_[p * stride_]);
}

void Rope::prepare(const int32_t* positions, int n, int32_t longest) {
    rows_.resize(size_t(n));
    const int32_t length = longest + 1;
    const bool is_usual = config_.rope == DOGE_CPU_ROPE_FIXED || length <= config_.rope_trained_length;
    if (is_usual && length <= TABLE) {
        grow(length);
        for (int t = 0; t < n; t++) rows_[size_t(t)] = &usual_[size_t(positions[t]) * stride_];
        return;
    }
    const float* frequencies = is_usual ? frequencies_ : long_frequencies_;
    if (!is_usual && config_.rope == DOGE_CPU_ROPE_DYNAMIC) {
        const float factor = config_.rope_factor, d = float(config_.head_dim);
        const float stretch = factor * float(length) / float(config_.rope_max_positions) - (factor - 1.0f);
        const float theta = config_.rope_theta * std::pow(stretch, d / (d - 2.0f));
        frequencies_now_.resize(size_t(half_));
        for (int i = 0; i < half_; i++) frequencies_now_[size_t(i)] = 1.0f / std::pow(theta, float(2 * i) / d);
        frequencies = frequencies_now_.data();
    }
    special_.resize(size_t(n) * stride_);
    for (int t = 0; t < n; t++) {
        rows_[size_t(t)] = &special_[size_t(t) * stride_];
        angles(frequencies, positions[t], &special_[size_t(t) * stride_]);
    }
}

}  // namespace doge::cpu
