// float32, float16 and bfloat16 in memory, by software: no CUDA, no compiler extension.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "doge/operators.h"

namespace doge {

// Bytes of one number.
size_t size_of(doge_dtype dtype);

// `count` numbers from the `first` on; exact, as float32 holds every float16 and bfloat16.
std::vector<float> read(doge_dtype dtype, const void* memory, size_t first, size_t count);

// Writes a number at index `place`, rounded once, to nearest and to even in a tie; beyond the largest it is infinite.
void write(doge_dtype dtype, void* memory, size_t place, double value);

}  // namespace doge
