// One line about what went wrong, for the caller of the C interface.
#pragma once
#include <cstdarg>
#include <cstddef>
#include <cstdio>

#include "doge/cpu.h"
#if defined(__wasm__)
#include "small_format.h"
#endif

namespace doge::cpu {

struct Message {
    char* text;
    size_t bytes;

#if defined(__GNUC__)
    __attribute__((format(printf, 3, 4)))
#endif
    doge_cpu_status fail(doge_cpu_status status, const char* format, ...) const {
        if (text != nullptr && bytes > 0) {
            va_list arguments;
            va_start(arguments, format);
#if defined(__wasm__)
            format_small(text, bytes, format, arguments);
#else
            std::vsnprintf(text, bytes, format, arguments);
#endif
            va_end(arguments);
        }
        return status;
    }
};

}  // namespace doge::cpu
