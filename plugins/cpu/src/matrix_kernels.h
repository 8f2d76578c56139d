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

// r[t] = 16 rows of floats times x of token t. Few tokens take several sums each, for the processor adds slower than
// it starts to add.
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

template <int M>
inline void tile(const Matrix& m, int group, const Activations& a, int token, F* r) {
    const uint8_t* p = m.bytes + size_t(group) * m.group;
    const float* x = a.x + size_t(token) * a.stride;
    switch (m.kind) {
        case DOGE_CPU_INT8: code_tile<DOGE_CPU_INT8, M>(m, p, a, token, r); break;
        case DOGE_CPU_INT4: code_tile<DOGE_CPU_INT4, M>(m, p, a, token, r); break;
        case DOGE_CPU_FLOAT16: float_tile<DOGE_CPU_FLOAT16, M>(p, m.columns, x, a.stride, r); break;
        case DOGE_CPU_BFLOAT16: float_tile<DOGE_CPU_BFLOAT16, M>(p, m.columns, x, a.stride, r); break;
        default: float_tile<DOGE_CPU_FLOAT32, M>(p, m.columns, x, a.stride, r); break;
    }
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

// Products of 16 rows with n tokens, at most BATCH.
inline void products(const Matrix& m, int group, const Activations& a, int token, int n, F* out) {
#ifdef DOGE_WIDENS
    if (m.kind == DOGE_CPU_INT8 && a.wide != nullptr) {
        wide_products(m, m.bytes + size_t(group) * m.group, a, token, n, out);
        return;
    }
#endif
    const auto some = [&](auto size, int first) { tile<decltype(size)::value>(m, group, a, token + first, out + first); };
    if (m.kind == DOGE_CPU_INT8 || m.kind == DOGE_CPU_INT4) each_tile<CODE_TILE>(0, n, some);
    else each_tile<FLOAT_TILE>(0, n, some);
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
        for (int g = first; g < last; g++) {
            products(m, g, a, token, count, out);
            for (int t = 0; t < count; t++) deliver(sink, g, token + t, out[t]);
        }
    }
}

void gated(const Matrix& gate, int gate_first, const Matrix& up, int up_first, int groups, const Activations& a, int n,
           const float* gate_bias, const Sink& sink) {
    F r[BATCH], s[BATCH];
    for (int token = 0; token < n; token += BATCH) {
        const int count = n - token < BATCH ? n - token : BATCH;
        for (int g = 0; g < groups; g++) {
            products(gate, gate_first + g, a, token, count, r);
            products(up, up_first + g, a, token, count, s);
            for (int t = 0; t < count; t++) {
                if (gate_bias != nullptr) r[t] = add(r[t], load(gate_bias + g * 16));
                if (sink.bias != nullptr) s[t] = add(s[t], load(sink.bias + g * 16));
                store(sink.out + size_t(token + t) * sink.stride + g * 16, mul(silu(r[t]), s[t]));
            }
        }
    }
}

}  // namespace
}  // namespace doge::cpu
