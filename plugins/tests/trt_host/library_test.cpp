// The library itself: what it exports, that it runs without TensorRT, and what it says where there is no GPU.
#include "library.h"
#include "check.h"
#include "doge/operators.h"
#include "fields_json.h"
#include "node_run.h"

using namespace doge::testing;
using namespace doge::trt;

namespace {

Logger logger;

void exports(const PluginLibrary& library) {
    int32_t count = 0;
    CHECK(library.get<nvinfer1::IPluginCreatorInterface* const*(int32_t&)>("getCreators")(count) != nullptr);
    CHECK_EQUAL(count, 4);
    CHECK_EQUAL(library.get<int32_t()>("doge_plugin_abi_version")(), kSchemaNumber);
#ifdef DOGE_NVIDIA_HEADERS
    CHECK_EQUAL(library.get<int32_t()>("doge_plugin_tensorrt_version")(), static_cast<int32_t>(NV_TENSORRT_VERSION));
#else
    CHECK_EQUAL(library.get<int32_t()>("doge_plugin_tensorrt_version")(), 0);
#endif
    CHECK_EQUAL(library.get<const char*()>("doge_plugin_fields")(), plugin_fields_json());
    // Ours to call inside, nobody else's business.
    CHECK(library.find<void()>("doge_attention") == nullptr);
    CHECK(library.find<void()>("doge_status_message") == nullptr);
}

void refuses(const PluginLibrary& library) {
    CHECK(!create(library.creator("CDMoE"), {}));
    CHECK_EQUAL(logger.taken(), "doge: CDMoE 'layer': num_experts_per_tok is missing; 1 or more expected");
}

// Without kernels, or with them and without a GPU: a status and one line, no crash.
void runs_without_gpu(const PluginLibrary& library) {
    if (dlopen("libcuda.so.1", RTLD_LAZY) != nullptr) {
        std::printf("not checked here, for there is a GPU driver: what a run without GPU says\n");
        return;
    }
    for (const Example& example : {attention_example("decode", Type::float16, {}, 1),
                                   cdmoe_example("experts", Type::float16, {1, 1, 256, 1, 16, 256}, 2),
                                   fused_attention_example("fused decode", Type::float16, {}, 3)}) {
        Host host;
        NodeRun run(library.creator(example.node), example, host, false);
        CHECK_EQUAL(run.shape_change(), 0);
        const int32_t status = run.enqueue();
        CHECK(status != 0);
        CHECK_EQUAL(logger.taken(), "doge: " + example.node + " 'engine': " + doge_status_message(status));
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) {
        std::printf("usage: %s libdoge_trt_plugin.so\n", arguments[0]);
        return 2;
    }
    const PluginLibrary library(arguments[1]);
    LoggerFinder finder(&logger);
    library.set_logger_finder(&finder);
    exports(library);
    refuses(library);
    runs_without_gpu(library);
    library.set_logger_finder(nullptr);
    return outcome();
}
