#include "grid.h"

#include <setjmp.h>
#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>

#include "warp.h"

namespace doge::emulation {
namespace {

constexpr std::size_t kMaxSharedBytes = 99 * 1024;  // sm_86 and sm_89; the least of our targets
constexpr std::size_t kResidents = 4;               // blocks that run at the same time under Order::Random

Schedule schedule;
std::uint64_t random_state = 1;
std::map<std::string, std::uint64_t> launched;

std::uint64_t random_number() {  // xorshift64*
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545F4914F6CDD1DULL >> 16;
}

std::string place(const u32 (&index)[3]) {
    return "(" + std::to_string(index[0]) + ", " + std::to_string(index[1]) + ", " + std::to_string(index[2]) + ")";
}

// An address that is not there: the handler of SIGSEGV ends the launch.
sigjmp_buf unreachable_memory;
const Instruction* current = nullptr;
void on_fault(int) { siglongjmp(unreachable_memory, 1); }

class FaultHandler {
  public:
    FaultHandler() {
        struct sigaction action = {};
        action.sa_handler = on_fault;
        action.sa_flags = SA_NODEFER;
        sigaction(SIGSEGV, &action, &segv_);
        sigaction(SIGBUS, &action, &bus_);
    }
    ~FaultHandler() {
        sigaction(SIGSEGV, &segv_, nullptr);
        sigaction(SIGBUS, &bus_, nullptr);
    }

  private:
    struct sigaction segv_, bus_;
};

class Grid {
  public:
    Grid(const Kernel& kernel, Size grid, Size block, std::size_t shared_bytes, void* const* arguments)
        : kernel_(kernel), grid_(grid), size_(block), shared_bytes_(shared_bytes), arguments_(arguments) {}

    void run();

  private:
    bool random() const { return schedule.order == Order::Random; }
    std::vector<std::uint64_t> block_order() const;
    void start(Block& block, std::uint64_t number);
    void start(Warp& warp, Block& block);
    bool step(Block& block);
    void run_lanes(Warp& warp, u32 candidates, int instructions);
    void wait_in_barrier(Warp& warp, u32 lanes, const Instruction& i);
    void wait_for_lanes(Warp& warp, u32 lanes, const Instruction& i);
    [[noreturn]] void fail(const Warp& warp, const Instruction& i, const std::string& what) const;
    [[noreturn]] void stand_still(const Block& block) const;

    const Kernel& kernel_;
    const Size grid_, size_;
    const std::size_t shared_bytes_;
    void* const* arguments_;
    bool gives_way_ = false;  // the last step ended in an atomic or a fence
};

// Blocks keep their memory from launch to launch.
std::vector<std::unique_ptr<Block>>& residents() {
    static std::vector<std::unique_ptr<Block>> blocks;
    while (blocks.size() < kResidents) blocks.push_back(std::make_unique<Block>());
    return blocks;
}

void Grid::fail(const Warp& warp, const Instruction& i, const std::string& what) const {
    throw KernelError(kernel_.name + ": PTX line " + std::to_string(i.line) + ": block " + place(warp.block->index) +
                      ", warp " + std::to_string(warp.index) + ": " + what);
}

std::vector<std::uint64_t> Grid::block_order() const {
    std::vector<std::uint64_t> order(std::uint64_t{grid_[0]} * grid_[1] * grid_[2]);
    std::iota(order.begin(), order.end(), 0);
    if (schedule.order == Order::Reversed) std::reverse(order.begin(), order.end());
    if (random()) {
        for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_number() % i]);
    }
    return order;
}

void Grid::start(Block& block, std::uint64_t number) {
    block.index[0] = static_cast<u32>(number % grid_[0]);
    block.index[1] = static_cast<u32>(number / grid_[0] % grid_[1]);
    block.index[2] = static_cast<u32>(number / grid_[0] / grid_[1]);
    block.threads = size_[0] * size_[1] * size_[2];
    block.arrived = 0;
    block.unfenced = block.asleep = false;
    block.keeps_stores = random();
    block.shared_bytes = shared_bytes_;
    block.memory.assign((shared_bytes_ + 15) / 16 * 16, static_cast<char>(0xFF));
    block.warps.resize((block.threads + kLanes - 1) / kLanes);
    for (u32 index = 0; index < block.warps.size(); ++index) {
        block.warps[index].index = index;
        start(block.warps[index], block);
    }
}

