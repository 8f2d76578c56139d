// Every instruction set of this library and machine against sums in double, over shapes and numbers that find mistakes: odd
// sizes, every block, the extreme codes that make 16-bit sums overflow, keys that must not be seen.
//
//   kernels_test [INSTRUCTION_SET]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "layout.h"
#include "memory.h"
#include "processor.h"

using namespace doge::cpu;

namespace {

int failures = 0, checks = 0;
uint32_t seed = 1;

uint32_t bits() { return seed = seed * 1664525u + 1013904223u; }
int below(int n) { return int((bits() >> 8) % uint32_t(n)); }
float uniform() { return float(int32_t(bits())) * 0x1p-31f; }

void close(const char* set, const char* what, double actual, double expected, double bound) {
    checks++;
    if (std::fabs(actual - expected) <= bound) return;  // false for NaN
    if (++failures < 20) std::printf("%s: %s is %.9g, expected %.9g +- %.2g\n", set, what, actual, expected, bound);
}

// Memory whose ends are where a read beyond them is noticed by a sanitizer: exactly as large as asked for.
template <class T>
struct Exact {
    Memory memory;
    size_t count;
    explicit Exact(size_t n) : memory(n * sizeof(T)), count(n) {}
    T* data() { return reinterpret_cast<T*>(memory.data()); }
    T& operator[](size_t i) { return data()[i]; }
};

doge_cpu_piece planned(int role, int rows, int columns, int kind, int block) {
    doge_cpu_piece p{};
    p.role = role, p.layer = role < 16 ? -1 : 0, p.rows = rows, p.columns = columns, p.kind = kind, p.block = block;
    p.bytes = piece_bytes(role == DOGE_CPU_HEAD ? Form::interleaved : Form::rows, p);
    return p;
}

// Random weights, packed; `values` are what the codes stand for.
struct Weights {
    std::vector<float> values;
    Exact<uint8_t> packed;

    Weights(const doge_cpu_piece& p, bool extreme) : values(size_t(p.rows) * size_t(p.columns)), packed(p.bytes) {
        char message[200];
        doge_cpu_status status;
        if (is_code(p.kind)) {
            std::vector<uint8_t> codes(values.size());
            std::vector<float> scales(values.size() / size_t(p.block));
            const int top = p.kind == DOGE_CPU_INT8 ? 255 : 15;
            for (uint8_t& c : codes) c = uint8_t(extreme ? (below(4) != 0 ? 0 : top) : below(top + 1));
            for (float& s : scales) s = 0.01f + 0.01f * uniform();
            for (size_t i = 0; i < values.size(); i++)
                values[i] = scales[i / size_t(p.block)] * float(int(codes[i]) - zero_code(p.kind));
            status = doge_cpu_pack(&p, nullptr, codes.data(), scales.data(), packed.data(), message, sizeof message);
        } else {
            for (float& x : values) x = std::ldexp(float(below(255) - 127), -7);  // exact in 16 bits, too
            status = doge_cpu_pack(&p, values.data(), nullptr, nullptr, packed.data(), message, sizeof message);
        }
        if (status != DOGE_CPU_SUCCESS) std::printf("%s\n", message), std::exit(1);
    }
};

// Inputs of n tokens as the stack prepares them, and what they stand for.
struct Inputs {
    Exact<float> x, scales;
    Exact<int8_t> codes;
    Exact<int16_t> wide;
    Exact<int32_t> sums;
    std::vector<double> rounded;  // [n, columns]
    Activations a{};

