// Found in place of CUDA's header when a kernel is compiled for the emulator.
#ifndef DOGE_EMULATION_CUDA_RUNTIME_H
#define DOGE_EMULATION_CUDA_RUNTIME_H

#include "../device.h"

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid value"; }
inline cudaError_t cudaMemsetAsync(void* address, int byte, std::size_t bytes, cudaStream_t) {
    std::memset(address, byte, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}

#endif