void Grid::start(Warp& warp, Block& block) {
    warp.block = &block;
    const u32 first = warp.index * kLanes, lanes = std::min(block.threads - first, kLanes);
    warp.exists = lanes == kLanes ? ~u32{0} : (1u << lanes) - 1;
    warp.runnable = warp.exists;
    warp.at_barrier = warp.in_collective = 0;
    std::fill(std::begin(warp.pc), std::end(warp.pc), 0);
    warp.registers.resize(std::size_t{kernel_.slots} * kLanes, 0xCDCDCDCD);
    warp.predicates.resize(kernel_.predicates);
    for (auto& groups : warp.async_groups) groups.assign(1, {});
    for (const Preset& preset : kernel_.presets) {
        for (u32 lane = 0; lane < kLanes; ++lane) {
            const u32 thread = first + lane;
            u64 value = preset.value;
            switch (preset.source) {
                case Preset::Source::Constant:
                    break;
                case Preset::Source::Parameter:
                    value = reinterpret_cast<u64>(arguments_[preset.value]);
                    break;
                case Preset::Source::ThreadX:
                    value = thread % size_[0];
                    break;
                case Preset::Source::ThreadY:
                    value = thread / size_[0] % size_[1];
                    break;
                case Preset::Source::ThreadZ:
                    value = thread / size_[0] / size_[1];
                    break;
                case Preset::Source::Lane:
                    value = lane;
                    break;
                case Preset::Source::Block:
                    value = block.index[preset.value];
                    break;
                case Preset::Source::BlockSize:
                    value = size_[preset.value];
                    break;
                case Preset::Source::GridSize:
                    value = grid_[preset.value];
                    break;
            }
            u32* slot = preset.width == 'p' ? nullptr : warp.registers.data() + std::size_t{preset.slot} * kLanes;
            if (preset.width == 'p') warp.predicates[preset.slot] = static_cast<u32>(value);
            if (preset.width == 'h') reinterpret_cast<u16*>(slot)[lane] = static_cast<u16>(value);
            if (preset.width == 'w') slot[lane] = static_cast<u32>(value);
            if (preset.width == 'l') reinterpret_cast<u64*>(slot)[lane] = value;
        }
    }
}

// Lets a warp of the block go on; false if none can.
bool Grid::step(Block& block) {
    const auto count = static_cast<u32>(block.warps.size());
    const u32 first = random() ? static_cast<u32>(random_number() % count) : 0;
    for (u32 n = 0; n < count; ++n) {
        Warp& warp = block.warps[schedule.order == Order::Reversed ? count - 1 - n : (first + n) % count];
        if (!warp.runnable) continue;
        u32 lanes = warp.runnable;
        int instructions = 1 << 30;
        if (random()) {
            instructions = 1 << random_number() % 10;
            const auto apart = static_cast<u32>(random_number());
            if (random_number() % 2 && (lanes & apart)) lanes &= apart;
        }
        run_lanes(warp, lanes, instructions);
        return true;
    }
    return false;
}

// Executes some of a warp's lanes; those that are furthest behind first, so that they meet again.
void Grid::run_lanes(Warp& warp, u32 candidates, int instructions) {
    while (instructions > 0 && (candidates &= warp.runnable) != 0) {
        u32 pc = ~u32{0}, lanes = 0, next_of_others = ~u32{0};
        for (u32 rest = candidates; rest != 0; rest &= rest - 1) pc = std::min(pc, warp.pc[__builtin_ctz(rest)]);
        for (u32 rest = candidates; rest != 0; rest &= rest - 1) {
            const auto lane = static_cast<u32>(__builtin_ctz(rest));
            if (warp.pc[lane] == pc) {
                lanes |= 1u << lane;
            } else {
                next_of_others = std::min(next_of_others, warp.pc[lane]);
            }
        }
        const auto stand_at = [&](u32 which, u32 at) {
            for (u32 rest = which; rest != 0; rest &= rest - 1) warp.pc[__builtin_ctz(rest)] = at;
        };
        bool goes_on = true;
        while (goes_on && pc < next_of_others && instructions-- > 0) {
            const Instruction& i = kernel_.code[pc];
            current = &i;
            u32 active = lanes;
            if (i.guard >= 0) {
                const u32 bits = warp.predicates[static_cast<u32>(i.guard)];
                active &= i.guard_negated ? ~bits : bits;
            }
            switch (i.kind) {
                case Instruction::Kind::Plain:
                case Instruction::Kind::Visible:
                    if (active) {
                        Frame frame{warp, active, kernel_};
                        i.run(frame, i);
                    }
                    ++pc;
                    if (i.kind == Instruction::Kind::Visible && random()) {
                        instructions = 0;
                        gives_way_ = true;
                    }
                    break;
                case Instruction::Kind::Branch:
                    if (active == lanes) {
                        pc = i.target;
                    } else if (active == 0) {
                        ++pc;
                    } else {
                        stand_at(lanes & ~active, pc + 1);
                        stand_at(active, i.target);
                        goes_on = false;
                    }
                    break;
                case Instruction::Kind::Exit:
                    warp.runnable &= ~active;
                    stand_at(lanes, pc + 1);
                    goes_on = false;
                    break;
                case Instruction::Kind::Barrier:
                    stand_at(lanes & ~active, pc + 1);
                    stand_at(active, pc);
                    if (active) wait_in_barrier(warp, active, i);
                    goes_on = false;
                    break;
                case Instruction::Kind::Collective:
                    if (active == ~u32{0} && lanes == active) {  // the usual case, without ado
                        bool all = true;
                        if (i.mask_at >= 0) {
                            const u32* names = reinterpret_cast<const u32*>(
                                warp.registers.data() + std::size_t{i.operand[static_cast<u32>(i.mask_at)]} * kLanes);
                            for (u32 lane = 0; lane < kLanes; ++lane) all = all && names[lane] == ~u32{0};
                        }
                        if (all) {
                            Frame frame{warp, active, kernel_};
                            i.run(frame, i);
                            ++pc;
                            break;
                        }
                    }
                    stand_at(lanes & ~active, pc + 1);
                    stand_at(active, pc);
                    if (active) wait_for_lanes(warp, active, i);
                    goes_on = false;
                    break;
            }
        }
        if (goes_on) stand_at(lanes, pc);
    }
}

