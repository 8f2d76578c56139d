// tickets.cuh: of all blocks that come exactly one is the last, whatever the word was before.
#include "../../kernels/tickets.cuh"

#include "../../kernels/launch.cuh"
#include "testing.h"

using namespace doge::emulation;
using doge::kMaxTicketBlocks;
using doge::kTicketMark;
using doge::Ticket;

namespace {

struct Seen {
    int came;   // blocks
    int lasts;  // threads of blocks that were the last
    int came_before_last;
};

__global__ void come(Ticket* ticket, Seen* seen) {
    if (threadIdx.x == 0) atomicAdd(&seen->came, 1);
    if (!doge::is_last_block(ticket, static_cast<int>(gridDim.x), *doge::dynamic_shared<int>())) return;
    atomicAdd(&seen->lasts, 1);
    if (threadIdx.x == 0) seen->came_before_last = __ldcg(&seen->came);
}

// One launch on the word as it is.
void check_launch(DeviceBuffer<Ticket>& word, int blocks, int threads, const std::string& name) {
    DeviceBuffer<Seen> seen(1);
    seen[0] = {0, 0, 0};
    doge::launch(come, dim3(blocks), dim3(threads), sizeof(int), nullptr, word.data(), seen.data());
    const std::string what = name + ", " + std::to_string(blocks) + " blocks: ";
    CHECK(seen[0].lasts == threads, what + std::to_string(seen[0].lasts) + " threads were of the last");
    CHECK(seen[0].came_before_last == blocks, what + "the last came before others");
    CHECK(word[0] == kTicketMark, what + "the ticket is not ready for the next launch");
}

// What may lie where a ticket is to be. The words below the mark become tickets when blocks add to them.
std::vector<Ticket> words() {
    std::vector<Ticket> found = {0, ~Ticket{0}, kTicketMark, kTicketMark + kMaxTicketBlocks + 1, kTicketMark >> 9};
    for (int below = 1; below <= 12; ++below) found.push_back(kTicketMark - below);
    Random random(3);
    for (int n = 0; n < 8; ++n) found.push_back(random.next());
    return found;
}

// Replayed, a launch finds what the one before it left. Blocks of a single thread meet at every step.
void any_word() {
    DeviceBuffer<Ticket> word(1);
    for (std::uint64_t seed = 0; seed < 200; ++seed) {
        set_schedule(seed < 4 ? schedules[seed].schedule : Schedule{Order::Random, 100 + seed});
        for (Ticket before : words()) {
            word[0] = before;
            for (int replay = 0; replay < 2; ++replay) {
                check_launch(word, 9, 1, "word " + std::to_string(before) + ", replay " + std::to_string(replay));
            }
        }
    }
}

// Launches of other sizes in turn, on the same word.
void any_number_of_blocks() {
    DeviceBuffer<Ticket> word(1);
    under_every_schedule([&](const char* schedule) {
        word.poison();
        for (int blocks : {2, 40, 1, kMaxTicketBlocks, 3, 256, 2}) check_launch(word, blocks, 64, schedule);
    });
}

}  // namespace

int main() {
    any_word();
    any_number_of_blocks();
    return failures();
}
