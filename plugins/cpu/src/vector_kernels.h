// What is done to one vector at a time.
#pragma once

namespace doge::cpu {
namespace {

// The largest of each block goes to +-127; a block of which 127 / largest is no float becomes zeros.
void quantise(const float* x, int columns, int block, size_t step, int8_t* codes, float* scales, int32_t* sums) {
    for (int b = 0; b < columns / block; b++, x += block, codes += step * size_t(block), scales += step, sums += step) {
        F most = splat(0.0f);
        for (int k = 0; k < block; k += 16) most = max(most, abs(load(x + k)));
        const float top = largest(most);
        const F inverse = splat(top > SMALLEST ? 127.0f / top : 0.0f);
        I total = splat_int(0);
        for (int k = 0; k < block; k += 16) {
            const I code = to_int(nearest(mul(load(x + k), inverse)));
            total = add(total, code);
            store_codes(codes + k, code);
        }
        *scales = top / 127.0f;
        *sums = sum(total);
    }
}

inline float inverse_rms(const float* x, int padded_n, int n, float eps) {
    F s = splat(0.0f);
    for (int i = 0; i < padded_n; i += 16) s = fma(load(x + i), load(x + i), s);
    return 1.0f / ::sqrtf(sum(s) / float(n) + eps);
}

void rms_norm(const float* x, const float* weight, int n, float eps, float* y) {
    const int end = padded(n);
    const F r = splat(inverse_rms(x, end, n, eps));
    for (int i = 0; i < end; i += 16) store(y + i, mul(mul(load(x + i), r), load(weight + i)));
}

// The two halves of a head are the coordinates of points, which turn.
void rotate(const float* x, const float* norm, int head_dim, float eps, const float* cos, const float* sin, float scale,
            float* y) {
    alignas(64) float v[MAX_HEAD];
    const int half = head_dim / 2, end = padded(head_dim);
    for (int i = 0; i < head_dim; i++) v[i] = x[i];
    for (int i = head_dim; i < end; i++) v[i] = 0.0f;
    if (norm != nullptr) {
        const float r = inverse_rms(v, end, head_dim, eps);
        for (int i = 0; i < head_dim; i++) v[i] = v[i] * r * norm[i];
    }
    for (int i = 0; i < half; i++) {
        y[i] = (v[i] * cos[i] - v[half + i] * sin[i]) * scale;
        y[half + i] = (v[half + i] * cos[i] + v[i] * sin[i]) * scale;
    }
    for (int i = head_dim; i < end; i++) y[i] = 0.0f;
}

float largest_of(const float* x, int n) {
    F most = splat(-INFINITY);
    int i = 0;
    for (; i + 16 <= n; i += 16) most = max(load(x + i), most);
    float top = largest(most);
    for (; i < n; i++) top = x[i] > top ? x[i] : top;
    return top;
}

// Calls f(column, 16 weights) for columns [first, last) of one row of a table.
template <class Function>
inline void each_16(const uint8_t* row, int kind, int block, int columns, int first, int last, Function f) {
    const uint8_t* scales = row + size_t(columns) * size_t(kind) / 8;
    for (int k = first; k < last; k += 16) {
        float scale = 1.0f;
        if (kind == DOGE_CPU_INT8 || kind == DOGE_CPU_INT4) memcpy(&scale, scales + size_t(k / block) * 4, 4);
        switch (kind) {
            case DOGE_CPU_INT8: f(k, mul(load_codes8(row + k), splat(scale))); break;
            case DOGE_CPU_INT4: f(k, mul(load_codes4(row + k / 2), splat(scale))); break;
            case DOGE_CPU_FLOAT16: f(k, load_float16(row + size_t(k) * 2)); break;
            case DOGE_CPU_BFLOAT16: f(k, load_bfloat16(row + size_t(k) * 2)); break;
            default: f(k, load(reinterpret_cast<const float*>(row) + k)); break;
        }
    }
}

float row_dot(const uint8_t* row, int kind, int block, int columns, const float* x) {
    F s = splat(0.0f);
    each_16(row, kind, block, columns, 0, columns, [&](int k, F w) { s = fma(w, load(x + k), s); });
    return sum(s);
}

void row_add(const uint8_t* row, int kind, int block, int first, int last, int columns, float weight, float* out) {
    const F factor = splat(weight);
    each_16(row, kind, block, columns, first, last, [&](int k, F w) { store(out + k, fma(w, factor, load(out + k))); });
}

}  // namespace
}  // namespace doge::cpu