void Grid::wait_in_barrier(Warp& warp, u32 lanes, const Instruction& i) {
    Block& block = *warp.block;
    const u32 pc = warp.pc[__builtin_ctz(lanes)];
    for (const Warp& other : block.warps) {
        if (other.at_barrier && other.pc[__builtin_ctz(other.at_barrier)] != pc) {
            fail(warp, i,
                 "a barrier while others wait in another, at PTX line " +
                     std::to_string(kernel_.code[other.pc[__builtin_ctz(other.at_barrier)]].line));
        }
    }
    warp.runnable &= ~lanes;
    warp.at_barrier |= lanes;
    block.arrived += static_cast<u32>(__builtin_popcount(lanes));
    if (block.arrived < block.threads) return;
    block.arrived = 0;
    for (Warp& other : block.warps) {
        for (u32 rest = other.at_barrier; rest != 0; rest &= rest - 1) ++other.pc[__builtin_ctz(rest)];
        other.runnable |= other.at_barrier;
        other.at_barrier = 0;
    }
}

void Grid::wait_for_lanes(Warp& warp, u32 lanes, const Instruction& i) {
    const u32 pc = warp.pc[__builtin_ctz(lanes)];
    for (u32 rest = lanes; rest != 0; rest &= rest - 1) {
        const auto lane = static_cast<u32>(__builtin_ctz(rest));
        warp.names[lane] = ~u32{0};
        if (i.mask_at >= 0) {
            const u32 slot = i.operand[static_cast<u32>(i.mask_at)];
            warp.names[lane] = warp.registers[std::size_t{slot} * kLanes + lane];
        }
        if (!(warp.names[lane] >> lane & 1)) fail(warp, i, "a mask that lacks the calling lane");
        if (warp.names[lane] & ~warp.exists) fail(warp, i, "a mask with lanes beyond the block");
    }
    warp.runnable &= ~lanes;
    warp.in_collective |= lanes;
    // The lanes may name several masks; each that is complete goes on.
    for (u32 rest = lanes; rest != 0; rest &= rest - 1) {
        const u32 names = warp.names[__builtin_ctz(rest)];
        if ((warp.in_collective & names) != names) continue;
        bool complete = true;
        for (u32 others = names; others != 0; others &= others - 1) {
            const auto other = static_cast<u32>(__builtin_ctz(others));
            complete = complete && warp.pc[other] == pc && warp.names[other] == names;
        }
        if (!complete) continue;
        Frame frame{warp, names, kernel_};
        i.run(frame, i);
        warp.in_collective &= ~names;
        warp.runnable |= names;
        for (u32 others = names; others != 0; others &= others - 1) ++warp.pc[__builtin_ctz(others)];
        rest &= ~names;
        if (rest == 0) break;
    }
}

