// A warp at work: its registers, where each lane stands, and what an instruction's handler may ask for.
#ifndef DOGE_EMULATION_WARP_H
#define DOGE_EMULATION_WARP_H

#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "ptx.h"
#include "store_buffer.h"

namespace doge::emulation {

struct AsyncCopy {
    char* shared;
    const char* global;
    u32 bytes, source_bytes;
    bool is_early;  // the source is read already: `early`
    char early[16];
};

struct Block;

struct Warp {
    Block* block = nullptr;
    u32 index = 0;   // within the block
    u32 exists = 0;  // lanes, a bit each; so are the next three
    u32 runnable = 0, at_barrier = 0, in_collective = 0;
    u32 pc[kLanes] = {};     // the next instruction; of waiting lanes the one they wait in
    u32 names[kLanes] = {};  // the lanes that each waiting lane waits for
    std::vector<u32> registers, predicates;
    std::vector<std::vector<AsyncCopy>> async_groups[kLanes];  // the last one is not committed yet

    bool finished() const { return (runnable | at_barrier | in_collective) == 0; }
};

struct Block {
    u32 index[3] = {};
    std::vector<Warp> warps;
    std::vector<char> memory;  // shared
    std::size_t shared_bytes = 0;
    StoreBuffer stores;
    bool keeps_stores = false;  // other blocks run at the same time
    bool unfenced = false;      // it has just touched an atomic with stores that nobody else sees yet
    bool asleep = false;        // until all blocks are: whoever relied on those stores goes on without them
    u32 arrived = 0;            // threads in the barrier
    u32 threads = 0;
};

// What a handler works on.
struct Frame {
    Warp& warp;
    u32 lanes;  // that execute
    const Kernel& kernel;

    template <class T>
    T* values(u32 slot) const {
        return reinterpret_cast<T*>(warp.registers.data() + slot * kLanes);
    }
    u32& predicate(u32 number) const { return warp.predicates[number]; }

    [[noreturn]] void fail(const Instruction& i, const std::string& what) const;

    // The memory behind an address of shared memory.
    char* shared(const Instruction& i, u64 address, u32 bytes) const {
        Block& block = *warp.block;
        if (address + bytes > block.shared_bytes || address > block.shared_bytes) {
            fail(i, "shared memory at " + std::to_string(address) + " of " + std::to_string(block.shared_bytes));
        }
        if (address % bytes != 0) fail(i, "a misaligned address of shared memory");
        return block.memory.data() + address;
    }
    char* global(const Instruction& i, u64 address, u32 bytes) const {
        if (address % bytes != 0) fail(i, "a misaligned address");
        return reinterpret_cast<char*>(address);
    }
};

// body(lane) for each lane that executes.
template <class Body>
inline void each_lane(u32 lanes, Body body) {
    if (lanes == 0xFFFFFFFF) {
#pragma GCC ivdep
        for (u32 lane = 0; lane < kLanes; ++lane) body(lane);
    } else {
        for (u32 rest = lanes; rest != 0; rest &= rest - 1) body(static_cast<u32>(__builtin_ctz(rest)));
    }
}

template <class To, class From>
inline To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}

}  // namespace doge::emulation
#endif
