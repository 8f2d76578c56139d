#include "stack.h"

#include <cmath>
#include <cstring>

namespace doge::cpu {
namespace {

constexpr float PADDING = -3.402823466e+38f;  // the lowest finite float: the score of a token that must not be seen

float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

int root(int n) {
    int r = int(std::sqrt(double(n)));
    while (r * r > n) r--;
    while ((r + 1) * (r + 1) <= n) r++;
    return r;
}

}  // namespace

Stack::Stack(const doge_cpu_model& model, const std::vector<Row>& rows)
    : model_(model),
      config_(model_.config()),
      kernels_(*model_.kernels),
      pool_(*model_.pool),
      work_(model_.work),
      rows_(rows),
      n_(rows.back().begin + rows.back().tokens),
      threads_(pool_.threads()),
      hidden_(size_t(padded(config_.hidden_size))),
      per_(config_.num_attention_heads / config_.num_key_value_heads),
      width_(size_t(padded(config_.head_dim))) {
    const doge_cpu_config& c = config_;
    const size_t n = size_t(n_), kv = size_t(padded(c.num_key_value_heads * c.head_dim));
    key_at_ = size_t(padded(c.num_attention_heads * c.head_dim));
    value_at_ = key_at_ + kv;
    score_at_ = value_at_ + kv;
    qkv_stride_ = score_at_ + size_t(padded(c.score_heads));
    x_ = work_.x.need(n * hidden_);
    work_.qkv.need(n * qkv_stride_);
    work_.queries.need(n * size_t(c.num_attention_heads) * width_);
    work_.query_codes.need(n * size_t(c.num_attention_heads) * width_);
    work_.query_scales.need(n * size_t(c.num_attention_heads));
    work_.query_sums.need(n * size_t(c.num_attention_heads));
    if (c.moe != DOGE_CPU_DENSE) {
        keys_of_half_ = root(c.num_experts);
        work_.routes.need(n * size_t(padded(2 * keys_of_half_)));
        work_.experts.need(size_t(c.num_experts_per_tok));
    }
    work_.inputs.need(kernels_, c, n_);
    work_.threads.resize(size_t(pool_.size()));
    for (ThreadWork& w : work_.threads) {
        if (single()) w.inputs.need(kernels_, c, 1);
        w.outs.need(MOST_QUERIES * width_);
        w.picks.resize(size_t(std::max(c.num_experts_per_tok, 1)));
        w.normed.need(hidden_);
        if (c.moe != DOGE_CPU_DENSE) w.router.reserve(keys_of_half_, c.num_experts_per_tok);
    }
    row_of_.reserve(n);
    for (const Row& row : rows_) {
        row_of_.insert(row_of_.end(), size_t(row.tokens), int(&row - rows_.data()));
        if (!selects(row)) continue;
        any_selects_ = true;
        for (Selection& kept : row.kept()) kept.reserve(row.state->window);
    }
    if (any_selects_) worst_.resize(n * size_t(c.score_heads));
    list_items();
}

bool Stack::is_token(int token) const {
    const Row& r = row(token);
    return r.call->mask == nullptr || r.call->mask[r.in_call(token - r.begin)] != 0;
}

// The rows of several matrices with one input, spread evenly over the threads.
void Stack::multiply(int id, const Product* products, int count, const Inputs& inputs) const {
    int groups = 0;
    for (int i = 0; i < count; i++) groups += products[i].linear->groups();
    const Share mine(groups, id, threads_);
    int begin = 0;
    for (int i = 0; i < count; i++) {
        const Product& p = products[i];
        int row = 0;
        for (const Matrix& part : p.linear->parts) {
            const int size = padded(part.rows) / LANES;
            const int first = std::max(mine.first - begin, 0), last = std::min(mine.last - begin, size);
            if (first < last) {
                const Sink sink{p.out + row, p.stride, p.linear->bias == nullptr ? nullptr : p.linear->bias + row,
                                p.residual == nullptr ? nullptr : p.residual + row, padded(part.rows)};
                kernels_.multiply(part, first, last, inputs.all(), n_, sink);
            }
            begin += size;
            row += part.rows;
        }
    }
}

void Stack::gated(int id, const Layer& layer, const Inputs& inputs, float* out, size_t stride) const {
    const Share mine(layer.gate.groups(), id, threads_);
    const auto part_of = [](const Linear& linear, int& group) {  // and the group within it
        size_t i = 0;
        while (group >= padded(linear.parts[i].rows) / LANES) group -= padded(linear.parts[i++].rows) / LANES;
        return &linear.parts[i];
    };
    for (int g = mine.first; g < mine.last;) {
        int in_gate = g, in_up = g;
        const Matrix* gate = part_of(layer.gate, in_gate);
        const Matrix* up = part_of(layer.up, in_up);
        const int groups = std::min({mine.last - g, padded(gate->rows) / LANES - in_gate, padded(up->rows) / LANES - in_up});
        const int row = g * LANES;
        const Sink sink{out + row, stride, layer.up.bias == nullptr ? nullptr : layer.up.bias + row, nullptr, groups * LANES};
        kernels_.gated(*gate, in_gate, *up, in_up, groups, inputs.all(), n_,
                       layer.gate.bias == nullptr ? nullptr : layer.gate.bias + row, sink);
        g += groups;
    }
}

void Stack::embed(int id) const {
    const Share mine(n_, id, threads_);
    for (int t = mine.first; t < mine.last; t++) {
        const Row& r = row(t);
        model_.weights.embed(kernels_, r.call->ids[r.in_call(t - r.begin)], config_.hidden_size, x(t));
    }
    wait();
}

void Stack::norm(int id, const float* weight, bool codes) const {
    const Inputs& in = inputs(id).normed;
    tokens(id, [&](int t) {
        kernels_.rms_norm(x(t), weight, config_.hidden_size, config_.rms_norm_eps, in.x(t));
        if (codes) in.quantise(kernels_, t);
    });
    wait_if_many();
}

void Stack::project(int id, const Layer& y) const {
    const bool codes = y.query.codes || y.key.codes || y.value.codes || y.score_of_input.codes;
    norm(id, y.input_norm, codes);
    float* out = work_.qkv.data();
    const Product products[] = {{&y.query, out, qkv_stride_, nullptr},
                                {&y.key, out + key_at_, qkv_stride_, nullptr},
                                {&y.value, out + value_at_, qkv_stride_, nullptr},
                                {&y.score_of_input, out + score_at_, qkv_stride_, nullptr}};
    multiply(id, products, 4, inputs(id).normed);
    wait();
}

// What a token's value adds to the logits of its key.
void Stack::score(int id, int l, int token) const {
    const Layer& y = model_.weights.layers[size_t(l)];
    float* qkv = work_.qkv.data() + size_t(token) * qkv_stride_;
    if (!y.score.empty()) {
        const Inputs& in = inputs(id).values;
        std::memcpy(in.x(token), qkv + value_at_, size_t(y.score.columns) * sizeof(float));
        if (y.score.codes) in.quantise(kernels_, token);
        int row = 0;
        for (const Matrix& part : y.score.parts) {
            const Sink sink{qkv + score_at_ + row, qkv_stride_, y.score.bias == nullptr ? nullptr : y.score.bias + row,
                            nullptr, padded(part.rows)};
            kernels_.multiply(part, 0, padded(part.rows) / LANES, in.from(token), 1, sink);
            row += part.rows;
        }
    }
    const Cache& cache = row(token).cache();
    for (int s = 0; s < config_.score_heads; s++) {
        float score = 0.0f;
        if (config_.score != DOGE_CPU_SCORE_NONE) {
            score = y.a[s] * softplus(qkv[score_at_ + size_t(s)]);
            if (config_.score == DOGE_CPU_SCORE_EXP) score = std::exp(score);
        }
        cache.score(place_of(token), l, s) = is_token(token) ? score : PADDING;
    }
}

// Rotates queries and keys, and writes keys, values and scores to the cache.
void Stack::remember(int id, int l) const {
    const Layer& y = model_.weights.layers[size_t(l)];
    const int d = config_.head_dim, kv = config_.num_key_value_heads;
    const float scale = 1.0f / std::sqrt(float(d));
    const auto query = [&](int t, int h) {
        const size_t at = (size_t(h / per_) * size_t(n_) + size_t(t)) * size_t(per_) + size_t(h % per_);
        float* to = work_.queries.data() + at * width_;
        const Row& r = row(t);
        const Rope& rope = r.state->rope;
        const int angle = r.in_rope + t - r.begin;
        kernels_.rotate(work_.qkv.data() + size_t(t) * qkv_stride_ + size_t(h) * size_t(d), y.query_norm, d,
                        config_.rms_norm_eps, rope.cos(angle), rope.sin(angle), scale, to);
        if (r.cache().int8())
            kernels_.quantise(to, int(width_), int(width_), 1, work_.query_codes.data() + at * width_,
                              work_.query_scales.data() + at, work_.query_sums.data() + at);
    };
    const auto key = [&](int t, int h) {
        alignas(64) float rotated[MAX_HEAD];
        const float* qkv = work_.qkv.data() + size_t(t) * qkv_stride_ + size_t(h) * size_t(d);
        const Row& r = row(t);
        const Rope& rope = r.state->rope;
        const int angle = r.in_rope + t - r.begin;
        kernels_.rotate(qkv + key_at_, y.key_norm, d, config_.rms_norm_eps, rope.cos(angle), rope.sin(angle), 1.0f, rotated);
        r.cache().append(kernels_, place_of(t), l, h, rotated, qkv + value_at_);
    };
    if (single()) {  // heads and the scores are what there is to share
        const int last = config_.num_attention_heads + kv;
        for (int i = id; i <= last; i += threads_) {
            if (i == last) score(id, l, 0);
            else if (i < kv) key(0, i);
            else query(0, i - kv);
        }
    } else {
        tokens(id, [&](int t) {
            score(id, l, t);
            for (int h = 0; h < kv; h++) key(t, h);
            for (int h = 0; h < config_.num_attention_heads; h++) query(t, h);
        });
    }
    wait();
}

// Finds for each new token the worst key that it keeps.
void Stack::select(int id, int l) {
    const int heads = config_.score_heads;
    for (int i = id; i < int(rows_.size()) * heads; i += threads_) {
        const Row& r = rows_[size_t(i / heads)];
        const int s = i % heads, window = r.state->window;
        if (!selects(r)) continue;
        const Cache& cache = r.cache();
        Selection& kept = r.kept()[size_t(l) * size_t(heads) + size_t(s)];
        if (kept.length() > r.past) kept.clear();
        while (kept.length() < r.past) kept.push(cache.score(kept.length(), l, s), window);
        for (int t = 0; t < r.tokens; t++) {
            kept.push(cache.score(r.past + t, l, s), window);
            worst_[size_t(r.begin + t) * size_t(heads) + size_t(s)] = kept.worst();
        }
    }
    wait();
}

void Stack::output(int id, const Layer& y) const {
    const Product product{&y.output, x_, hidden_, y.input_residual};
    multiply(id, &product, 1, inputs(id).heads);
    wait();
}

void Stack::feed_forward(int id, const Layer& y) const {
    const bool routed = config_.moe != DOGE_CPU_DENSE;
    norm(id, y.post_norm, y.gate.codes || y.up.codes || y.router.codes);
    const Inputs& shared = work_.inputs.gated;
    gated(id, y, inputs(id).normed, shared.x(0), shared.all().stride);
    if (routed) {
        const Product router{&y.router, work_.routes.data(), size_t(padded(2 * keys_of_half_)), nullptr};
        multiply(id, &router, 1, inputs(id).normed);
    }
    wait();
    // A single token's experts are shared out, so that each thread adds them to the rows that it computes below.
    if (routed && single()) {
        choose_experts(id, 0);
        for (int i = id; i < config_.num_experts_per_tok; i += threads_)
            work_.experts.data()[i] = expert_weight(id, y, 0, i);
        wait();
    }
    const Inputs& in = inputs(id).gated;
    tokens(id, [&](int t) {
        if (single()) std::memcpy(in.x(0), shared.x(0), shared.all().stride * sizeof(float));
        if (y.down.codes) in.quantise(kernels_, t);
    });
    wait_if_many();
    const Product down{&y.down, x_, hidden_, y.post_residual};
    multiply(id, &down, 1, in);
    if (routed && single()) add_experts(id, y);
    wait();
    if (!routed || single()) return;
    tokens(id, [&](int t) {  // whose next norm is this thread's, too
        choose_experts(id, t);
        for (int i = 0; i < config_.num_experts_per_tok; i++) {
            const Table::Part* part;
            const uint8_t* row = y.expert_up.row(work_.threads[size_t(id)].picks[size_t(i)].expert, part);
            kernels_.row_add(row, part->kind, part->block, 0, config_.hidden_size, config_.hidden_size,
                             expert_weight(id, y, t, i), x(t));
        }
    });
}

void Stack::choose_experts(int id, int token) const {
    const int n = keys_of_half_;
    const size_t stride = size_t(padded(2 * n));
    const float* routes = work_.routes.data();
    const auto half = [&](int which) {
        if (config_.moe == DOGE_CPU_MOE_PER_TOKEN) return routes + size_t(token) * stride + size_t(which * n);
        // The published code looks at [n_, 2, n] as [2, n_, n].
        const int place = which * n_ + token;
        return routes + size_t(place / 2) * stride + size_t(place % 2 * n);
    };
    ThreadWork& w = work_.threads[size_t(id)];
    w.router.choose(half(0), half(1), n, config_.num_experts_per_tok, w.picks.data());
}

// What the i-th of the token's experts, just chosen, is multiplied with.
float Stack::expert_weight(int id, const Layer& y, int token, int i) const {
    const Pick& pick = work_.threads[size_t(id)].picks[size_t(i)];
    const Table::Part* part;
    const uint8_t* row = y.expert_down.row(pick.expert, part);
    const float dot = kernels_.row_dot(row, part->kind, part->block, config_.hidden_size, inputs(id).normed.x(token));
    return dot / (1.0f + std::exp(-dot)) * pick.weight;
}

// Adds a single token's experts to this thread's share of rows.
void Stack::add_experts(int id, const Layer& y) const {
    const Share mine(y.down.groups(), id, threads_);
    const int first = mine.first * LANES, last = std::min(mine.last * LANES, config_.hidden_size);
    for (int i = 0; i < config_.num_experts_per_tok; i++) {
        const Table::Part* part;
        const uint8_t* row = y.expert_up.row(work_.threads[size_t(id)].picks[size_t(i)].expert, part);
        kernels_.row_add(row, part->kind, part->block, first, last, config_.hidden_size, work_.experts.data()[i], x(0));
    }
}

void Stack::run(int id) {
    embed(id);
    for (int l = 0; l < config_.num_hidden_layers; l++) {
        const Layer& layer = model_.weights.layers[size_t(l)];
        project(id, layer);
        remember(id, l);
        if (any_selects_) select(id, l);
        attend(id, l);
        output(id, layer);
        feed_forward(id, layer);
    }
}

}  // namespace doge::cpu
