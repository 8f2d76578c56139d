// The best tokens of a float head, exactly, from reading a quarter of it.
//
// An int8 copy of the head bounds every logit; the head's own rows decide among those that may be among the best.
//
// The bound, for one row w and input x, block b of 128 columns by block:
//     w_b = s q_b + e_b             q int8, s its scale, |e_b| <= E_b known
//     x_b = a c_b + d f_b + g_b     c, f int8: f rounds what c leaves; |g_b| = G_b and |x_b| = X_b known
//     <w_b, x_b> = s (a <q_b, c_b> + d <q_b, f_b>) + s <q_b, g_b> + <e_b, x_b>
// The first term is what the kernel sums. |s q_b| <= |w_b| + |e_b| =: N_b + E_b, so by Cauchy and Schwarz
//     |logit - sum of first terms| <= sum over b of (N_b + E_b) G_b + E_b X_b.
// Sums in float32 are off, too: those of the exact logit (K products, each rounded, in any order) by at most
// K 2^-23 sum |w_i| |x_i| <= K 2^-23 sum N_b X_b, for K < 2^20; those of the first terms, whose integers are below 2^24 and
// exact, by at most (K / 16 + 8) 2^-23 sum (N_b + E_b) X_b. `rounding` covers both; E, N, X and G are rounded up.
//
// Row r can be among the n best only if its upper bound reaches the n-th largest lower bound: else n rows are better. A row
// of NaN or infinity has the bounds -infinity and infinity, and its own logit decides.
#pragma once
#include "inputs.h"
#include "model.h"

namespace doge::cpu {

class Screen {
   public:
    // Whether there is a copy: of heads of floats alone, of columns that have blocks.
#ifdef DOGE_CPU_NO_SCREEN
    static constexpr bool ready() { return false; }
#else
    bool ready() const { return head_.bytes != nullptr; }
#endif
    void make(const Linear& head, Pool& pool);
    const ScreenedHead& head() const { return head_; }

   private:
    void make_rows(const Matrix& part, int group, int group_of_all);

    Memory memory_;
    ScreenedHead head_{};
};

// One input, prepared.
class ScreenInput {
   public:
    void need(const Kernels& kernels, int columns);
    void prepare(const Kernels& kernels, const float* x, int columns);
    ScreenedInput view() const { return {codes_.all(), norms_.data(), rests_.data(), rounding_}; }

   private:
    Inputs codes_;
    std::vector<float> norms_, rests_;
    float rounding_ = 0;
};

}  // namespace doge::cpu
