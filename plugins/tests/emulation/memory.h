// Memory as a kernel meets it: what was not written is NaN, and what lies beyond the end faults.
#ifndef DOGE_EMULATION_MEMORY_H
#define DOGE_EMULATION_MEMORY_H

#include <sys/mman.h>

#include <cstddef>
#include <cstring>
#include <new>
#include <vector>

namespace doge::emulation {

// `count` elements, full of 0xFF bytes, aligned to `alignment` bytes (a power of two up to 4096); the page behind them
// may not be touched, so that reading or writing more than alignment - 1 bytes beyond the end ends the program.
template <class T>
class DeviceBuffer {
  public:
    explicit DeviceBuffer(std::size_t count, std::size_t alignment = 16) : count_(count) {
        const std::size_t bytes = (count * sizeof(T) + alignment - 1) / alignment * alignment;
        mapped_ = (bytes + page - 1) / page * page + page;
        void* memory = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        memory_ = static_cast<char*>(memory);
        mprotect(memory_ + mapped_ - page, page, PROT_NONE);
        data_ = reinterpret_cast<T*>(memory_ + mapped_ - page - bytes);
        poison();
    }
    explicit DeviceBuffer(const std::vector<T>& values) : DeviceBuffer(values.size()) {
        for (std::size_t i = 0; i < count_; ++i) data_[i] = values[i];
    }
    ~DeviceBuffer() { munmap(memory_, mapped_); }
    DeviceBuffer(const DeviceBuffer&) = delete;
    DeviceBuffer& operator=(const DeviceBuffer&) = delete;

    void poison() { std::memset(static_cast<void*>(memory_), 0xFF, mapped_ - page); }
    T* data() { return data_; }
    const T* data() const { return data_; }
    std::size_t size() const { return count_; }
    T& operator[](std::size_t i) { return data_[i]; }
    const T& operator[](std::size_t i) const { return data_[i]; }
    std::vector<T> host() const { return std::vector<T>(data_, data_ + count_); }

  private:
    static constexpr std::size_t page = 4096;
    std::size_t count_, mapped_;
    char* memory_;
    T* data_;
};

}  // namespace doge::emulation
#endif
