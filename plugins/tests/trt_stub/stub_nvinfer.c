/* Stands in for libnvinfer, libnvinfer_plugin and libnvonnxparser where these are not installed (gigabytes, and of no
 * use without a GPU), so that TensorRT's Python bindings can be imported: their enums, classes and signatures are the
 * real ones. Nothing can be made: every factory gives NULL, which the bindings raise as TypeError. The registry of
 * plugins is that of the lean runtime, if it is loaded.
 *
 * Compiled once for each of the three, with its soname; see tests/tensorrt_on_cpu.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT void* createInferBuilder_INTERNAL(void* logger, int32_t version) { return (void)logger, (void)version, NULL; }
EXPORT void* createInferRuntime_INTERNAL(void* logger, int32_t version) { return (void)logger, (void)version, NULL; }
EXPORT void* createInferRefitter_INTERNAL(void* engine, void* logger, int32_t version) {
    return (void)engine, (void)logger, (void)version, NULL;
}
EXPORT void* createNvOnnxParser_INTERNAL(void* network, void* logger, int32_t version) {
    return (void)network, (void)logger, (void)version, NULL;
}
EXPORT void* createNvOnnxParserRefitter_INTERNAL(void* refitter, void* logger, int32_t version) {
    return (void)refitter, (void)logger, (void)version, NULL;
}
EXPORT void* getBuilderPluginRegistry(int32_t capability) { return (void)capability, NULL; }
EXPORT int32_t getNvOnnxParserVersion(void) { return 0; }
EXPORT _Bool initLibNvInferPlugins(void* logger, const char* namespace_) { return (void)logger, (void)namespace_, 1; }

EXPORT void* getPluginRegistry(void) {
    void* lean = dlopen("libnvinfer_lean.so." DOGE_TENSORRT_MAJOR, RTLD_LAZY | RTLD_NOLOAD);
    void* (*get)(void) = lean == NULL ? NULL : (void* (*)(void))dlsym(lean, "getPluginRegistry");
    return get == NULL ? NULL : get();
}
