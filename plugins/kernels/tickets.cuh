// Which of several blocks is the last: the one that finds the results of all others and may add them up.
//
// A ticket is a 64-bit word in the workspace: kTicketMark plus the number of blocks that have come. The last block to
// come leaves kTicketMark + 0, which is ready for any next launch, of however many blocks. Nobody initialises a
// workspace, though, and others use it in between; so if the word is anything else than a ticket when the first block
// comes, that block makes it one. This is safe
//   - on a workspace of garbage: what a block adds to a word that is no ticket means nothing, and the block comes
//     again. Of the blocks that try to replace the word one succeeds, and counts as the first. Should their additions
//     carry the word up to kTicketMark, that is a right ticket too, of the blocks that come from then on;
//   - in a captured graph, however often it is replayed: a launch needs nothing that happened before it, no memset and
//     no number from the host;
//   - beside launches that run at the same time, as these have workspaces of their own.
// What is left is garbage that looks like a ticket for which blocks have come: one word in 2^55, and none that anything
// else is known to write. The alternatives are a memset before each launch, which for one token costs as much as the
// work itself, or counters outside the workspace, of which there would have to be some for each workspace there is.
#ifndef DOGE_KERNELS_TICKETS_CUH
#define DOGE_KERNELS_TICKETS_CUH

#include <cuda_runtime.h>

namespace doge {

using Ticket = unsigned long long;  // as atomicAdd takes it
constexpr int kTicketCountBits = 9;
constexpr int kMaxTicketBlocks = (1 << kTicketCountBits) - 1;
constexpr Ticket kTicketMark = 0x5D06E7C3A91B24F8ULL >> kTicketCountBits << kTicketCountBits;

// By one thread of each block: true for the last of `blocks`, which also makes the ticket ready for the next launch.
__device__ __forceinline__ bool take_ticket(Ticket* ticket, int blocks) {
    const auto is_ticket = [](Ticket word) { return word >> kTicketCountBits == kTicketMark >> kTicketCountBits; };
    Ticket before = atomicAdd(ticket, Ticket{1});
    while (!is_ticket(before)) {
        const Ticket seen = atomicAdd(ticket, Ticket{0});
        if (is_ticket(seen)) {  // another block has replaced it
            before = atomicAdd(ticket, Ticket{1});
        } else if (atomicCAS(ticket, seen, kTicketMark + 1) == seen) {
            before = kTicketMark;
        }
    }
    const bool last = before == kTicketMark + static_cast<Ticket>(blocks) - 1;
    if (last) atomicExch(ticket, kTicketMark);
    return last;
}

// By all threads of each of `blocks` blocks, at most kMaxTicketBlocks: whether this block is the last. What the others
// had written can then be read, past the L1 cache (__ldcg). `told` lies in shared memory.
__device__ __forceinline__ bool is_last_block(Ticket* ticket, int blocks, int& told) {
    __threadfence();  // what this thread wrote is seen before the ticket is
    __syncthreads();
    if (threadIdx.x == 0) told = take_ticket(ticket, blocks);
    __syncthreads();
    __threadfence();
    return told != 0;
}

}  // namespace doge
#endif
