#include "cache.h"

#include <cstring>

namespace doge::cpu {

Cache::Cache(const doge_cpu_config& c, bool int8)
    : int8_(int8),
      heads_(c.num_key_value_heads),
      score_heads_(c.score_heads),
      head_dim_(c.head_dim),
      width_(padded(c.head_dim)) {
    const size_t width = size_t(width_), number = int8 ? 1 : sizeof(float);
    keys_ = PAGE * width * number + (int8 ? PAGE * sizeof(float) : 0);
    values_ = PAGE * width * number;
    head_ = keys_ + values_ + (int8 ? PAGE * sizeof(float) : 0);
    scores_ = head_ * size_t(heads_) * size_t(c.num_hidden_layers);
    page_ = scores_ + size_t(score_heads_) * size_t(c.num_hidden_layers) * PAGE * sizeof(float);
}

bool Cache::fits(const doge_cpu_config& c) {
    const uint64_t head = 2 * uint64_t(padded(c.head_dim)) + 2, layers = uint64_t(c.num_hidden_layers);
    const uint64_t numbers = head * uint64_t(c.num_key_value_heads) + uint64_t(c.score_heads);
    return numbers < SIZE_MAX / 2 / PAGE / sizeof(float) / layers;
}

void Cache::reserve(int tokens) {
    while (int(pages_.size()) * PAGE < tokens) pages_.emplace_back(page_);
}

void Cache::append(const Kernels& kernels, int place, int layer, int head, const float* key, const float* value) const {
    uint8_t* keys = at(place / PAGE, layer, head);
    uint8_t* values = keys + keys_;
    const int slot = place % PAGE, lane = slot % LANES, group = slot / LANES;
    const size_t width = size_t(width_);
    if (!int8_) {
        float* to = reinterpret_cast<float*>(keys) + size_t(group) * width * LANES + lane;
        for (int d = 0; d < head_dim_; d++) to[size_t(d) * LANES] = key[d];
        std::memcpy(reinterpret_cast<float*>(values) + size_t(slot) * width, value, size_t(head_dim_) * sizeof(float));
        return;
    }
    alignas(64) int8_t codes[MAX_HEAD];
    alignas(64) float padded_value[MAX_HEAD];
    float scale;
    int32_t sum;
    kernels.quantise(key, width_, width_, 1, codes, &scale, &sum);
    uint8_t* to = keys + size_t(group) * (width + sizeof(float)) * LANES;
    for (int d = 0; d < width_; d++) to[size_t(d / 4) * ALIGN + size_t(lane) * 4 + size_t(d % 4)] = uint8_t(codes[d] + 128);
    std::memcpy(to + width * LANES + size_t(lane) * sizeof(float), &scale, sizeof scale);

    std::memcpy(padded_value, value, size_t(head_dim_) * sizeof(float));
    for (int d = head_dim_; d < width_; d++) padded_value[d] = 0.0f;
    kernels.quantise(padded_value, width_, width_, 1, codes, &scale, &sum);
    to = values + size_t(slot / KEY_BLOCK) * width * KEY_BLOCK + size_t(slot % KEY_BLOCK / 4) * ALIGN + size_t(slot % 4);
    for (int d = 0; d < width_; d++)
        to[size_t(d / LANES) * KEY_BLOCK * LANES + size_t(d % LANES) * 4] = uint8_t(codes[d]);
    std::memcpy(values + values_ + size_t(slot) * sizeof(float), &scale, sizeof scale);
}

void Cache::move(int from, int to, int layer, int head) const {
    const size_t width = size_t(width_);
    struct Place {
        uint8_t *keys, *values;
        int slot;
    };
    const auto place = [&](int n) {
        uint8_t* keys = at(n / PAGE, layer, head);
        return Place{keys, keys + keys_, n % PAGE};
    };
    const Place a = place(from), b = place(to);
    const auto copy = [](const uint8_t* x, uint8_t* y, size_t bytes) { std::memcpy(y, x, bytes); };
    // A key lies in steps of 4 bytes: a float, or four codes; and the scale of codes behind them, as one more step.
    const size_t steps = int8_ ? width / 4 + 1 : width, group = steps * LANES * sizeof(float);
    const auto key = [&](const Place& p) { return p.keys + size_t(p.slot / LANES) * group + size_t(p.slot % LANES) * 4; };
    for (size_t i = 0; i < steps; i++) copy(key(a) + i * ALIGN, key(b) + i * ALIGN, 4);
    if (!int8_) {
        copy(a.values + size_t(a.slot) * width * 4, b.values + size_t(b.slot) * width * 4, width * 4);
        return;
    }
    const auto value = [&](const Place& p) {
        return p.values + size_t(p.slot / KEY_BLOCK) * width * KEY_BLOCK + size_t(p.slot % KEY_BLOCK / 4) * ALIGN + size_t(p.slot % 4);
    };
    for (size_t d = 0; d < width; d++) {
        const size_t offset = d / LANES * KEY_BLOCK * LANES + d % LANES * 4;
        value(b)[offset] = value(a)[offset];
    }
    copy(a.values + values_ + size_t(a.slot) * 4, b.values + values_ + size_t(b.slot) * 4, 4);
}

}  // namespace doge::cpu
