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

bool Stack::shares(const Row& row) const { return row.call->tokens == 1 && pool_.size() > 1 && row.past >= ALONE; }

void Stack::list_items() {
    const int heads = config_.num_key_value_heads, tile = std::max(1, 12 / per_);
    shared_.resize(rows_.size());
    int shared = 0;
    for (const Row& row : rows_) {
        const int r = int(&row - rows_.data());
        if (shares(row)) {
            shared_[size_t(r)] = shared++;
            for (int part = 0; part < pool_.size(); part++) items_.push_back({r, part, 0, 1});
            continue;
        }
        for (int first = 0; first < row.tokens; first += tile) {
            for (int head = 0; head < heads; head++)
                items_.push_back({r, head, first, std::min(tile, row.tokens - first)});
        }
    }
    any_shares_ = shared > 0;
    const size_t parts = size_t(shared) * size_t(pool_.size());
    work_.partial.need(parts * size_t(config_.num_attention_heads) * width_);
    work_.largest.need(parts * size_t(padded(config_.num_attention_heads)));
    work_.total.need(parts * size_t(padded(config_.num_attention_heads)));
}

// Keys from `begin` (a multiple of KEY_BLOCK) to `end`, for n queries of one row and key/value head; `at` is the place of the
// first in work.queries.
void Stack::attend_pages(int l, const Row& row, int head, Query* queries, int n, size_t at, int begin, int end) const {
    const Cache& cache = row.cache();
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
void Stack::attend_evenly(int l, const Row& row, int head, float* out) const {
    const Cache& cache = row.cache();
    const int end = row.end();
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
Query Stack::query(const Row& row, int token, int h, size_t at, float* out) const {
    Query q{};
    if (row.cache().int8()) {
        q.scale = work_.query_scales.data()[at];
        q.sum = work_.query_sums.data()[at];
    }
    q.limit = place_of(token) + 1;
    q.selects = selects(row) && q.limit > row.state->window;
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

void Stack::attend_item(int id, int l, const Item& item) const {
    const Row& row = rows_[size_t(item.row)];
    if (shares(row)) return attend_part(l, row, item.head);
    float* outs = work_.threads[size_t(id)].outs.data();
    const int d = config_.head_dim, head = item.head, total = item.count * per_;
    for (int q0 = 0; q0 < total; q0 += MOST_QUERIES) {
        const int n = std::min(total - q0, MOST_QUERIES);
        const int token0 = row.begin + item.first;
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

// A part of the keys of all heads.
void Stack::attend_part(int l, const Row& row, int part) const {
    const int heads = config_.num_attention_heads, blocks = (row.end() + KEY_BLOCK - 1) / KEY_BLOCK;
    const Share mine(config_.num_key_value_heads * blocks, part, pool_.size());
    const size_t place = part_of(row, part), stride = size_t(padded(heads));
    float *partial = work_.partial.data() + place * size_t(heads) * width_;
    float *largest = work_.largest.data() + place * stride, *total = work_.total.data() + place * stride;
    std::fill(largest, largest + heads, MASKED);
    std::fill(total, total + heads, 0.0f);
    for (int head = mine.first / blocks; head * blocks < mine.last; head++) {
        const int first = std::max(mine.first - head * blocks, 0), last = std::min(mine.last - head * blocks, blocks);
        for (int q0 = 0; q0 < per_; q0 += MOST_QUERIES) {
            const int n = std::min(per_ - q0, MOST_QUERIES), h0 = head * per_ + q0;
            const size_t at = (size_t(head) * size_t(n_) + size_t(row.begin)) * size_t(per_) + size_t(q0);
            float* outs = partial + size_t(h0) * width_;
            std::memset(outs, 0, size_t(n) * width_ * sizeof(float));
            Query queries[MOST_QUERIES];
            for (int i = 0; i < n; i++)
                queries[i] = query(row, row.begin, h0 + i, at + size_t(i), outs + size_t(i) * width_);
            attend_pages(l, row, head, queries, n, at, first * KEY_BLOCK, std::min(last * KEY_BLOCK, row.end()));
            for (int i = 0; i < n; i++) {
                largest[h0 + i] = queries[i].largest;
                total[h0 + i] = queries[i].total;
            }
        }
    }
}

// Joins what the parts have gathered.
void Stack::join_parts(int id, int l, const Row& row) const {
    const int heads = config_.num_attention_heads, parts = pool_.size(), d = config_.head_dim;
    const size_t first = part_of(row, 0), stride = size_t(padded(heads));
    for (int h = 0; h < heads; h++) {
        const float *largest = work_.largest.data() + first * stride + h, *totals = work_.total.data() + first * stride + h;
        float most = MASKED, total = 0;
        for (int part = 0; part < parts; part++) most = std::max(most, largest[size_t(part) * stride]);
        float* to = inputs(id).heads.x(row.begin) + size_t(h) * size_t(d);
        std::memset(to, 0, size_t(d) * sizeof(float));
        for (int part = 0; part < parts; part++) {
            const float weight = totals[size_t(part) * stride];
            if (!(weight > 0.0f)) continue;
            const float factor = std::exp(largest[size_t(part) * stride] - most);
            const float* sums = work_.partial.data() + ((first + size_t(part)) * size_t(heads) + size_t(h)) * width_;
            total += factor * weight;
            for (int k = 0; k < d; k++) to[k] += factor * sums[k];
        }
        if (total > 0.0f) {
            for (int k = 0; k < d; k++) to[k] /= total;
        } else if (config_.moe == DOGE_CPU_MOE_REFERENCE) {
            float* out = work_.threads[size_t(id)].outs.data();
            attend_evenly(l, row, h / per_, out);
            std::memcpy(to, out, size_t(d) * sizeof(float));
        }
    }
}

void Stack::attend(int id, int l) {
    const bool codes = model_.weights.layers[size_t(l)].output.codes;
    const bool for_itself = single() && !any_shares_;  // which takes less than to wait for others
    for (int i = for_itself ? 0 : id; i < int(items_.size()); i += for_itself ? 1 : threads_)
        attend_item(id, l, items_[size_t(i)]);
    if (!for_itself) wait();
    if (!codes && !any_shares_) return;
    const Inputs& in = inputs(id).heads;
    tokens(id, [&](int t) {
        if (shares(row(t))) join_parts(id, l, row(t));
        if (codes) in.quantise(kernels_, t);
    });
    wait_if_many();
}

}  // namespace doge::cpu
