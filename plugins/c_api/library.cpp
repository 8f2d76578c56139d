#pragma GCC visibility push(default)

// The GPUs that the kernels in this library are compiled for, as CMake names them ("80-real 90"); empty: no kernels.
extern "C" const char* doge_architectures() { return DOGE_ARCHITECTURES; }

#pragma GCC visibility pop
