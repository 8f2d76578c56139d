// Aligned memory that begins as zeros.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#include "layout.h"

namespace doge::cpu {

[[noreturn]] inline void run_out() {
#if defined(__cpp_exceptions)
    throw std::bad_alloc();
#else
    std::abort();
#endif
}

class Memory {
   public:
    Memory() = default;
    // calloc, because the system then gives pages when they are first touched.
    explicit Memory(size_t bytes) : raw_(std::calloc(bytes + ALIGN, 1)), bytes_(bytes) {
        if (raw_ == nullptr) run_out();
    }
    ~Memory() { std::free(raw_); }
    Memory(Memory&& other) noexcept { swap(other); }
    Memory& operator=(Memory&& other) noexcept {
        swap(other);
        return *this;
    }
    void swap(Memory& other) noexcept {
        std::swap(raw_, other.raw_);
        std::swap(bytes_, other.bytes_);
    }

    uint8_t* data() const {
        return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw_) + ALIGN - 1) / ALIGN * ALIGN);
    }
    size_t bytes() const { return bytes_; }

   private:
    void* raw_ = nullptr;
    size_t bytes_ = 0;
};

// Memory that grows when more is needed, and then forgets what it held.
template <class T>
class Buffer {
   public:
    T* need(size_t count) {
        if (count * sizeof(T) > memory_.bytes()) memory_ = Memory(count * sizeof(T));
        return data();
    }
    T* data() const { return reinterpret_cast<T*>(memory_.data()); }

   private:
    Memory memory_;
};

}  // namespace doge::cpu
