// What leaves the library: the two functions by which TensorRT takes it, and what tells our own tools about it.
#include "creator.h"
#include "fields_json.h"
#include "log.h"

#define DOGE_EXPORT extern "C" __attribute__((visibility("default")))

DOGE_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept {
    static doge::trt::Creator attention(doge::trt::make_dynamic_mask_attention);
    static doge::trt::Creator cdmoe(doge::trt::make_cdmoe);
    static doge::trt::Creator fused_attention(doge::trt::make_fused_dynamic_mask_attention);
    static doge::trt::Creator fused_cdmoe(doge::trt::make_fused_cdmoe);
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&attention, &cdmoe, &fused_attention, &fused_cdmoe};
    count = sizeof creators / sizeof *creators;
    return creators;
}

DOGE_EXPORT void setLoggerFinder(void* finder) noexcept { doge::trt::set_logger_finder(finder); }

// The schema number of what this library stores in engines.
DOGE_EXPORT int32_t doge_plugin_abi_version() noexcept { return doge::trt::kSchemaNumber; }

// Of NVIDIA's headers, if it was built with them: 110100 is TensorRT 11.1.0. 0: with our own declarations (abi/), which
// every TensorRT from 10.9 on has alike.
DOGE_EXPORT int32_t doge_plugin_tensorrt_version() noexcept {
#ifdef DOGE_NVIDIA_HEADERS
    return static_cast<int32_t>(NV_TENSORRT_VERSION);
#else
    return 0;
#endif
}

// The GPUs that the kernels in this library are compiled for, as CMake names them ("80-real 90"); empty: no kernels.
DOGE_EXPORT const char* doge_architectures() noexcept { return DOGE_ARCHITECTURES; }

// core/fields_json.h's JSON; the library owns it.
DOGE_EXPORT const char* doge_plugin_fields() noexcept {
    return doge::trt::guarded("doge_plugin_fields", static_cast<const char*>(nullptr),
                              [] { return doge::trt::plugin_fields_json().c_str(); });
}
