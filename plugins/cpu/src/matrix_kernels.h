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

template <int KIND, int M>
inline void code_tile(const Matrix& m, const uint8_t* p, const Activations& a, int token, F* r) {
    constexpr int WIDTH = KIND == DOGE_CPU_INT8 ? 4 : 8;  // columns of 64 bytes
    const int blocks = m.columns / m.block, chunks = m.block / WIDTH, ratio = a.block / m.block;
    const int8_t* q = a.codes + size_t(token) * a.stride;
    const size_t row = size_t(token) * a.scale_stride;
    for (int t = 0; t < M; t++) r[t] = splat(0.0f);
    for (int b = 0; b < blocks; b++) {
        I acc[M];
        int32_t sums[M];
        for (int t = 0; t < M; t++) {
            acc[t] = splat_int(0);
            sums[t] = ratio == 1 ? a.sums[row + size_t(t) * a.scale_stride + size_t(b)]
                                 : sum_of_codes(q + size_t(t) * a.stride + size_t(b) * size_t(m.block), m.block);
        }
        if constexpr (KIND == DOGE_CPU_INT8)
            dots8<M>(p, chunks, q + size_t(b) * size_t(m.block), a.stride, sums, acc);
        else
            dots4<M>(p, chunks, q + size_t(b) * size_t(m.block), a.stride, sums, acc);
        p += size_t(chunks) * 64;
        const F scales = load(reinterpret_cast<const float*>(p));
        p += 64;
        const size_t place = row + size_t(b / ratio);
        for (int t = 0; t < M; t++)
            r[t] = fma(to_float(acc[t]), mul(scales, splat(a.scales[place + size_t(t) * a.scale_stride])), r[t]);
    }
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

// Calls f(std::integral_constant-like M{}, token) for tiles of T, T / 2 ... tokens until there are none left.
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

template <int T>
void multiply_tiles(const Matrix& m, int first, int last, const Activations& a, int n, const Sink& sink) {
    for (int g = first; g < last; g++) {
        each_tile<T>(0, n, [&](auto size, int token) {
            constexpr int M = decltype(size)::value;
            F r[M];
            tile<M>(m, g, a, token, r);
            for (int t = 0; t < M; t++) deliver(sink, g, token + t, r[t]);
        });
    }
}

void multiply(const Matrix& m, int first, int last, const Activations& a, int n, const Sink& sink) {
    if (m.kind == DOGE_CPU_INT8 || m.kind == DOGE_CPU_INT4) multiply_tiles<CODE_TILE>(m, first, last, a, n, sink);
    else multiply_tiles<FLOAT_TILE>(m, first, last, a, n, sink);
}

void gated(const Matrix& gate, int gate_first, const Matrix& up, int up_first, int groups, const Activations& a, int n,
           const float* gate_bias, const Sink& sink) {
    for (int g = 0; g < groups; g++) {
        each_tile<CODE_TILE>(0, n, [&](auto size, int token) {
            constexpr int M = decltype(size)::value;
            F r[M], s[M];
            tile<M>(gate, gate_first + g, a, token, r);
            tile<M>(up, up_first + g, a, token, s);
            for (int t = 0; t < M; t++) {
                if (gate_bias != nullptr) r[t] = add(r[t], load(gate_bias + g * 16));
                if (sink.bias != nullptr) s[t] = add(s[t], load(sink.bias + g * 16));
                store(sink.out + size_t(token + t) * sink.stride + g * 16, mul(silu(r[t]), s[t]));
            }
        });
    }
}

}  // namespace
}  // namespace doge::cpu
