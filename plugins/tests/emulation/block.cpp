#include "block.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <new>

namespace doge::emulation {

std::string place(const uint3& index) {
    return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string place(Site site) {
    const char* slash = std::strrchr(site.file, '/');
    return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

bool Thread::waits_at(const char* other_name, Site other) const {
    const auto same = [](const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; };
    return site.line == other.line && same(name, other_name) && same(site.file, other.file);
}

SharedMemory::SharedMemory(std::size_t bytes)
    : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))),
      bytes_((bytes + 15) / 16 * 16),
      mapped_((bytes_ + page_ - 1) / page_ * page_ + page_) {
    void* memory = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    mprotect(memory_ + mapped_ - page_, page_, PROT_NONE);
}

SharedMemory::~SharedMemory() { munmap(memory_, mapped_); }

void SharedMemory::poison() { std::memset(data(), 0xFF, bytes_); }

void Block::start(uint3 block_index, dim3 size, SharedMemory* memory, void (*entry)()) {
    index = block_index;
    count = size.x * size.y * size.z;
    shared = memory;
    shared->poison();
    for (Barrier& barrier : barriers) barrier = {};
    std::fill(std::begin(in_collective), std::end(in_collective), 0);
    std::fill(std::begin(runnable_), std::end(runnable_), 0);
    while (threads.size() < count) threads.push_back(std::make_unique<Thread>());
    for (unsigned i = 0; i < count; ++i) {
        Thread& thread = *threads[i];
        thread.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
        thread.async_groups.assign(1, {});
        thread.fiber.restart(entry);
        make_runnable(i);
    }
}

int Block::choose(Order order, std::uint64_t random) const {
    constexpr int words = max_threads / 64;
    if (order == Order::Reversed) {
        for (int word = words - 1; word >= 0; --word) {
            if (runnable_[word]) return word * 64 + 63 - __builtin_clzll(runnable_[word]);
        }
        return -1;
    }
    const auto start = order == Order::Random ? static_cast<unsigned>(random % count) : 0u;
    for (int step = 0; step <= words; ++step) {  // circular; the word of `start` is looked at twice
        const int word = static_cast<int>(start / 64 + step) % words;
        std::uint64_t bits = runnable_[word];
        if (step == 0) bits &= ~std::uint64_t{0} << start % 64;
        if (bits) return word * 64 + __builtin_ctzll(bits);
    }
    return -1;
}

void Block::make_runnable(unsigned thread) {
    threads[thread]->state = Thread::State::Runnable;
    runnable_[thread / 64] |= std::uint64_t{1} << thread % 64;
    in_collective[thread / 32] &= ~(1u << thread % 32);
}

void Block::wait(unsigned thread, Thread::State state) {
    threads[thread]->state = state;
    runnable_[thread / 64] &= ~(std::uint64_t{1} << thread % 64);
    if (state == Thread::State::InCollective) in_collective[thread / 32] |= 1u << thread % 32;
    threads[thread]->fiber.suspend();
}

bool Block::finished() const {
    return std::all_of(threads.begin(), threads.begin() + count,
                       [](const auto& thread) { return thread->state == Thread::State::Exited; });
}

std::string Block::stand_still() const {
    std::map<std::string, std::vector<unsigned>> groups;
    for (unsigned i = 0; i < count; ++i) {
        const Thread& thread = *threads[i];
        std::string where = "exited";
        if (thread.state == Thread::State::AtBarrier)
            where = std::string("in ") + thread.name + " at " + place(thread.site);
        if (thread.state == Thread::State::InCollective) {
            char mask[16];
            std::snprintf(mask, sizeof mask, "%08x", thread.mask);
            where = std::string("in ") + thread.name + " with mask " + mask + " at " + place(thread.site);
        }
        groups[where].push_back(i);
    }
    std::string message = "block " + place(index) + ": threads wait for each other in vain:";
    for (const auto& [where, members] : groups) {
        message +=
            " " + std::to_string(members.size()) + " " + where + " (first " + place(threads[members[0]]->index) + ");";
    }
    message.pop_back();
    return message;
}

}  // namespace doge::emulation