    Inputs(const Kernels& k, int n, int columns, int block, bool extreme)
        : x(size_t(n) * size_t(padded(columns))),
          scales(size_t(n) * 16),
          codes(size_t(n) * size_t(padded(columns))),
          wide(size_t(n) * size_t(padded(columns))),
          sums(size_t(n) * 16),
          rounded(size_t(n) * size_t(columns)) {
        const size_t stride = size_t(padded(columns));
        a = {x.data(), codes.data(), nullptr, scales.data(), sums.data(), stride, size_t(n), block};
        for (int t = 0; t < n; t++)
            for (int c = 0; c < columns; c++) {
                const float value = extreme ? (below(3) != 0 ? 1.0f : -1.0f) : uniform();
                x[size_t(t) * stride + size_t(c)] = value;
                rounded[size_t(t) * size_t(columns) + size_t(c)] = value;
            }
        if (block == 0) return;
        for (int t = 0; t < n; t++)
            k.quantise(&x[size_t(t) * stride], columns, block, size_t(n), codes.data() + t * block, scales.data() + t,
                       sums.data() + t);
        if (k.widen != nullptr && n >= MANY) {
            k.widen(codes.data(), n * columns, wide.data());
            a.wide = wide.data();
        }
        for (int t = 0; t < n; t++) {
            for (int b = 0; b < columns / block; b++) {
                const size_t at = size_t(b * n + t);
                int32_t sum = 0;
                for (int i = 0; i < block; i++) {
                    const int code = codes[at * size_t(block) + size_t(i)];
                    const double value = rounded[size_t(t * columns + b * block + i)];
                    close(k.name, "a code", code * double(scales[at]), value, double(scales[at]) * 0.501);
                    if (code < -127) close(k.name, "the lowest code", code, -127, 0);
                    rounded[size_t(t * columns + b * block + i)] = code * double(scales[at]);
                    sum += code;
                }
                close(k.name, "a sum of codes", sums[at], sum, 0);
            }
        }
    }
};

int largest_block(int columns) {
    for (int block = 128; block >= 16; block /= 2)
        if (columns % block == 0) return block;
    return 0;
}

double product(const Weights& w, const Inputs& in, int columns, int row, int token, double& size) {
    double sum = 0;
    size = 1e-6;
    for (int c = 0; c < columns; c++) {
        const double term = double(w.values[size_t(row) * size_t(columns) + size_t(c)]) *
                            in.rounded[size_t(token) * size_t(columns) + size_t(c)];
        sum += term;
        size += std::fabs(term);
    }
    return sum;
}

void test_multiply(const Kernels& k, int rows, int columns, int kind, int block, int n, bool extreme) {
    const doge_cpu_piece p = planned(DOGE_CPU_HEAD, rows, columns, kind, block);
    Weights w(p, extreme);
    Inputs in(k, n, columns, is_code(kind) ? largest_block(columns) : 0, extreme);
    const Matrix m{w.packed.data(), rows, columns, kind, block, group_bytes(kind, block, columns)};
    const size_t stride = size_t(rows) + 3;
    Exact<float> out(size_t(n) * stride), bias(size_t(padded(rows))), residual(size_t(padded(rows)));
    for (int r = 0; r < rows; r++) bias[size_t(r)] = uniform(), residual[size_t(r)] = uniform();
    for (int use = 0; use < 3; use++) {
        std::vector<float> before(out.count);
        for (size_t i = 0; i < out.count; i++) before[i] = out[i] = uniform();
        const bool adds = use == 2 && rows % 16 == 0;  // residuals lie in padded rows
        const Sink sink{out.data(), stride, use > 0 ? bias.data() : nullptr, adds ? residual.data() : nullptr, rows};
        k.multiply(m, 0, padded(rows) / 16, in.a, n, sink);
        for (int t = 0; t < n; t++) {
            for (int r = 0; r < rows; r++) {
                const size_t at = size_t(t) * stride + size_t(r);
                double size, expected = product(w, in, columns, r, t, size);
                if (use > 0) expected += double(bias[size_t(r)]);
                if (adds) expected += double(residual[size_t(r)]) * double(before[at]);
                close(k.name, "a product", out[at], expected, 2e-6 * (size + 1));
            }
            for (size_t r = size_t(rows); r < stride; r++)
                close(k.name, "what lies beside", out[size_t(t) * stride + r], before[size_t(t) * stride + r], 0);
        }
    }
}

void test_gated(const Kernels& k, int rows, int columns, int kind, int n) {
    const int block = is_code(kind) ? 32 : 0;
    const doge_cpu_piece p = planned(DOGE_CPU_HEAD, rows, columns, kind, block);
    Weights gate(p, false), up(p, false);
    Inputs in(k, n, columns, is_code(kind) ? largest_block(columns) : 0, false);
    const Matrix g{gate.packed.data(), rows, columns, kind, block, size_t(p.bytes) / size_t(padded(rows) / 16)};
    const Matrix u{up.packed.data(), rows, columns, kind, block, g.group};
    const size_t stride = size_t(padded(rows));
    Exact<float> out(size_t(n) * stride), bias(stride);
    for (size_t r = 0; r < stride; r++) bias[r] = uniform();
    k.gated(g, 0, u, 0, padded(rows) / 16, in.a, n, bias.data(), {out.data(), stride, bias.data(), nullptr, padded(rows)});
    for (int t = 0; t < n; t++)
        for (int r = 0; r < rows; r++) {
            double gs, us;
            const double a = product(gate, in, columns, r, t, gs) + double(bias[size_t(r)]);
            const double b = product(up, in, columns, r, t, us) + double(bias[size_t(r)]);
            close(k.name, "a gated product", out[size_t(t) * stride + size_t(r)], a / (1 + std::exp(-a)) * b,
                  3e-6 * (gs + 1) * (us + 1));
        }
}

// Gates so far from 0 that their exponentials are no floats.
void test_silu(const Kernels& k) {
    const float gates[16] = {0, -87, -88, -88.8f, -89, -90, -100, -1000, -1e30f, 87, 89, 100, 1e30f, -126, -130, -200};
    doge_cpu_piece p = planned(DOGE_CPU_HEAD, 16, 1, DOGE_CPU_FLOAT32, 0);
    Weights zero(p, false);
    std::memset(zero.packed.data(), 0, p.bytes);
    Inputs in(k, 1, 1, 0, false);
    const Matrix m{zero.packed.data(), 16, 1, DOGE_CPU_FLOAT32, 0, size_t(p.bytes)};
    Exact<float> gate(16), one(16), out(16);
    for (size_t i = 0; i < 16; i++) gate[i] = gates[i], one[i] = 1;
    k.gated(m, 0, m, 0, 1, in.a, 1, gate.data(), {out.data(), 16, one.data(), nullptr, 16});
    for (size_t i = 0; i < 16; i++) {
        const double x = gates[i];
        close(k.name, "silu", out[i], x / (1 + std::exp(-x)), 1e-6 * std::fmax(x, 0) + 1e-6);
    }
}

// Blocks of numbers so small that 127 over the largest is no float, and comparisons with NaN.
void test_odd_numbers(const Kernels& k) {
    for (const float size : {0.0f, 1e-44f, 1e-39f, 1e-37f, 1e-30f, 1e30f}) {
        Exact<float> x(16), scale(1);
        Exact<int8_t> codes(16);
        Exact<int32_t> sum(1);
        for (int i = 0; i < 16; i++) x[size_t(i)] = float(i - 8) / 8 * size;
        k.quantise(x.data(), 16, 16, 1, codes.data(), scale.data(), sum.data());
        for (int i = 0; i < 16; i++) {
            const double step = double(size) / 127, bound = size > 1e-36f ? 0.51 * step : double(size);
            close(k.name, "a small code", double(scale[0]) * codes[size_t(i)], double(x[size_t(i)]), bound + 1e-44);
            if (codes[size_t(i)] < -127) close(k.name, "the lowest code", codes[size_t(i)], -127, 0);
        }
    }
    Exact<float> x(50);
    for (int i = 0; i < 50; i++) x[size_t(i)] = i == 20 ? 7.0f : i % 3 == 0 ? NAN : float(i) / 100;
    const float top = k.largest(x.data(), 50);
    if (top == top) close(k.name, "the largest beside NaN", top, 7, 0);
}

// Keys and values as the cache holds them, written here again.
void test_attend(const Kernels& k, bool int8, int head_dim, int count, int n, int first, bool selects) {
    const int width = padded(head_dim);
    const size_t w = size_t(width);
    Exact<uint8_t> keys(int8 ? PAGE * (w + 4) : PAGE * w * 4), values(int8 ? PAGE * w : PAGE * w * 4);
    Exact<float> value_scales(PAGE), scores(PAGE), x(size_t(n) * w), out(size_t(n) * w);
    Exact<int8_t> codes(size_t(n) * w);
    std::vector<double> key(size_t(count) * w), value(size_t(count) * w);
    for (int j = 0; j < PAGE; j++) scores[size_t(j)] = j % 7 == 3 ? -3.402823466e+38f : float(below(4));
    for (int j = 0; j < count; j++) {
        const float ks = 0.02f + 0.01f * uniform(), vs = 0.02f + 0.01f * uniform();
        value_scales[size_t(j)] = vs;
        uint8_t* group = keys.data() + size_t(j / 16) * (int8 ? (w + 4) * 16 : w * 64);
        if (int8) std::memcpy(group + w * 16 + size_t(j % 16) * 4, &ks, 4);
        for (int d = 0; d < head_dim; d++) {
            const int kc = below(255) - 127, vc = below(255) - 127;
            const float kf = int8 ? float(kc) * ks : uniform(), vf = int8 ? float(vc) * vs : uniform();
            key[size_t(j) * w + size_t(d)] = double(kf), value[size_t(j) * w + size_t(d)] = double(vf);
            if (int8) {
                group[size_t(d / 4) * 64 + size_t(j % 16) * 4 + size_t(d % 4)] = uint8_t(kc + 128);
                values[size_t(j / 64) * w * 64 + size_t(d / 16) * 1024 + size_t(j % 64 / 4) * 64 + size_t(d % 16) * 4 +
                       size_t(j % 4)] = uint8_t(vc);
            } else {
                std::memcpy(group + (size_t(d) * 16 + size_t(j % 16)) * 4, &kf, 4);
                std::memcpy(values.data() + (size_t(j) * w + size_t(d)) * 4, &vf, 4);
            }
        }
        for (int d = head_dim; int8 && d < width; d++)
            group[size_t(d / 4) * 64 + size_t(j % 16) * 4 + size_t(d % 4)] = 128;
    }
    std::vector<Query> queries(static_cast<size_t>(n));
    for (int t = 0; t < n; t++) {
        Query& q = queries[size_t(t)];
        q = {};
        for (int d = 0; d < head_dim; d++) x[size_t(t) * w + size_t(d)] = 0.3f * uniform();
        if (int8) k.quantise(&x[size_t(t) * w], width, width, 1, &codes[size_t(t) * w], &q.scale, &q.sum);
        q.limit = first + 1 + below(count);
        if (t == 0) q.limit = first + count;
        q.scores = scores.data();
        q.selects = selects;
        q.least = 2.0f, q.last = first + count / 2;
        q.largest = MASKED;
        q.out = out.data() + size_t(t) * w;
    }
    const Keys page{keys.data(), values.data(), value_scales.data(), first, count, int8, width};
    k.attend(page, queries.data(), n, int8 ? nullptr : x.data(), int8 ? codes.data() : nullptr, w);
    k.attend(page, queries.data(), n, int8 ? nullptr : x.data(), int8 ? codes.data() : nullptr, w);  // once more: the same
    for (int t = 0; t < n; t++) {
        const Query& q = queries[size_t(t)];
        std::vector<double> weight(static_cast<size_t>(count)), expected(w);
        double most = -1e300, total = 0;
        for (int j = 0; j < count; j++) {
            const float score = scores[size_t(j)];
            const bool kept = first + j < q.limit && score > -1e30f &&
                              (!selects || score > q.least || (score == q.least && first + j <= q.last));
            double dot = 0;
            for (int d = 0; d < head_dim; d++) {
                const size_t at = size_t(t) * w + size_t(d);
                dot += key[size_t(j) * w + size_t(d)] * (int8 ? double(q.scale) * codes[at] : double(x[at]));
            }
            weight[size_t(j)] = kept ? dot + double(score) : -1e300;
            most = std::max(most, weight[size_t(j)]);
        }
        if (most == -1e300) {
            close(k.name, "the weight of nothing", q.total, 0, 0);
            continue;
        }
        for (double& e : weight) total += e = e == -1e300 ? 0 : std::exp(e - most);
        double size = 0;
        for (int j = 0; j < count; j++)
            for (int d = 0; d < head_dim; d++) {
                expected[size_t(d)] += weight[size_t(j)] / total * value[size_t(j) * w + size_t(d)];
                size = std::max(size, std::fabs(value[size_t(j) * w + size_t(d)]));
            }
        // int8: each weight is off by half of 1/127 of the block's largest
        const double bound = int8 ? size * (0.5 / 127) * 8 : 1e-5;
        close(k.name, "a total", q.total, 2 * total, 1e-4 * total);
        for (int d = 0; d < head_dim; d++)
            close(k.name, "an attended value", double(q.out[d]) / double(q.total), expected[size_t(d)], bound);
    }
}

void test_rows(const Kernels& k, int columns, int kind, int block) {
    const doge_cpu_piece p = planned(DOGE_CPU_EMBEDDING, 5, columns, kind, block);
    Weights w(p, false);
    const size_t row = row_bytes(kind, block, columns);
    Exact<float> x(size_t(padded(columns))), out(size_t(padded(columns)));
    for (int c = 0; c < columns; c++) x[size_t(c)] = uniform();
    for (int r = 0; r < 5; r++) {
        double dot = 0;
        for (int c = 0; c < columns; c++) {
            out[size_t(c)] = uniform();
            dot += double(x[size_t(c)]) * double(w.values[size_t(r) * size_t(columns) + size_t(c)]);
        }
        close(k.name, "a row's product", k.row_dot(w.packed.data() + size_t(r) * row, kind, block, columns, x.data()), dot,
              1e-5 * columns);
        std::vector<float> before(out.data(), out.data() + columns);
        const int last = columns > 32 ? 32 : columns;
        k.row_add(w.packed.data() + size_t(r) * row, kind, block, 0, last, columns, 0.7f, out.data());
        for (int c = 0; c < columns; c++)
            close(k.name, "a row added", out[size_t(c)],
                  double(before[size_t(c)]) + (c < last ? double(0.7f) * double(w.values[size_t(r * columns + c)]) : 0), 1e-6);
    }
}

void test_vectors(const Kernels& k, int n) {
    Exact<float> x(size_t(padded(n))), weight(size_t(padded(n))), y(size_t(padded(n)));
    double squares = 0;
    for (int i = 0; i < n; i++) x[size_t(i)] = uniform(), weight[size_t(i)] = uniform(), squares += double(x[size_t(i)]) * double(x[size_t(i)]);
    const double r = 1 / std::sqrt(squares / n + 1e-6);
    k.rms_norm(x.data(), weight.data(), n, 1e-6f, y.data());
    for (int i = 0; i < n; i++) close(k.name, "a norm", y[size_t(i)], x[size_t(i)] * r * weight[size_t(i)], 2e-6);
    if (n % 2 != 0 || n > MAX_HEAD) return;
    Exact<float> cos(size_t(n / 2)), sin(size_t(n / 2));
    for (int i = 0; i < n / 2; i++) cos[size_t(i)] = uniform(), sin[size_t(i)] = uniform();
    for (int normed = 0; normed < 2; normed++) {
        k.rotate(x.data(), normed != 0 ? weight.data() : nullptr, n, 1e-6f, cos.data(), sin.data(), 0.5f, y.data());
        const auto of = [&](int i) { return double(x[size_t(i)]) * (normed != 0 ? r * double(weight[size_t(i)]) : 1); };
        for (int i = 0; i < n / 2; i++) {
            close(k.name, "a turn", y[size_t(i)], 0.5 * (of(i) * cos[size_t(i)] - of(n / 2 + i) * sin[size_t(i)]), 2e-6);
            close(k.name, "a turn", y[size_t(n / 2 + i)], 0.5 * (of(n / 2 + i) * cos[size_t(i)] + of(i) * sin[size_t(i)]), 2e-6);
        }
    }
}

void test(const Kernels& k) {
    const int codes[] = {DOGE_CPU_INT8, DOGE_CPU_INT4}, floats[] = {DOGE_CPU_FLOAT32, DOGE_CPU_BFLOAT16, DOGE_CPU_FLOAT16};
    for (int n : {1, 2, 3, 5, 7, 12, 13, 19}) {
        for (int kind : codes)
            for (int block : {16, 32, 64, 128})
                for (int columns : {block, 3 * block, 256})
                    for (bool extreme : {false, true}) test_multiply(k, n == 5 ? 32 : 21, columns, kind, block, n, extreme);
        for (int kind : floats)
            for (int columns : {1, 3, 50, 64}) test_multiply(k, n == 5 ? 48 : 17, columns, kind, 0, n, false);
        for (int kind : {4, 8, 16, 17, 32}) test_gated(k, 48, 96, kind, n);
    }
    test_multiply(k, 16, 128, DOGE_CPU_INT8, 128, 101, false);  // more tokens than are taken at once
    for (bool int8 : {false, true})
        for (int d : {2, 16, 18, 64, 128, 256})
            for (int count : {1, 15, 16, 63, 64, 100, 256})
                for (bool selects : {false, true}) test_attend(k, int8, d, count, 1 + below(12), below(3) * PAGE, selects);
    test_attend(k, true, 64, 100, MOST_QUERIES, 0, false);
    for (int first : {1 << 23, (1 << 24) - PAGE}) test_attend(k, false, 16, 100, 12, first, true);  // whole floats are 1 apart
    test_silu(k);
    test_odd_numbers(k);
    for (int kind : codes)
        for (int block : {16, 32, 128}) test_rows(k, 2 * block, kind, block);
    for (int kind : floats)
        for (int columns : {1, 50, 64}) test_rows(k, columns, kind, 0);
    for (int n : {1, 2, 16, 18, 50, 64, 128, 256, 300}) test_vectors(k, n);
}

}  // namespace

int main(int argc, char** argv) {
    int sets = 0;
    for (const InstructionSet* set = INSTRUCTION_SETS; set->name != nullptr; set++) {
        // A set that is named is tried whatever the processor says: it may be emulated.
        const bool wanted = argc > 1 ? std::strcmp(set->name, argv[1]) == 0 : set->usable();
        if (!wanted || set->kernels() == nullptr) continue;
        test(*set->kernels());
        std::printf("%s: %d checks, %d failures\n", set->name, checks, failures);
        sets++;
    }
    return failures != 0 || sets == 0;
}
