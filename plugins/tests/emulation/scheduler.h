// Runs a CUDA grid on one CPU thread: every CUDA thread is a fiber, blocks run one after the other or take turns.
//
// A fiber runs until it must wait for others (a barrier or a warp collective) or ends. Which fiber is next, and which
// block, is the schedule's choice; a correct kernel gives the same result under every schedule. Threads that wait for
// each other in vain (one has exited, or waits somewhere else) end the launch with a KernelError that tells who stands
// where. At the start of a block its dynamic shared memory is full of 0xFF bytes: NaN in every floating-point type.
#ifndef DOGE_EMULATION_SCHEDULER_H
#define DOGE_EMULATION_SCHEDULER_H

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>

#include "vector_types.h"

namespace doge::emulation {

struct KernelError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A place in the kernel's source, taken where the function with this default argument is called.
struct Site {
    const char* file;
    int line;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

enum class Order {
    Forward,   // always the lowest runnable thread: warp 0 gets as far as it can before warp 1 starts
    Reversed,  // always the highest; last block first
    Random     // any thread of up to four blocks, started in any order; threads give way at atomics and fences too
};

struct Schedule {
    Order order = Order::Forward;
    std::uint64_t seed = 1;
};

// The schedule of the launches that follow.
void set_schedule(Schedule schedule);

// One launch. thread_body is called once per thread of the grid, with threadIdx, blockIdx, blockDim, gridDim set.
// Throws KernelError for a launch that a GPU would refuse (sm_89 limits) and for misuse of barriers.
void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& thread_body);

// --- called from within kernels ---

// Shared memory of the block, as large as the launch asked for; the byte after it faults.
void* dynamic_shared();

// Waits until `threads` threads have come to barrier `id` (0..15), all at the same site. Returns how many came with a
// true predicate. threads = 0: all of the block.
int block_barrier(const char* name, int id, unsigned threads, bool predicate, Site site);

// Waits until every lane of mask has come to the same collective. The last one calls complete(context, lanes), where
// lanes[i] is the data pointer of lane i, null outside mask.
using Complete = void (*)(void* context, void* const* lanes);
void warp_rendezvous(const char* name, unsigned mask, void* data, Complete complete, void* context, Site site);

// A warp-level instruction: body(lanes) runs once, when all lanes of mask are here; lanes[i] points to lane i's data
// (null outside mask), and what body writes there each lane finds in its own `data`. This is how mma.sync or ldmatrix
// are written for the emulator.
template <class LaneData, class Body>
void warp_collective(const char* name, unsigned mask, LaneData& data, Body body, Site site = Site::here()) {
    warp_rendezvous(
        name, mask, &data,
        [](void* context, void* const* lanes) {
            LaneData* typed[32];
            for (int lane = 0; lane < 32; ++lane) typed[lane] = static_cast<LaneData*>(lanes[lane]);
            (*static_cast<Body*>(context))(typed);
        },
        &body, site);
}

// Lets other threads go first under Order::Random.
void maybe_yield();

// cp.async: the bytes arrive only when the thread waits for their group, so that a forgotten wait is seen. bytes is 4,
// 8 or 16; of them the first source_bytes are copied, the rest becomes zero.
void async_copy(void* shared, const void* global, unsigned bytes, unsigned source_bytes);
void async_commit();
void async_wait(unsigned groups_left);  // cp.async.wait_group N: all committed groups but the last N have arrived

}  // namespace doge::emulation
#endif
