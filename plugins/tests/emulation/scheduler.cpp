#include "scheduler.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "block.h"
#include "device.h"

namespace doge::emulation {
namespace {

constexpr std::size_t max_shared_bytes = 99 * 1024;  // sm_86 and sm_89; the least of our targets
constexpr std::size_t max_residents = 4;             // blocks that take turns under Order::Random

struct Scheduler {
    Schedule schedule;
    std::uint64_t random_state = 1;
    std::vector<std::unique_ptr<Block>> blocks;  // kept from launch to launch, for their threads' stacks
    Block* block = nullptr;                      // the one that runs
    unsigned current = 0;                        // its thread that runs
    const std::function<void()>* body = nullptr;
    std::exception_ptr failure;

    std::uint64_t random() {  // xorshift64*
        random_state ^= random_state >> 12;
        random_state ^= random_state << 25;
        random_state ^= random_state >> 27;
        return random_state * 0x2545F4914F6CDD1DULL;
    }

    Thread& thread() { return *block->threads[current]; }
    void wait(Thread::State state) { block->wait(current, state); }

    // Lets a thread of the block run until it waits or ends; false if none can.
    bool step(Block& chosen) {
        const int next = chosen.choose(schedule.order, schedule.order == Order::Random ? random() : 0);
        if (next < 0) return false;
        block = &chosen;
        current = static_cast<unsigned>(next);
        blockIdx = chosen.index;
        threadIdx = thread().index;
        thread().fiber.resume();
        if (failure) std::rethrow_exception(failure);
        return true;
    }
};

Scheduler scheduler;

[[noreturn]] void fail(const std::string& message) {
    throw KernelError("block " + place(blockIdx) + ": thread " + place(threadIdx) + ": " + message);
}

void fiber_entry() {
    try {
        (*scheduler.body)();
    } catch (...) {
        scheduler.failure = std::current_exception();
    }
    scheduler.wait(Thread::State::Exited);
    __builtin_unreachable();
}

void check_launch(dim3 grid, dim3 block, std::size_t shared_bytes) {
    const auto threads = std::uint64_t{block.x} * block.y * block.z;
    if (threads == 0 || threads > max_threads || block.z > 64) {
        throw KernelError("launch with " + std::to_string(threads) + " threads a block; 1 to 1024 are possible");
    }
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535) {
        throw KernelError("launch with a grid of " + place({grid.x, grid.y, grid.z}) +
                          "; 1 to (2^31-1, 65535, 65535) is possible");
    }
    if (shared_bytes > max_shared_bytes) {
        throw KernelError("launch with " + std::to_string(shared_bytes) + " bytes of shared memory; sm_89 has 101376");
    }
}

// The blocks of a grid in the order of the schedule.
std::vector<std::uint64_t> block_order(dim3 grid) {
    std::vector<std::uint64_t> order(std::uint64_t{grid.x} * grid.y * grid.z);
    std::iota(order.begin(), order.end(), 0);
    if (scheduler.schedule.order == Order::Reversed) std::reverse(order.begin(), order.end());
    if (scheduler.schedule.order == Order::Random) {
        for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[scheduler.random() % i]);
    }
    return order;
}

}  // namespace

void set_schedule(Schedule schedule) {
    scheduler.schedule = schedule;
    scheduler.random_state = schedule.seed * 0x9E3779B97F4A7C15ULL | 1;
}

void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& thread_body) {
    check_launch(grid, block, shared_bytes);
    scheduler.body = &thread_body;
    scheduler.failure = nullptr;
    gridDim = grid;
    blockDim = block;

    const std::vector<std::uint64_t> order = block_order(grid);
    std::size_t started = 0;
    std::vector<std::unique_ptr<SharedMemory>> memories;
    const auto start_next = [&](Block& resident, SharedMemory* memory) {
        const std::uint64_t index = order[started++];
        resident.start({static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
                        static_cast<unsigned>(index / grid.x / grid.y)},
                       block, memory, fiber_entry);
    };
    std::vector<Block*> residents;
    const std::size_t at_once = scheduler.schedule.order == Order::Random ? std::min(max_residents, order.size()) : 1;
    while (scheduler.blocks.size() < at_once) scheduler.blocks.push_back(std::make_unique<Block>());
    for (std::size_t i = 0; i < at_once; ++i) {
        memories.push_back(std::make_unique<SharedMemory>(shared_bytes));
        residents.push_back(scheduler.blocks[i].get());
        start_next(*residents[i], memories[i].get());
    }
    std::size_t chosen = 0;
    int steps_left = 0;  // that the chosen block may still go alone: 1 to 512, so that some get far ahead of others
    while (!residents.empty()) {
        if (residents.size() > 1 && steps_left-- == 0) {
            chosen = scheduler.random() % residents.size();
            steps_left = 1 << scheduler.random() % 10;
        }
        Block& resident = *residents[chosen];
        if (scheduler.step(resident)) continue;
        if (!resident.finished()) throw KernelError(resident.stand_still());
        if (started < order.size()) {
            start_next(resident, resident.shared);
        } else {
            residents.erase(residents.begin() + static_cast<std::ptrdiff_t>(chosen));
            chosen = 0;
        }
    }
}

