// What nvcc's host code asks of CUDA's runtime, answered by the emulator: the objects that it made for the GPU are
// linked to this instead, and a launch interprets the PTX that lies in them.
#include "cudart.h"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "grid.h"

namespace doge::emulation {
namespace {

struct Registry {
    std::vector<std::unique_ptr<Module>> modules;  // the last that has a kernel counts
    std::map<const void*, std::string> kernels;    // by the address of the host's function

    Module* holder(const std::string& kernel) {
        for (auto module = modules.rbegin(); module != modules.rend(); ++module) {
            if ((*module)->has(kernel)) return module->get();
        }
        return nullptr;
    }
};

Registry& registry() {  // used by constructors of objects, so made when it is first asked for
    static Registry* all = new Registry;
    return *all;
}

std::string last_error, answer;

// A fat binary as nvcc registers it. With --no-compress the PTX in it is plain text; that of other GPUs may be there too.
struct FatBinary {
    int magic, version;
    const char* data;
    const void* file;
};
struct FatHeader {
    std::uint32_t magic;
    std::uint16_t version, bytes;
    std::uint64_t following;
};

std::string ptx_of(const FatBinary& binary) {
    FatHeader header;
    std::memcpy(&header, binary.data, sizeof header);
    const char *end = binary.data + header.bytes + header.following, *begin = binary.data;
    constexpr char kStart[] = ".version ", kTarget[] = ".target sm_89";
    while ((begin = static_cast<const char*>(memmem(begin, end - begin, kStart, sizeof kStart - 1)))) {
        const char* line = static_cast<const char*>(std::memchr(begin, '\n', end - begin));
        if (line && end - line > int{sizeof kTarget} && !std::memcmp(line + 1, kTarget, sizeof kTarget - 1)) return begin;
        begin += sizeof kStart - 1;
    }
    return "";
}

}  // namespace
}  // namespace doge::emulation

using namespace doge::emulation;

extern "C" {

// --- called by what nvcc writes around kernels ---

void** __cudaRegisterFatBinary(void* binary) {
    registry().modules.push_back(std::make_unique<Module>(ptx_of(*static_cast<FatBinary*>(binary))));
    return nullptr;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
    registry().kernels[host] = name;
}
cudaError_t __cudaGetKernel(void*, const void*) { return cudaErrorNotSupported; }  // for <<<...>>>, which nobody uses
cudaError_t __cudaLaunchKernel(void*, dim3, dim3, void**, std::size_t, cudaStream_t) { return cudaErrorNotSupported; }
unsigned __cudaPushCallConfiguration(dim3, dim3, std::size_t, cudaStream_t) { return cudaErrorNotSupported; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, std::size_t*, void*) { return cudaErrorNotSupported; }

// --- called by ours ---

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount:
            *value = 8;
            return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = 100 * 1024;
            return cudaSuccess;
        default:
            return cudaErrorInvalidValue;
    }
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
    try {
        const std::string& name = registry().kernels.at(function);
        Module* module = registry().holder(name);
        if (!module) throw KernelError(name + ": there is no PTX of it");
        run_grid(module->kernel(name), {config->gridDim.x, config->gridDim.y, config->gridDim.z},
                 {config->blockDim.x, config->blockDim.y, config->blockDim.z}, config->dynamicSmemBytes, arguments);
        return cudaSuccess;
    } catch (const std::exception& error) {
        last_error = error.what();
        std::fprintf(stderr, "emulated launch: %s\n", error.what());
        return cudaErrorLaunchFailure;
    }
}

const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : "see doge_emulation_error";
}

// --- cudart.h ---

void doge_emulation_schedule(int order, std::uint64_t seed) { set_schedule({static_cast<Order>(order), seed}); }

void doge_emulation_load(const char* ptx) { registry().modules.push_back(std::make_unique<Module>(ptx)); }
void doge_emulation_unload() { registry().modules.pop_back(); }

const char* doge_emulation_ptx(const char* part) {
    for (const auto& module : registry().modules) {
        for (const std::string& name : module->names()) {
            if (name.find(part) != std::string::npos) return module->text().c_str();
        }
    }
    return nullptr;
}

const char* doge_emulation_launches() {
    answer.clear();
    for (const auto& [host, name] : registry().kernels) {
        const auto found = launches().find(name);
        answer += name + " " + std::to_string(found == launches().end() ? 0 : found->second) + "\n";
    }
    return answer.c_str();
}

const char* doge_emulation_error() { return last_error.c_str(); }
}
