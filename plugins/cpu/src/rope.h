// Cosines and sines of rotary positions. The formulas are those of doge_export/model/rope.py: frequencies depend on the
// positions of a call alone.
#pragma once
#include <vector>

#include "model.h"

namespace doge::cpu {

class Rope {
   public:
    Rope(const doge_cpu_config& config, const Weights& weights);

    // Prepares for n tokens at these positions, `longest` the largest of all that belong together.
    void prepare(const int32_t* positions, int n, int32_t longest);
    const float* cos(int token) const { return rows_[size_t(token)]; }
    const float* sin(int token) const { return rows_[size_t(token)] + half_; }

   private:
    void angles(const float* frequencies, int32_t position, float* row) const;
    void grow(int32_t positions);

    const doge_cpu_config& config_;
    const float *frequencies_, *long_frequencies_;
    int half_;
    size_t stride_;
    std::vector<float> usual_;  // by position, of the first ones, while the frequencies do not depend on the length
    std::vector<float> special_, frequencies_now_;
    std::vector<const float*> rows_;
};

}  // namespace doge::cpu