void Grid::stand_still(const Block& block) const {
    std::map<std::string, int> groups;
    for (const Warp& warp : block.warps) {
        for (u32 rest = warp.exists; rest != 0; rest &= rest - 1) {
            const auto lane = static_cast<u32>(__builtin_ctz(rest));
            const std::string line =
                std::to_string(kernel_.code[std::min<std::size_t>(warp.pc[lane], kernel_.code.size() - 1)].line);
            std::string where = "have exited";
            if (warp.at_barrier >> lane & 1) where = "wait in a barrier at PTX line " + line;
            if (warp.in_collective >> lane & 1) {
                char mask[16];
                std::snprintf(mask, sizeof mask, "%08x", warp.names[lane]);
                where = std::string("wait for the lanes ") + mask + " at PTX line " + line;
            }
            ++groups[where];
        }
    }
    std::string message = kernel_.name + ": block " + place(block.index) + ": threads wait for each other in vain:";
    for (const auto& [where, count] : groups) message += " " + std::to_string(count) + " " + where + ";";
    message.pop_back();
    throw KernelError(message);
}

void Grid::run() {
    const std::vector<std::uint64_t> order = block_order();
    std::size_t started = 0;
    std::vector<Block*> running;
    while (running.size() < (random() ? kResidents : 1) && started < order.size()) {
        running.push_back(residents()[running.size()].get());
        start(*running.back(), order[started++]);
    }
    std::size_t chosen = 0;
    int steps_left = 0;  // that the chosen block may still go alone, so that some get far ahead of others
    while (!running.empty()) {
        if (running.size() > 1 && steps_left-- <= 0) {
            chosen = random_number() % running.size();
            steps_left = 1 << random_number() % 7;
        }
        const auto asleep = [](const Block* one) { return one->asleep; };
        if (std::all_of(running.begin(), running.end(), asleep)) {
            for (Block* one : running) one->asleep = false;
        }
        while (running[chosen]->asleep) chosen = (chosen + 1) % running.size();
        Block& block = *running[chosen];
        gives_way_ = false;
        const bool stepped = step(block);
        block.asleep = block.unfenced && random_number() % 4 != 0;
        block.unfenced = false;
        if (gives_way_ && running.size() > 1 && random_number() % 2) {  // to one that may get far in the meantime
            chosen = (chosen + 1 + random_number() % (running.size() - 1)) % running.size();
            steps_left = 1 << random_number() % 10;
        }
        if (stepped) continue;
        for (const Warp& warp : block.warps) {
            if (!warp.finished()) stand_still(block);
        }
        block.stores.flush_all();
        if (started < order.size()) {
            start(block, order[started++]);
        } else {
            running.erase(running.begin() + static_cast<std::ptrdiff_t>(chosen));
            chosen = 0;
        }
    }
}

void check_launch(const Kernel& kernel, Size grid, Size block, std::size_t shared_bytes) {
    const auto threads = std::uint64_t{block[0]} * block[1] * block[2];
    if (threads == 0 || threads > 1024 || block[2] > 64) {
        throw KernelError(kernel.name + ": " + std::to_string(threads) + " threads a block; 1 to 1024 are possible");
    }
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[0] > 0x7FFFFFFF || grid[1] > 65535 || grid[2] > 65535) {
        throw KernelError(kernel.name + ": a grid of " + std::to_string(grid[0]) + ", " + std::to_string(grid[1]) +
                          ", " + std::to_string(grid[2]) + "; 1 to (2^31-1, 65535, 65535) is possible");
    }
    if (shared_bytes > kMaxSharedBytes) {
        throw KernelError(kernel.name + ": " + std::to_string(shared_bytes) +
                          " bytes of shared memory; sm_89 has 101376");
    }
}

}  // namespace

void Frame::fail(const Instruction& i, const std::string& what) const {
    throw KernelError(kernel.name + ": PTX line " + std::to_string(i.line) + ": block " + place(warp.block->index) +
                      ", warp " + std::to_string(warp.index) + ": " + what);
}

void set_schedule(Schedule wanted) {
    schedule = wanted;
    random_state = wanted.seed * 0x9E3779B97F4A7C15ULL | 1;
}

void run_grid(const Kernel& kernel, Size grid, Size block, std::size_t shared_bytes, void* const* arguments) {
    check_launch(kernel, grid, block, shared_bytes);
    ++launched[kernel.name];
    const FaultHandler handler;
    if (sigsetjmp(unreachable_memory, 0) != 0) {
        for (auto& resident : residents()) resident->stores = StoreBuffer();
        throw KernelError(kernel.name + ": PTX line " + std::to_string(current->line) + ": memory that is not there");
    }
    try {
        Grid(kernel, grid, block, shared_bytes, arguments).run();
    } catch (...) {
        for (auto& resident : residents()) resident->stores = StoreBuffer();
        throw;
    }
}

const std::map<std::string, std::uint64_t>& launches() { return launched; }

}  // namespace doge::emulation
