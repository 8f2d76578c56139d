// Matrix times vectors: 16 rows and a tile of tokens at a time, so that a weight is read once for all of them.
#pragma once

namespace doge::cpu {
namespace {

template <int KIND>
inline F load_weights(const uint8_t* p, size_t place) {
    if constexpr (KIND == DOGE_CPU_FLOAT16) return load_float16(p + place * 2);
    else if constexpr (KIND == DOGE_CPU_BFLOAT16) return load_bfloat16(p + place * 2);
    else return load(reinterpret_cast<const float*>(p) + place);
}

// r[t] = 16 rows (keys, as a rule) of floats times x of token t. Few take several sums each, for the processor adds slower
// than it starts to add.
template <int KIND, int M>
inline void float_tile(const uint8_t* p, int columns, const float* x, size_t stride, F* r) {
    constexpr int SUMS = M == 1 ? 4 : M == 2 ? 2 : 1;
    F s[SUMS][M];
    for (int u = 0; u < SUMS; u++)
        for (int t = 0; t < M; t++) s[u][t] = splat(0.0f);
    int k = 0;
    for (; k + SUMS <= columns; k += SUMS) {
        for (int u = 0; u < SUMS; u++) {
            const F w = load_weights<KIND>(p, size_t(k + u) * 16);
            for (int t = 0; t < M; t++) s[u][t] = fma(w, splat(x[size_t(t) * stride + size_t(k + u)]), s[u][t]);
        }
    }
    for (; k < columns; k++) {
        const F w = load_weights<KIND>(p, size_t(k) * 16);
        for (int t = 0; t < M; t++) s[0][t] = fma(w, splat(x[size_t(t) * stride + size_t(k)]), s[0][t]);
    }
    for (int t = 0; t < M; t++) {
        r[t] = s[0][t];
        for (int u = 1; u < SUMS; u++) r[t] = add(r[t], s[u][t]);
    }
}

// r[g * M + t] = 16 rows of each of G groups times x of token t. Few tokens take several groups at once, for the processor
// adds slower than it starts to add. Every sum is in the order of columns: it must not depend on the number of tokens.
template <int KIND, int G, int M>
inline void float_groups(const uint8_t* p, size_t group, int columns, const float* x, size_t stride, F* r) {
    F s[G][M];
    for (int g = 0; g < G; g++)
        for (int t = 0; t < M; t++) s[g][t] = splat(0.0f);
    for (int k = 0; k < columns; k++) {
        if constexpr (M == FLOAT_TILE) __builtin_prefetch(p + group + size_t(k) * 64, 0, 2);  // the next group
        for (int g = 0; g < G; g++) {
            const F w = load_weights<KIND>(p + size_t(g) * group, size_t(k) * 16);
            for (int t = 0; t < M; t++) s[g][t] = fma(w, splat(x[size_t(t) * stride + size_t(k)]), s[g][t]);
        }
    }
    for (int g = 0; g < G; g++)
        for (int t = 0; t < M; t++) r[g * M + t] = s[g][t];
}

constexpr int GROUPS = 4;  // of a single token's floats at once

#ifdef DOGE_CPU_SMALL
constexpr bool IS_SMALL = true;  // a module that pages load: rare cases are computed in fewer forms, and slower
#else
constexpr bool IS_SMALL = false;
#endif

constexpr bool takes_groups(int kind) { return kind == DOGE_CPU_FLOAT32 || (!IS_SMALL && kind > DOGE_CPU_INT8); }

// Bytes ahead of codes that are asked for, 64 of them `chunks` times. Weights are read faster than the processor asks for them
// by itself: measured with 60M (AVX2, 2 threads, other work beside), decoding gained a sixth in int8 and a quarter in int4.
constexpr int AHEAD = 4096;

inline void ask_ahead(const uint8_t* p, int chunks) {
    for (int i = 0; i < chunks; i++) __builtin_prefetch(p + AHEAD + size_t(i) * 64);  // beyond the file, too: it never faults
}

inline int32_t sum_of_codes(const int8_t* q, int n) {
    int32_t s = 0;
    for (int i = 0; i < n; i++) s += q[i];
    return s;
}

// `block` of activations, of which `part` columns make a block of the matrix. Both are 128 as a rule, and known then.
template <int KIND, int M, class Number>
inline void code_tile(const Matrix& m, const uint8_t* p, const Activations& a, int token, F* r, Number block, Number part) {
    constexpr int WIDTH = KIND == DOGE_CPU_INT8 ? 4 : 8;  // columns of 64 bytes
    const int blocks = m.columns / part, chunks = part / WIDTH, ratio = block / part;
    for (int t = 0; t < M; t++) r[t] = splat(0.0f);
    for (int b = 0; b < blocks; b++) {
        const size_t at = size_t(b / ratio) * a.step + size_t(token);
        const int8_t* q = a.codes + at * size_t(block) + size_t(b % ratio * part);
        if constexpr (M == 1 || M == CODE_TILE) ask_ahead(p, chunks);
        I acc[M];
        int32_t sums[M];
        for (int t = 0; t < M; t++) {
            acc[t] = splat_int(0);
            sums[t] = ratio == 1 ? a.sums[at + size_t(t)] : sum_of_codes(q + t * block, part);
        }
        if constexpr (KIND == DOGE_CPU_INT8) dots8<M>(p, chunks, q, size_t(block), sums, acc);
        else dots4<M>(p, chunks, q, size_t(block), sums, acc);
        p += size_t(chunks) * 64;
        const F scales = load(reinterpret_cast<const float*>(p));
        p += 64;
        for (int t = 0; t < M; t++) r[t] = fma(to_float(acc[t]), mul(scales, splat(a.scales[at + size_t(t)])), r[t]);
    }
}

struct Usual {
    constexpr operator int() const { return 128; }
};

template <int KIND, int M>
inline void code_tile(const Matrix& m, const uint8_t* p, const Activations& a, int token, F* r) {
    if (m.block == 128) code_tile<KIND, M>(m, p, a, token, r, Usual(), Usual());
    else code_tile<KIND, M>(m, p, a, token, r, a.block, m.block);
}

// Calls f(Tokens<M>, token) for tiles of T tokens, then of fewer, until there are none left.
template <int M>
struct Tokens {
    static constexpr int value = M;
};
template <int T, class Function>
inline int each_tile(int token, int n, Function f) {
    for (; token + T <= n; token += T) f(Tokens<T>(), token);
    if constexpr (T > 1) token = each_tile<(T > 4 ? 4 : T / 2)>(token, n, f);
    return token;
}

constexpr int BATCH = 96;  // tokens at once: their products with 16 rows, 6 KB, stay in the first cache

#ifdef DOGE_WIDENS

inline void wide_products(const Matrix& m, const uint8_t* p, const Activations& a, int token, int n, F* out) {
    alignas(64) int16_t weights[128 * 16];
    const int blocks = m.columns / m.block, ratio = a.block / m.block;
    for (int t = 0; t < n; t++) out[t] = splat(0.0f);
    for (int b = 0; b < blocks; b++, p += size_t(m.block) * 16 + 64) {
        ask_ahead(p, m.block / 4);
        widen(p, m.block / 4, weights);
        const size_t at = size_t(b / ratio) * a.step + size_t(token);
        const int16_t* codes = a.wide + at * size_t(a.block) + size_t(b % ratio * m.block);
        const F scales = load(reinterpret_cast<const float*>(p + size_t(m.block) * 16));
        each_tile<CODE_TILE>(0, n, [&](auto size, int first) {
            constexpr int M = decltype(size)::value;
            I acc[M];
            for (int t = 0; t < M; t++) acc[t] = splat_int(0);
            dots_wide<M>(weights, m.block / 2, codes + size_t(first) * size_t(a.block), size_t(a.block), acc);
            for (int t = 0; t < M; t++) {
                const F scale = mul(scales, splat(a.scales[at + size_t(first + t)]));
                out[first + t] = fma(to_float(acc[t]), scale, out[first + t]);
            }
        });
    }
}

#endif

template <int KIND>
inline void code_products(const Matrix& m, int group, const Activations& a, int token, int n, F* out) {
    const uint8_t* p = m.bytes + size_t(group) * m.group;
    each_tile<CODE_TILE>(0, n, [&](auto size, int first) {
        code_tile<KIND, decltype(size)::value>(m, p, a, token + first, out + first);
    });
}

template <int KIND>
inline void float_products(const Matrix& m, int group, int groups, const Activations& a, int token, int n, F* out) {
    const uint8_t* p = m.bytes + size_t(group) * m.group;
    const float* x = a.x + size_t(token) * a.stride;
    if constexpr (takes_groups(KIND)) {
        if (m.rows <= 16) {  // no other groups to take at once, for any number of tokens: several sums for one after another
            for (int t = 0; t < n; t++) float_tile<KIND, 1>(p, m.columns, x + size_t(t) * a.stride, a.stride, out + t);
            return;
        }
        if (groups == GROUPS) return float_groups<KIND, GROUPS, 1>(p, m.group, m.columns, x, a.stride, out);
        if (groups == GROUPS / 2) return float_groups<KIND, GROUPS / 2, 2>(p, m.group, m.columns, x, a.stride, out);
    }
    each_tile<FLOAT_TILE>(0, n, [&](auto size, int first) {
        constexpr int M = decltype(size)::value;
        float_groups<KIND, 1, M>(p, m.group, m.columns, x + size_t(first) * a.stride, a.stride, out + first);
    });
}

// How many groups `products` is to take at once, of `left` ones.
inline int groups_at_once(const Matrix& m, int n, int left) {
    const int groups = n > 2 || !takes_groups(m.kind) ? 1 : GROUPS / n;
    return groups <= left ? groups : 1;
}

// Products of some groups of 16 rows with n tokens, at most BATCH, group after group.
inline void products(const Matrix& m, int group, int groups, const Activations& a, int token, int n, F* out) {
#ifdef DOGE_WIDENS
    if (m.kind == DOGE_CPU_INT8 && a.wide != nullptr)
        return wide_products(m, m.bytes + size_t(group) * m.group, a, token, n, out);
#endif
    switch (m.kind) {
        case DOGE_CPU_INT8: return code_products<DOGE_CPU_INT8>(m, group, a, token, n, out);
        case DOGE_CPU_INT4: return code_products<DOGE_CPU_INT4>(m, group, a, token, n, out);
        case DOGE_CPU_FLOAT16: return float_products<DOGE_CPU_FLOAT16>(m, group, groups, a, token, n, out);
        case DOGE_CPU_BFLOAT16: return float_products<DOGE_CPU_BFLOAT16>(m, group, groups, a, token, n, out);
        default: return float_products<DOGE_CPU_FLOAT32>(m, group, groups, a, token, n, out);
    }
}

inline void deliver(const Sink& sink, int group, int token, F value) {
    const int row = group * 16;
    if (sink.bias != nullptr) value = add(value, load(sink.bias + row));
    float* out = sink.out + size_t(token) * sink.stride + row;
    if (sink.residual != nullptr) value = fma(load(sink.residual + row), load(out), value);
    if (row + 16 <= sink.rows) {
        store(out, value);
    } else {
        float all[16];
        store(all, value);
        for (int i = 0; row + i < sink.rows; i++) out[i] = all[i];
    }
}

void multiply(const Matrix& m, int first, int last, const Activations& a, int n, const Sink& sink) {
    F out[BATCH];
    for (int token = 0; token < n; token += BATCH) {
        const int count = n - token < BATCH ? n - token : BATCH;
        for (int g = first, groups; g < last; g += groups) {
            groups = groups_at_once(m, count, last - g);
            products(m, g, groups, a, token, count, out);
            for (int i = 0; i < groups; i++)
                for (int t = 0; t < count; t++) deliver(sink, g + i, token + t, out[i * count + t]);
        }
    }
}

void gated(const Matrix& gate, int gate_first, const Matrix& up, int up_first, int groups, const Activations& a, int n,
           const float* gate_bias, const Sink& sink) {
    F r[BATCH], s[BATCH];
    for (int token = 0; token < n; token += BATCH) {
        const int count = n - token < BATCH ? n - token : BATCH;
        for (int g = 0, some; g < groups; g += some) {
            some = gate.kind == up.kind ? groups_at_once(gate, count, groups - g) : 1;
            products(gate, gate_first + g, some, a, token, count, r);
            products(up, up_first + g, some, a, token, count, s);
            for (int i = 0; i < some * count; i++) {
                const int t = token + i % count, row = (g + i / count) * 16;
                if (gate_bias != nullptr) r[i] = add(r[i], load(gate_bias + row));
                if (sink.bias != nullptr) s[i] = add(s[i], load(sink.bias + row));
                store(sink.out + size_t(t) * sink.stride + row, mul(silu(r[i]), s[i]));
            }
        }
    }
}

}  // namespace
}  // namespace doge::cpu
