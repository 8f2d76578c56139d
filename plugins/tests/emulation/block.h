// One block of a grid: its threads (fibers), what each waits for, its barriers, its shared memory.
#ifndef DOGE_EMULATION_BLOCK_H
#define DOGE_EMULATION_BLOCK_H

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "scheduler.h"
#include "vector_types.h"

namespace doge::emulation {

constexpr unsigned max_threads = 1024;

// "(1, 2, 3)"
std::string place(const uint3& index);
// "cdmoe.cuh:12"
std::string place(Site site);

struct AsyncCopy {
    void* shared;
    const void* global;
    unsigned bytes, source_bytes;
};

struct Thread {
    enum class State { Runnable, AtBarrier, InCollective, Exited };
    Fiber fiber;
    uint3 index{};
    State state = State::Exited;
    // What it waits for.
    const char* name = "";
    Site site{};
    unsigned mask = 0;
    void* data = nullptr;
    int barrier_result = 0;
    std::vector<std::vector<AsyncCopy>> async_groups;  // the last one is not committed yet

    bool waits_at(const char* other_name, Site other) const;
};

struct Barrier {
    std::vector<unsigned> arrived;
    int predicates = 0;
};

// Memory that ends where a page that faults begins.
class SharedMemory {
  public:
    explicit SharedMemory(std::size_t bytes);
    ~SharedMemory();
    SharedMemory(const SharedMemory&) = delete;
    SharedMemory& operator=(const SharedMemory&) = delete;
    char* data() const { return memory_ + mapped_ - page_ - bytes_; }
    void poison();

  private:
    std::size_t page_, bytes_, mapped_;
    char* memory_;
};

class Block {
  public:
    // Makes its `count` threads ready to call entry().
    void start(uint3 index, dim3 size, SharedMemory* memory, void (*entry)());

    // A runnable thread, or -1. random: any number, for Order::Random.
    int choose(Order order, std::uint64_t random) const;
    void make_runnable(unsigned thread);
    // From within fiber `thread`: it goes on when it is runnable and chosen again.
    void wait(unsigned thread, Thread::State state);

    bool finished() const;
    // Who stands where, when nobody can go on.
    std::string stand_still() const;

    uint3 index{};
    unsigned count = 0;
    std::vector<std::unique_ptr<Thread>> threads;        // at least count; kept for their stacks
    std::uint32_t in_collective[max_threads / 32] = {};  // by warp: the lanes that wait in one
    Barrier barriers[16];
    SharedMemory* shared = nullptr;

  private:
    std::uint64_t runnable_[max_threads / 64] = {};
};

}  // namespace doge::emulation
#endif
