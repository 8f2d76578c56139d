#include "screen.h"

#include <cmath>

namespace doge::cpu {
namespace {

// More than float32 sums of a few thousand numbers, and their square root, can be too small by.
constexpr double UP = 1.0001;

}  // namespace

void Screen::make_rows(const Matrix& part, int group, int group_of_all) {
    const int block = head_.block, blocks = head_.columns / block;
    const size_t codes = size_t(block) * LANES, size = codes + 3 * ALIGN;
    uint8_t* out = memory_.data() + size_t(group_of_all) * size_t(blocks) * size;
    for (int b = 0; b < blocks; b++, out += size) {
        float* numbers = reinterpret_cast<float*>(out + codes);
        for (int lane = 0; lane < LANES; lane++) {
            const int row = group * LANES + lane;
            float w[128], most = 0;
            for (int k = 0; k < block; k++) {
                w[k] = row < part.rows ? weight_at(part, row, b * block + k) : 0.0f;
                most = std::fmax(most, std::fabs(w[k]));
            }
            const float scale = most / 127.0f;
            double norm = 0, error = 0;
            for (int k = 0; k < block; k++) {
                const int code = scale > 0 ? int(std::nearbyint(std::fmin(std::fmax(w[k] / scale, -127.0f), 127.0f))) : 0;
                out[size_t(k / 4) * ALIGN + size_t(lane) * 4 + size_t(k % 4)] = uint8_t(code + 128);
                const double rest = double(w[k]) - double(scale) * code;
                norm += double(w[k]) * double(w[k]);
                error += rest * rest;
            }
            numbers[lane] = scale;
            numbers[lane + 16] = float(std::sqrt(error) * UP);
            numbers[lane + 32] = float(std::sqrt(norm) * UP);
        }
    }
}

void Screen::make(const Linear& head, Pool& pool) {
    head_ = {nullptr, head.columns, activation_block(head.columns)};
    if (head.empty() || head.codes || head_.block == 0) return;
    const size_t size = size_t(head_.block) * LANES + 3 * ALIGN;
    memory_ = Memory(size_t(head.groups()) * size_t(head.columns / head_.block) * size);
    auto work = [&](int id) {
        int begin = 0;
        for (const Matrix& part : head.parts) {
            const int groups = padded(part.rows) / LANES;
            const Share mine(groups, id, pool.threads());
            for (int g = mine.first; g < mine.last; g++) make_rows(part, g, begin + g);
            begin += groups;
        }
    };
    pool.run(work);
    head_.bytes = memory_.data();
}

void ScreenInput::need(const Kernels& kernels, int columns) {
    codes_.need(kernels, 2, columns);
    norms_.resize(size_t(columns / codes_.all().block));
    rests_.resize(norms_.size());
    rounding_ = (2.0f * float(columns) + 64.0f) * 0x1p-23f;
}

void ScreenInput::prepare(const Kernels& kernels, const float* x, int columns) {
    const Activations& a = codes_.all();
    const int block = a.block, blocks = columns / block;
    float *first = codes_.x(0), *second = codes_.x(1);
    for (int k = 0; k < columns; k++) first[k] = x[k];
    codes_.quantise(kernels, 0);
    for (int b = 0; b < blocks; b++) {
        const int8_t* c = a.codes + size_t(b) * 2 * size_t(block);
        for (int k = 0; k < block; k++) second[b * block + k] = first[b * block + k] - a.scales[b * 2] * float(c[k]);
    }
    codes_.quantise(kernels, 1);
    for (int b = 0; b < blocks; b++) {
        const int8_t *c = a.codes + size_t(b) * 2 * size_t(block), *f = c + block;
        double norm = 0, rest = 0;
        for (int k = 0; k < block; k++) {
            const double exact = double(first[b * block + k]);
            const double left = exact - double(a.scales[b * 2]) * c[k] - double(a.scales[b * 2 + 1]) * f[k];
            norm += exact * exact;
            rest += left * left;
        }
        norms_[size_t(b)] = float(std::sqrt(norm) * UP);
        rests_[size_t(b)] = float(std::sqrt(rest) * UP);
    }
}

}  // namespace doge::cpu
