// Attention over the pages of the cache.
#include <cmath>
#include <cstring>

#include "stack.h"

namespace doge::cpu {
namespace {

constexpr int ALONE = 192;  // keys; up to so many every thread attends for itself instead of waiting for others

alignas(64) constexpr float ZEROS[PAGE] = {};  // as many as a head is wide, at least
static_assert(PAGE >= MAX_HEAD);

}  // namespace

// Keys from `begin` (a multiple of KEY_BLOCK) to `end`, for n queries of one row and key/value head; `at` is the place of the
// first in work.queries.
void Stack::attend_pages(int l, int row, int head, Query* queries, int n, size_t at, int begin, int end) const {
    const Cache& cache = state_.caches[size_t(row)];
    for (int key = begin; key < end; key = (key / PAGE + 1) * PAGE) {
        const int page = key / PAGE, from = key % PAGE;
        const Keys keys = cache.keys(page, l, head, std::min(end - key, PAGE - from), from);
        for (int i = 0; i < n; i++) {
            const int h = head * per_ + int((at + size_t(i)) % size_t(per_));
            queries[i].scores = cache.scores(page, l, h * config_.score_heads / config_.num_attention_heads) + from;
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

// What query head h of a token begins with; `at` is its place in work.queries.
Query Stack::query(int row, int token, int h, size_t at, float* out) const {
    Query q{};
    if (state_.caches[size_t(row)].int8()) {
        q.scale = work_.query_scales.data()[at];
        q.sum = work_.query_sums.data()[at];
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
    q.out = out;
    return q;
}

// Queries of `count` tokens of one row from `first` on, for one key/value head.
void Stack::attend_item(int id, int l, int row, int head, int first, int count) const {
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
            queries[i] = query(row, token, h, at + size_t(i), outs + size_t(i) * width_);
            end = std::max(end, queries[i].limit);
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

// Part of `parts` of the keys of a single token, into the memory of the thread of that number.
void Stack::attend_part(int l, int part, int parts) const {
    const int length = piece_.past + 1, blocks = (length + KEY_BLOCK - 1) / KEY_BLOCK;
    const Share mine(config_.num_key_value_heads * blocks, part, parts);
    ThreadWork& w = work_.threads[size_t(part)];
    std::fill(w.largest.begin(), w.largest.end(), MASKED);
    std::fill(w.total.begin(), w.total.end(), 0.0f);
    for (int head = mine.first / blocks; head * blocks < mine.last; head++) {
        const int first = std::max(mine.first - head * blocks, 0), last = std::min(mine.last - head * blocks, blocks);
        for (int q0 = 0; q0 < per_; q0 += MOST_QUERIES) {
            const int n = std::min(per_ - q0, MOST_QUERIES), h0 = head * per_ + q0;
            float* outs = w.partial.data() + size_t(h0) * width_;
            std::memset(outs, 0, size_t(n) * width_ * sizeof(float));
            Query queries[MOST_QUERIES];
            for (int i = 0; i < n; i++) queries[i] = query(0, 0, h0 + i, size_t(h0 + i), outs + size_t(i) * width_);
            attend_pages(l, 0, head, queries, n, size_t(h0), first * KEY_BLOCK, std::min(last * KEY_BLOCK, length));
            for (int i = 0; i < n; i++) {
                w.largest[size_t(h0 + i)] = queries[i].largest;
                w.total[size_t(h0 + i)] = queries[i].total;
            }
        }
    }
}

// A single token's: all heads' keys in as many parts as the pool has threads, then what the parts have gathered is joined.
// Where a call is left to one thread that takes all parts, so that sums, and answers, do not depend on who else waits.
void Stack::attend_shared(int id, int l) const {
    const int heads = config_.num_attention_heads, parts = pool_.size();
    for (int part = id; part < parts; part += threads_) attend_part(l, part, parts);
    wait();
    for (int h = 0; h < heads; h++) {
        float most = MASKED, total = 0;
        for (const ThreadWork& t : work_.threads) most = std::max(most, t.largest[size_t(h)]);
        float* to = inputs(id).heads.x(0) + size_t(h) * size_t(config_.head_dim);
        std::memset(to, 0, size_t(config_.head_dim) * sizeof(float));
        for (const ThreadWork& t : work_.threads) {
            if (!(t.total[size_t(h)] > 0.0f)) continue;
            const float factor = std::exp(t.largest[size_t(h)] - most);
            const float* part = t.partial.data() + size_t(h) * width_;
            total += factor * t.total[size_t(h)];
            for (int k = 0; k < config_.head_dim; k++) to[k] += factor * part[k];
        }
        for (int k = 0; k < config_.head_dim && total > 0.0f; k++) to[k] /= total;
    }
}

void Stack::attend(int id, int l) {
    const bool codes = model_.weights.layers[size_t(l)].output.codes;
    const Inputs& in = inputs(id).heads;
    if (single()) {
        if (pool_.size() > 1 && piece_.past >= ALONE) attend_shared(id, l);
        else for (int h = 0; h < config_.num_key_value_heads; h++) attend_item(id, l, 0, h, 0, 1);
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
