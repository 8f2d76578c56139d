#include "routing.h"

#include <algorithm>
#include <cmath>

namespace doge::cpu {
namespace {

// A total order for any numbers, so that the sorting algorithms stay within bounds: NaN counts as lowest.
float orderly(float score) { return score == score ? score : -INFINITY; }

}  // namespace

void Router::best(const float* scores, int n, int k, std::vector<Scored>& out) {
    const auto before = [](const Scored& a, const Scored& b) {
        return a.score > b.score || (a.score == b.score && a.index < b.index);
    };
    out.clear();
    for (int i = 0; i < n; i++) out.push_back({orderly(scores[i]), i});
    std::partial_sort(out.begin(), out.begin() + std::min(k, n), out.end(), before);
    out.resize(size_t(std::min(k, n)));
}

void Router::reserve(int n, int k) {
    x_.reserve(size_t(n));
    y_.reserve(size_t(n));
    pairs_.reserve(8 * size_t(k));  // k / 1 + k / 2 + ... + k / k, for k up to 1024
}

void Router::choose(const float* x, const float* y, int n, int k, Pick* picks) {
    best(x, n, k, x_);
    best(y, n, k, y_);
    pairs_.clear();
    for (int i = 0; i < int(x_.size()); i++) {
        // (i + 1) * (j + 1) pairs are at least as good as pair i, j
        for (int j = 0; j < int(y_.size()) && (i + 1) * (j + 1) <= k; j++)
            pairs_.push_back({orderly(x_[size_t(i)].score + y_[size_t(j)].score),
                              x_[size_t(i)].index * n + y_[size_t(j)].index});
    }
    const auto before = [](const Scored& a, const Scored& b) {
        return a.score > b.score || (a.score == b.score && a.index < b.index);
    };
    std::partial_sort(pairs_.begin(), pairs_.begin() + k, pairs_.end(), before);
    float total = 0;
    for (int i = 0; i < k; i++) {
        const float e = std::exp(pairs_[size_t(i)].score - pairs_[0].score);
        picks[i] = {pairs_[size_t(i)].index, e};
        total += e;
    }
    for (int i = 0; i < k; i++) picks[i].weight /= total;
}

}  // namespace doge::cpu
