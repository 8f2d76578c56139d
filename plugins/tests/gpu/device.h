// Device memory with a guard behind it, and CUDA's errors as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace doge::testing {

inline void succeed(cudaError_t status, const char* what) {
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
    }
}
#define SUCCEED(call) doge::testing::succeed(call, #call)

using Bytes = std::vector<uint8_t>;

// A copy of host bytes on the device. What lies behind it must not be written.
class DeviceBytes {
public:
    explicit DeviceBytes(const Bytes& host) : size_(host.size()) {
        SUCCEED(cudaMalloc(&memory_, size_ + kGuard));
        SUCCEED(cudaMemcpy(memory_, host.data(), size_, cudaMemcpyHostToDevice));
        SUCCEED(cudaMemset(static_cast<uint8_t*>(memory_) + size_, kPattern, kGuard));
    }
    ~DeviceBytes() { cudaFree(memory_); }
    DeviceBytes(const DeviceBytes&) = delete;
    DeviceBytes& operator=(const DeviceBytes&) = delete;

    template <class T>
    T* as() const {
        return static_cast<T*>(memory_);
    }

    // The bytes again; throws where the guard was written.
    Bytes host() const {
        Bytes bytes(size_ + kGuard);
        SUCCEED(cudaMemcpy(bytes.data(), memory_, bytes.size(), cudaMemcpyDeviceToHost));
        for (size_t i = size_; i < bytes.size(); ++i) {
            if (bytes[i] != kPattern) {
                throw std::runtime_error("something was written behind a tensor");
            }
        }
        bytes.resize(size_);
        return bytes;
    }

private:
    static constexpr size_t kGuard = 256;
    static constexpr uint8_t kPattern = 0x5A;
    size_t size_;
    void* memory_ = nullptr;
};

}  // namespace doge::testing
