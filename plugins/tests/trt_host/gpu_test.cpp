// enqueue of the real library on a GPU: device pointers in, numbers of the reference out; in place and not, by itself
// and from a captured graph whose lengths change between replays.
#include <cuda_runtime_api.h>

#include "check.h"
#include "library.h"
#include "node_run.h"

using namespace doge::testing;

namespace {

void succeed(cudaError_t status, const char* what) {
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
    }
}
#define SUCCEED(call) succeed(call, #call)

class Gpu final : public Device {
public:
    Gpu() { SUCCEED(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
    ~Gpu() override {
        for (void* memory : memories_) {
            cudaFree(memory);
        }
        cudaStreamDestroy(stream_);
    }
    Gpu(const Gpu&) = delete;

    void* allocate(size_t bytes) override {
        void* memory = nullptr;
        SUCCEED(cudaMalloc(&memory, bytes));
        memories_.push_back(memory);
        return memory;
    }
    void upload(void* to, const Memory& from) override {
        SUCCEED(cudaMemcpyAsync(to, from.data(), from.size(), cudaMemcpyHostToDevice, stream_));
        SUCCEED(cudaStreamSynchronize(stream_));
    }
    void download(Memory& to, const void* from) override {
        SUCCEED(cudaMemcpyAsync(to.data(), from, to.size(), cudaMemcpyDeviceToHost, stream_));
        SUCCEED(cudaStreamSynchronize(stream_));
    }
    cudaStream_t stream() override { return stream_; }

private:
    cudaStream_t stream_ = nullptr;
    std::vector<void*> memories_;
};

cudaGraphExec_t captured(NodeRun& run, Gpu& gpu) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    SUCCEED(cudaStreamBeginCapture(gpu.stream(), cudaStreamCaptureModeGlobal));
    CHECK_EQUAL(run.enqueue(), 0);
    SUCCEED(cudaStreamEndCapture(gpu.stream(), &graph));
    SUCCEED(cudaGraphInstantiate(&executable, graph, 0));
    SUCCEED(cudaGraphDestroy(graph));
    return executable;
}

void check_example(const PluginLibrary& library, Example example, bool in_place) {
    Gpu gpu;
    NodeRun run(library.creator(example.node), example, gpu, in_place);
    const std::string where = in_place ? "in place" : "apart";
    CHECK_EQUAL(run.shape_change(), 0);
    CHECK_EQUAL(run.enqueue(), 0);
    check_outputs(example, run.outputs(), where);

    cudaGraphExec_t graph = captured(run, gpu);
    std::vector<std::vector<int32_t>> lengths = {{}};
    if (example.is_attention() && !example.is_bounded()) {
        lengths = {{0, 40, 85}, {1, 7, 64}, {85, 0, 33}};
    }
    for (const std::vector<int32_t>& past : lengths) {
        if (!past.empty()) {
            set_past_lengths(example, past);
        }
        run.upload(example);
        SUCCEED(cudaGraphLaunch(graph, gpu.stream()));
        check_outputs(example, run.outputs(), where + ", replayed");
    }
    SUCCEED(cudaGraphExecDestroy(graph));
}

int skipped(const std::string& reason) {
    std::printf("skipped: %s\n", reason.c_str());
    return 77;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) {
        std::printf("usage: %s libdoge_trt_plugin.so\n", arguments[0]);
        return 2;
    }
    int devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status != cudaSuccess || devices == 0) {
        return skipped(std::string("no GPU: ") + cudaGetErrorString(status));
    }
    const PluginLibrary library(arguments[1]);
    for (const Example& example : all_examples()) {
        check_example(library, example, false);
        check_example(library, example, true);
    }
    return outcome();
}
