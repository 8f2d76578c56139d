#include "doge/operators.h"

#ifdef DOGE_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

const char* doge_status_message(int status) {
    switch (status) {
        case DOGE_SUCCESS:
            return "success";
        case DOGE_BAD_SHAPE:
            return "sizes that make no sense, or that the kernels do not cover: see doge_attention_problem and "
                   "doge_cdmoe_problem";
        case DOGE_BAD_WORKSPACE:
            return "the workspace is smaller than doge_*_workspace_bytes, or not aligned to 256 bytes";
        case DOGE_NO_KERNELS:
            return "this library was built without CUDA: it holds no kernels";
        default:
            break;
    }
#ifdef DOGE_HAS_CUDA
    if (status > 0) {
        return cudaGetErrorString(static_cast<cudaError_t>(status));
    }
#endif
    return status > 0 ? "an error of CUDA, of which a library built without CUDA knows no more" : "an unknown status";
}