void* dynamic_shared() { return scheduler.block->shared->data(); }

int block_barrier(const char* name, int id, unsigned threads, bool predicate, Site site) {
    Block& block = *scheduler.block;
    Thread& self = scheduler.thread();
    if (threads == 0) threads = block.count;
    Barrier& barrier = block.barriers[id];
    if (!barrier.arrived.empty()) {
        const Thread& other = *block.threads[barrier.arrived[0]];
        if (!other.waits_at(name, site)) {
            fail(std::string(name) + " at " + place(site) + " while thread " + place(other.index) + " waits in " +
                 other.name + " at " + place(other.site));
        }
    }
    barrier.predicates += predicate;
    if (barrier.arrived.size() + 1 == threads) {
        for (unsigned other : barrier.arrived) {
            block.threads[other]->barrier_result = barrier.predicates;
            block.make_runnable(other);
        }
        const int result = barrier.predicates;
        barrier.arrived.clear();
        barrier.predicates = 0;
        return result;
    }
    self.name = name;
    self.site = site;
    barrier.arrived.push_back(scheduler.current);
    scheduler.wait(Thread::State::AtBarrier);
    return self.barrier_result;
}

void warp_rendezvous(const char* name, unsigned mask, void* data, Complete complete, void* context, Site site) {
    Block& block = *scheduler.block;
    Thread& self = scheduler.thread();
    const unsigned first = scheduler.current / 32 * 32;
    const unsigned lane = scheduler.current % 32;
    if (!(mask >> lane & 1))
        fail(std::string(name) + " at " + place(site) + " with a mask that lacks the calling lane");
    if (block.count - first < 32 && mask >> (block.count - first) != 0) {
        fail(std::string(name) + " at " + place(site) + " names lanes beyond the block");
    }
    const unsigned others = mask & ~(1u << lane);
    bool all_here = (block.in_collective[first / 32] & others) == others;
    void* lanes[32] = {};
    lanes[lane] = data;
    for (unsigned rest = others; all_here && rest != 0; rest &= rest - 1) {
        const auto other = static_cast<unsigned>(__builtin_ctz(rest));
        const Thread& thread = *block.threads[first + other];
        all_here = thread.mask == mask && thread.waits_at(name, site);
        lanes[other] = thread.data;
    }
    if (all_here) {
        complete(context, lanes);
        for (unsigned rest = others; rest != 0; rest &= rest - 1) {
            block.make_runnable(first + static_cast<unsigned>(__builtin_ctz(rest)));
        }
        return;
    }
    self.name = name;
    self.site = site;
    self.mask = mask;
    self.data = data;
    scheduler.wait(Thread::State::InCollective);
}

void maybe_yield() {
    if (scheduler.schedule.order == Order::Random) scheduler.thread().fiber.suspend();
}

void async_copy(void* shared, const void* global, unsigned bytes, unsigned source_bytes) {
    const auto misaligned = [bytes](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % bytes != 0; };
    if ((bytes != 4 && bytes != 8 && bytes != 16) || misaligned(shared) || misaligned(global) || source_bytes > bytes) {
        fail("cp.async of " + std::to_string(bytes) + " bytes, misaligned or of a wrong size");
    }
    scheduler.thread().async_groups.back().push_back({shared, global, bytes, source_bytes});
}

void async_commit() { scheduler.thread().async_groups.emplace_back(); }

void async_wait(unsigned groups_left) {
    auto& groups = scheduler.thread().async_groups;
    while (groups.size() > groups_left + 1) {
        for (const AsyncCopy& copy : groups.front()) {
            std::memcpy(copy.shared, copy.global, copy.source_bytes);
            std::memset(static_cast<char*>(copy.shared) + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
        }
        groups.erase(groups.begin());
    }
}

}  // namespace doge::emulation
