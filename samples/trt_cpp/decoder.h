// Greedy decoding of one row of tokens on an engine of `doge-export trt`.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "NvInfer.h"

namespace doge_sample {

// Device memory that the destructor frees.
class DeviceBuffer {
public:
    explicit DeviceBuffer(size_t bytes);
    ~DeviceBuffer() { cudaFree(data_); }
    DeviceBuffer(const DeviceBuffer&) = delete;
    DeviceBuffer& operator=(const DeviceBuffer&) = delete;
    void* data() const { return data_; }

private:
    void* data_ = nullptr;
};

class Logger final : public nvinfer1::ILogger {
    void log(Severity severity, const char* message) noexcept override;
};

class Decoder {
public:
    // Opens an engine; `plugin` is the path of libdoge_trt_plugin.so, empty for an engine without plugins.
    Decoder(const std::string& engine, const std::string& plugin);
    ~Decoder();

    // Number of tokens that a row holds, prompt and answer together.
    int32_t max_length() const { return max_length_; }

    // Appends tokens; returns the most probable next token.
    int32_t forward(const std::vector<int32_t>& tokens);

private:
    enum Profile { prefill, decode };

    void allocate();
    int32_t run(const std::vector<int32_t>& tokens);
    void bind(nvinfer1::IExecutionContext& context, int32_t new_tokens);
    void upload(const char* name, const std::vector<int32_t>& values);
    void download(const char* name, void* values, size_t bytes);

    // Destroyed in reverse order: contexts before their engine, the engine before its runtime.
    Logger logger_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> contexts_[2];
    std::map<std::string, std::shared_ptr<DeviceBuffer>> buffers_;
    cudaStream_t stream_ = nullptr;
    int32_t max_length_ = 0;
    size_t longest_ = 0;  // largest number of tokens that one run reads
    int32_t length_ = 0;
    int64_t candidates_ = 0;  // number of best tokens that a run returns, which is all that is copied to the host
};

}  // namespace doge_sample
