#include "host.h"

#include <dlfcn.h>

namespace doge::abi {

std::optional<Generation> generation_of_version(int32_t version) {
    constexpr int32_t kFirstRtx = 10700, kFirstTen = 100000, kFirstEleven = 110000;
    if (version >= kFirstEleven || (version >= kFirstRtx && version < 20000)) {
        return Generation::eleven;
    }
    if (version >= kFirstTen) {
        return Generation::ten;
    }
    return std::nullopt;
}

std::optional<Generation> generation_of(const void* object) {
    Dl_info holder{};
    const void* functions = *static_cast<const void* const*>(object);
    if (dladdr(functions, &holder) == 0) {
        return std::nullopt;
    }
    // RTLD_NOLOAD: finds what is there. A TensorRT that is linked into the program is found in the program.
    void* library = dlopen(holder.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) {
        library = dlopen(nullptr, RTLD_LAZY);
    }
    const auto version = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibVersion"));
    const std::optional<Generation> generation = version != nullptr ? generation_of_version(version()) : std::nullopt;
    dlclose(library);
    return generation;
}

}  // namespace doge::abi
