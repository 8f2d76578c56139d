// Keeps exceptions inside the library: memory may run out anywhere in it.
#pragma once
#include "message.h"

#if defined(__cpp_exceptions)
#include <exception>
#include <new>
#endif

namespace doge::cpu {

template <class Function>
doge_cpu_status guarded(const Message& message, Function function) {
#if defined(__cpp_exceptions)
    try {
        return function();
    } catch (const std::bad_alloc&) {
        return message.fail(DOGE_CPU_NO_MEMORY, "memory has run out");
    } catch (const std::exception& error) {  // threads that the system does not give
        return message.fail(DOGE_CPU_NO_MEMORY, "%s", error.what());
    }
#else
    return function();
#endif
}

}  // namespace doge::cpu
