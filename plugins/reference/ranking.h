// The total order of both operators: the larger value first, of equal ones the one of lower place.
#pragma once

#include <cstdint>
#include <vector>

namespace doge {

// Whether `value` at `place` comes before `other` at `other_place`. NaN comes first, as PyTorch sorts: an order that
// left it out would be none.
bool ranks_before(float value, int64_t place, float other, int64_t other_place);

// The places of the `count` first of `size` values, in ascending order; all of them where count >= size.
std::vector<int> best(const float* values, int size, int count);

}  // namespace doge
