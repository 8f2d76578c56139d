// What linear layers multiply with, and its codes.
#pragma once
#include "kernels.h"
#include "memory.h"

namespace doge::cpu {

// The largest block of activations for so many columns; 0 where there is none, and then no weights are codes either.
constexpr int activation_block(int columns) {
    for (int block = 128; block >= 16; block /= 2) {
        if (columns % block == 0) return block;
    }
    return 0;
}

// Inputs of linear layers, of n tokens, with room for their codes.
class Inputs {
   public:
    void need(const Kernels& kernels, int tokens, int columns) {
        columns_ = columns;
        a_.block = activation_block(columns);
        a_.stride = size_t(padded(columns));
        a_.step = size_t(tokens);
        const size_t n = size_t(tokens), blocks = size_t(a_.block == 0 ? 0 : columns / a_.block);
        a_.x = x_.need(n * a_.stride);
        a_.codes = codes_.need(n * a_.stride);
        a_.wide = kernels.widen != nullptr && tokens >= MANY ? wide_.need(n * a_.stride) : nullptr;
        a_.scales = scales_.need(n * blocks);
        a_.sums = sums_.need(n * blocks);
    }
    float* x(int token) const { return a_.x + size_t(token) * a_.stride; }
    void quantise(const Kernels& kernels, int token) const {
        const Activations a = from(token);
        kernels.quantise(a.x, columns_, a.block, a.step, a.codes, a.scales, a.sums);
        if (a.wide == nullptr) return;
        for (size_t at = 0; at < size_t(columns_) * a.step; at += size_t(a.block) * a.step)
            kernels.widen(a.codes + at, a.block, a.wide + at);
    }
    const Activations& all() const { return a_; }
    Activations from(int token) const {
        Activations a = a_;
        const size_t t = size_t(token);
        a.x += t * a.stride;
        a.codes += t * size_t(a.block);
        if (a.wide != nullptr) a.wide += t * size_t(a.block);
        a.scales += t;
        a.sums += t;
        return a;
    }

   private:
    Activations a_{};
    int columns_ = 0;
    Buffer<float> x_, scales_;
    Buffer<int8_t> codes_;
    Buffer<int16_t> wide_;
    Buffer<int32_t> sums_;
};

}  // namespace doge::cpu
