// Registers the plugin beside it with the TensorRT of this process, simply by being opened. polygraphy --plugins and
// trtexec --staticPlugins open a library and look no further; libdoge_trt_plugin.so needs IPluginRegistry::loadLibrary.
//
// The plugin itself must not do this: a registry that is asked to load a library whose creators it has already unloads
// it again, and is left with creators that are gone. Linked with -z nodelete for the same reason.
#include <dlfcn.h>

#include <cstdio>
#include <string>

#include "NvInferRuntime.h"

namespace {

using GetPluginRegistry = nvinfer1::IPluginRegistry* (*)();

// TensorRT's registry, if this process has it loaded already: the full one before the lean one.
nvinfer1::IPluginRegistry* loaded_registry(const std::string& major) {
    for (const char* library : {"libnvinfer.so.", "libnvinfer_lean.so."}) {
        // RTLD_NOLOAD: finds what is there, loads nothing.
        void* handle = dlopen((library + major).c_str(), RTLD_LAZY | RTLD_NOLOAD);
        if (handle == nullptr) {
            continue;
        }
        const auto get = reinterpret_cast<GetPluginRegistry>(dlsym(handle, "getPluginRegistry"));
        nvinfer1::IPluginRegistry* registry = get != nullptr ? get() : nullptr;
        dlclose(handle);
        if (registry != nullptr) {
            return registry;
        }
    }
    return nullptr;
}

std::string plugin_path() {
    Dl_info self{};
    dladdr(reinterpret_cast<const void*>(&plugin_path), &self);
    const std::string path = self.dli_fname != nullptr ? self.dli_fname : "";
    const size_t slash = path.rfind('/');
    // The registry refuses a name without a folder.
    return (slash == std::string::npos ? "./" : path.substr(0, slash + 1)) + "libdoge_trt_plugin.so";
}

void say(const std::string& what) { std::fprintf(stderr, "doge: autoload: %s\n", what.c_str()); }

__attribute__((constructor)) void load_plugin() {
    try {
        nvinfer1::IPluginRegistry* registry = loaded_registry(std::to_string(NV_TENSORRT_MAJOR));
        if (registry == nullptr) {
            say("no TensorRT " + std::to_string(NV_TENSORRT_MAJOR) +
                " is loaded in this process, so the plugin is not registered");
        } else if (registry->getCreator("DynamicMaskAttention", "1", "doge") == nullptr &&
                   registry->loadLibrary(plugin_path().c_str()) == nullptr) {
            say("TensorRT did not load " + plugin_path());
        }
    } catch (const std::exception& error) {
        say(error.what());
    }
}

}  // namespace
