// libdoge_trt_plugin.so as TensorRT opens it.
#pragma once

#include <dlfcn.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "tensorrt.h"

namespace doge::testing {

class PluginLibrary {
public:
    explicit PluginLibrary(const char* path) : handle_(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
        if (handle_ == nullptr) {
            throw std::runtime_error(dlerror());
        }
    }
    PluginLibrary(const PluginLibrary&) = delete;

    // nullptr where the library exports no such name.
    template <class Function>
    Function* find(const char* name) const {
        return reinterpret_cast<Function*>(dlsym(handle_, name));
    }

    template <class Function>
    Function& get(const char* name) const {
        Function* function = find<Function>(name);
        if (function == nullptr) {
            throw std::runtime_error(std::string("the library exports no ") + name);
        }
        return *function;
    }

    void set_logger_finder(void* finder) const { get<void(void*)>("setLoggerFinder")(finder); }

    nvinfer1::IPluginCreatorV3One& creator(const std::string& name) const {
        int32_t count = 0;
        auto* const* creators = get<nvinfer1::IPluginCreatorInterface* const*(int32_t&)>("getCreators")(count);
        for (int32_t index = 0; index < count; ++index) {
            auto* creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[index]);
            if (name == creator->getPluginName()) {
                return *creator;
            }
        }
        throw std::runtime_error("the library has no creator of " + name);
    }

private:
    void* handle_;
};

}  // namespace doge::testing
