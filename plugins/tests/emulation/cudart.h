// What a test may ask of the emulator behind CUDA's runtime, through ctypes too.
#ifndef DOGE_EMULATION_CUDART_H
#define DOGE_EMULATION_CUDART_H

#include <cstdint>

#pragma GCC visibility push(default)
extern "C" {

// Of the launches that follow: grid.h's Order, and the seed of Order::Random.
void doge_emulation_schedule(int order, std::uint64_t seed);

// Kernels that take the place of those with the same names, until they are unloaded.
void doge_emulation_load(const char* ptx);
void doge_emulation_unload();

// The PTX that holds a kernel with `part` in its (mangled) name; null if there is none.
const char* doge_emulation_ptx(const char* part);

// "NAME COUNT\n" for every kernel there is: how often it was launched.
const char* doge_emulation_launches();

// Why the last launch failed that did.
const char* doge_emulation_error();
}
#pragma GCC visibility pop

#endif
