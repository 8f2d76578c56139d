#include "message.h"

#include <cstdarg>
#include <cstdio>

namespace doge {

const char* message(const char* format, ...) {
    thread_local char line[256];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    return line;
}

}  // namespace doge
