// CDMoE's choice of experts.
#pragma once
#include <vector>

namespace doge::cpu {

struct Pick {
    int expert;
    float weight;
};

// The k pairs of highest score x[a] + y[b], of equal sums that of lower a * n + b first, and their softmax. It holds
// memory only, to allocate less.
class Router {
   public:
    // Allocates what choose needs for n keys and k picks; a thread's work must not throw.
    void reserve(int n, int k);
    void choose(const float* x, const float* y, int n, int k, Pick* picks);

   private:
    struct Scored {
        float score;
        int index;
    };
    static void best(const float* scores, int n, int k, std::vector<Scored>& out);

    std::vector<Scored> x_, y_, pairs_;
};

}  // namespace doge::cpu
