#include "ranking.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace doge {

bool ranks_before(float value, int64_t place, float other, int64_t other_place) {
    const bool is_nan = std::isnan(value);
    if (is_nan != std::isnan(other)) {
        return is_nan;
    }
    return value > other || (!(value < other) && place < other_place);
}

std::vector<int> best(const float* values, int size, int count) {
    std::vector<int> places(size);
    std::iota(places.begin(), places.end(), 0);
    if (count >= size) {
        return places;
    }
    std::nth_element(places.begin(), places.begin() + count, places.end(),
                     [values](int a, int b) { return ranks_before(values[a], a, values[b], b); });
    places.resize(count);
    std::sort(places.begin(), places.end());
    return places;
}

}  // namespace doge
