// Runs a grid of a kernel on one CPU thread, by interpreting its PTX.
//
// Lanes of a warp that stand at the same instruction execute it together; a warp goes on until all of its lanes wait or
// have ended. Which warp is next, and which block, is the schedule's choice; a correct kernel gives the same result
// under every schedule. Threads that wait for each other in vain (one has exited, or waits somewhere else) end the
// launch with a KernelError that tells who stands where, as does an access beyond shared memory or to memory that is
// not there. At the start of a block its shared memory is full of 0xFF bytes: NaN in every floating-point type.
#ifndef DOGE_EMULATION_GRID_H
#define DOGE_EMULATION_GRID_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "ptx.h"

namespace doge::emulation {

enum class Order {
    Forward,   // one block after the other; warp 0 gets as far as it can before warp 1 starts
    Reversed,  // the last block and the last warp first
    // Up to four blocks at the same time, in any order. Any warp, any part of its lanes, goes on for a while; others go
    // first at atomics and fences. Other blocks see a store only after a fence: see store_buffer.h. Asynchronous copies of
    // odd lanes read their source at once, others when they are waited for.
    Random
};

struct Schedule {
    Order order = Order::Forward;
    std::uint64_t seed = 1;
};

// The schedule of the launches that follow.
void set_schedule(Schedule schedule);

using Size = std::array<u32, 3>;

// One launch; arguments[n] points to parameter n. Throws KernelError, also for a launch that sm_89 would refuse.
void run_grid(const Kernel& kernel, Size grid, Size block, std::size_t shared_bytes, void* const* arguments);

// How often each kernel was launched.
const std::map<std::string, std::uint64_t>& launches();

}  // namespace doge::emulation
#endif
