// Keys and values of a cache as plain numbers.
#pragma once
#include "cache.h"

namespace doge::cpu {

// What Cache::append wrote at a place: key and value, head_dim floats each.
void read_cache(const Cache& cache, int place, int layer, int head, int head_dim, float* key, float* value);

}  // namespace doge::cpu
