// Registers the plugin beside it with the TensorRT of this process, simply by being opened. polygraphy --plugins and
// trtexec --staticPlugins open a library and look no further; libdoge_trt_plugin.so needs IPluginRegistry::loadLibrary.
//
// The plugin itself must not do this: a registry that is asked to load a library whose creators it has already unloads
// it again, and is left with creators that are gone. Linked with -z nodelete for the same reason.
#include <dlfcn.h>

#include <cstdio>
#include <string>

#include "host.h"

namespace {

using doge::abi::Generation;

void say(const std::string& what) { std::fprintf(stderr, "doge: autoload: %s\n", what.c_str()); }

// TensorRT's registry, if this process has it loaded already; nullptr otherwise.
void* registry_of(const std::string& library) {
    // RTLD_NOLOAD: finds what is there, loads nothing.
    void* handle = dlopen(library.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (handle == nullptr) {
        return nullptr;
    }
    const auto get = reinterpret_cast<void* (*)()>(dlsym(handle, "getPluginRegistry"));
    void* registry = get != nullptr ? get() : nullptr;
    dlclose(handle);
    return registry;
}

// The full TensorRT before the lean one, the newest first.
void* loaded_registry() {
    for (const char* library : {"libnvinfer.so.", "libnvinfer_lean.so."}) {
        for (int major = 19; major >= 10; --major) {
            if (void* registry = registry_of(library + std::to_string(major))) {
                return registry;
            }
        }
    }
    return registry_of("libtensorrt_rtx.so.1");
}

std::string plugin_path() {
    Dl_info self{};
    dladdr(reinterpret_cast<const void*>(&plugin_path), &self);
    const std::string path = self.dli_fname != nullptr ? self.dli_fname : "";
    const size_t slash = path.rfind('/');
    // The registry refuses a name without a folder.
    return (slash == std::string::npos ? "./" : path.substr(0, slash + 1)) + "libdoge_trt_plugin.so";
}

template <class Registry>
void load_into(void* found) {
    auto* registry = static_cast<Registry*>(found);
    if (registry->getCreator("DynamicMaskAttention", "1", "doge") == nullptr &&
        registry->loadLibrary(plugin_path().c_str()) == nullptr) {
        say("TensorRT did not load " + plugin_path());
    }
}

__attribute__((constructor)) void load_plugin() {
    try {
        void* registry = loaded_registry();
        const auto generation = registry != nullptr ? doge::abi::generation_of(registry) : std::nullopt;
        if (!generation) {
            say(std::string(registry == nullptr ? "no TensorRT" : "a TensorRT older than any we know") +
                " is loaded in this process, so the plugin is not registered");
        } else if (*generation == Generation::ten) {
            load_into<doge::abi::ten::Registry>(registry);
        } else {
            load_into<doge::abi::eleven::Registry>(registry);
        }
    } catch (const std::exception& error) {
        say(error.what());
    }
}

}  // namespace
