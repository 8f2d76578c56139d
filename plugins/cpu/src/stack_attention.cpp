// Attention over the pages of the cache.
#include <cmath>
#include <cstring>

#include "stack.h"

namespace doge::cpu {
namespace {

alignas(64) constexpr float ZEROS[PAGE] = {};  // as many as a head is wide, at least
static_assert(PAGE >= MAX_HEAD);

}  // namespace

// Pages [first_page, ...) up to key `end`, for n queries of one row and key/value head; `at` is the place of the first in
// work.queries.
void Stack::attend_pages(int l, int row, int head, Query* queries, int n, size_t at, int first_page, int end) const {
    const Cache& cache = state_.caches[size_t(row)];
    for (int page = first_page; page * PAGE < end; page++) {
        const Keys keys = cache.keys(page, l, head, std::min(end - page * PAGE, PAGE));
        for (int i = 0; i < n; i++) {
            const int h = head * per_ + int((at + size_t(i)) % size_t(per_));
            queries[i].scores = cache.scores(page, l, h * config_.score_heads / config_.num_attention_heads);
        }
        const float* x = cache.int8() ? nullptr : work_.queries.data() + at * width_;
        const int8_t* codes = cache.int8() ? work_.query_codes.data() + at * width_ : nullptr;
        kernels_.attend(keys, queries, n, x, codes, width_);
    }
}

// What a token that sees only padding gives: nothing anyone should read. But the published router mixes a call's tokens, and
// then it matters that PyTorch's softmax of equal numbers attends evenly to every key of the call, later ones too.
void Stack::attend_evenly(int l, int row, int head, float* out) const {
    const Cache& cache = state_.caches[size_t(row)];
    const int end = piece_.past + piece_.tokens;
    Query query{};
    query.limit = end, query.scores = ZEROS, query.largest = MASKED, query.out = out;
    std::memset(out, 0, width_ * sizeof(float));
    for (int page = 0; page * PAGE < end; page++) {
        const Keys keys = cache.keys(page, l, head, std::min(end - page * PAGE, PAGE));
        kernels_.attend(keys, &query, 1, ZEROS, reinterpret_cast<const int8_t*>(ZEROS), width_);
    }
    for (size_t d = 0; d < width_; d++) out[d] /= query.total;
}

// Queries of `count` tokens of one row from `first` on, for one key/value head.
void Stack::attend_item(int id, int l, int row, int head, int first, int count) {
    float* outs = work_.threads[size_t(id)].outs.data();
    const int d = config_.head_dim, total = count * per_;
    for (int q0 = 0; q0 < total; q0 += MOST_QUERIES) {
        const int n = std::min(total - q0, MOST_QUERIES);
        const int token0 = row * piece_.tokens + first;
        const size_t at = (size_t(head) * size_t(n_) + size_t(token0)) * size_t(per_) + size_t(q0);
        std::memset(outs, 0, size_t(n) * width_ * sizeof(float));
        Query queries[MOST_QUERIES];
        int end = 0;
        for (int i = 0; i < n; i++) {
            const int token = token0 + (q0 + i) / per_, h = head * per_ + (q0 + i) % per_;
            Query& q = queries[i];
            q = {};
            if (state_.caches[size_t(row)].int8()) {
                q.scale = work_.query_scales.data()[at + size_t(i)];
                q.sum = work_.query_sums.data()[at + size_t(i)];
            }
            q.limit = place_of(token) + 1;
            q.selects = selects() && q.limit > config_.keep_window_size;
            if (q.selects) {
                const int s = h * config_.score_heads / config_.num_attention_heads;
                const Selection::Kept worst = worst_[size_t(token) * size_t(config_.score_heads) + size_t(s)];
                q.least = worst.score;
                q.last = worst.place;
            }
            q.largest = MASKED;
            q.out = outs + size_t(i) * width_;
            end = std::max(end, q.limit);
        }
        attend_pages(l, row, head, queries, n, at, 0, end);
        for (int i = 0; i < n; i++) {
            const int token = token0 + (q0 + i) / per_, h = head * per_ + (q0 + i) % per_;
            float inverse = queries[i].total > 0.0f ? 1.0f / queries[i].total : 0.0f;
            if (inverse == 0.0f && config_.moe == DOGE_CPU_MOE_REFERENCE) {
                attend_evenly(l, row, head, queries[i].out);
                inverse = 1.0f;
            }
            float* to = inputs(id).heads.x(token) + size_t(h) * size_t(d);
            for (int k = 0; k < d; k++) to[k] = queries[i].out[k] * inverse;
        }
    }
}

void Stack::attend(int id, int l) {
    const bool codes = model_.weights.layers[size_t(l)].output.codes;
    const Inputs& in = inputs(id).heads;
    if (single()) {
        for (int h = 0; h < config_.num_key_value_heads; h++) attend_item(id, l, 0, h, 0, 1);
        if (codes) in.quantise(kernels_, 0);
        return;
    }
    const int tile = std::max(1, 12 / per_), tiles = (piece_.tokens + tile - 1) / tile;
    const int heads = config_.num_key_value_heads, items = state_.batch * tiles * heads;
    for (int i = id; i < items; i += threads_) {
        const int first = i / heads % tiles * tile;
        attend_item(id, l, i / heads / tiles, i % heads, first, std::min(tile, piece_.tokens - first));
    }
    wait();
    if (codes) tokens(id, [&](int t) { in.quantise(kernels_, t); });
    if (codes) wait();
}

}  // namespace doge::cpu
