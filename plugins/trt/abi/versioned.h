// The root of the interfaces: each tells its kind and version, by which TensorRT knows what to cast it to.
#pragma once

#include <cstdint>

namespace nvinfer1 {

struct InterfaceInfo {
    const char* kind;
    int32_t major, minor;
};

enum class APILanguage : int32_t { kCPP = 0, kPYTHON = 1 };

class IVersionedInterface {
public:
    virtual APILanguage getAPILanguage() const noexcept { return APILanguage::kCPP; }
    virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
    virtual ~IVersionedInterface() noexcept = default;
};

}  // namespace nvinfer1
