// How kernels are launched and find their shared memory.
#ifndef DOGE_KERNELS_LAUNCH_CUH
#define DOGE_KERNELS_LAUNCH_CUH

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

namespace doge {

// The block's dynamic shared memory, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
    extern __shared__ __align__(16) unsigned char doge_dynamic_shared[];
    return reinterpret_cast<T*>(doge_dynamic_shared);
}

// Enqueues kernel<<<grid, block, shared_bytes, stream>>>(arguments...); the arguments are converted to the kernel's own
// types. Neither allocates nor waits, and may be captured in a graph. Returns a cudaError_t.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                   Arguments&&... arguments) {
    if (shared_bytes > 48 * 1024) {  // beyond what every kernel may have, it must be asked for
        const cudaError_t error =
            cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
        if (error != cudaSuccess) return error;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace doge

#endif
