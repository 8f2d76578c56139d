// A few threads that run one function together, and wait for each other in the middle of it.
//
// A step of a small model has some fifty places to wait at and takes 200 us, so waiting is spinning. Between calls a thread
// spins for about a millisecond, which a loop that generates tokens never lets pass, and then sleeps.
#pragma once
#include <atomic>
#include <cstdint>

#ifndef DOGE_CPU_ONE_THREAD
#include <memory>
#include <mutex>
#include <thread>
#include <vector>
#endif

namespace doge::cpu {

// Tells the processor that this is a loop that waits.
inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

#ifdef DOGE_CPU_ONE_THREAD

struct Mutex {};
struct Lock {
    explicit Lock(Mutex&) {}
};

class Pool {
   public:
    explicit Pool(int) {}
    int threads() const { return 1; }
    void barrier() {}
    template <class Function>
    void run(Function& function) {
        function(0);
    }
};

#else

typedef std::mutex Mutex;
typedef std::lock_guard<std::mutex> Lock;

class Pool {
   public:
    explicit Pool(int threads) : threads_(threads) {
        try {
            for (int id = 1; id < threads; id++) workers_.emplace_back([this, id] { work(id); });
        } catch (...) {
            stop();
            throw;
        }
    }
    ~Pool() { stop(); }
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return threads_; }

    // Calls function(id) for every id, 0 in the caller's thread; one call at a time. function must
    // not throw: what it needs is allocated before.
    template <class Function>
    void run(Function& function) {
        const Lock lock(mutex_);
        if (threads_ == 1) return function(0);
        call_ = [](void* f, int id) { (*static_cast<Function*>(f))(id); };
        argument_ = &function;
        running_.store(threads_ - 1, std::memory_order_relaxed);
        turn_.fetch_add(1, std::memory_order_release);
        turn_.notify_all();
        function(0);
        for (Patience patience; running_.load(std::memory_order_acquire) != 0;) patience.spend();
    }

    // Returns when every thread has called it: what was written before is seen by all behind.
    void barrier() {
        if (threads_ == 1) return;
        const uint32_t phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
        } else {
            for (Patience patience; phase_.load(std::memory_order_acquire) == phase;) patience.spend();
        }
    }

   private:
    // Spins; now and then lets another thread have the processor, which may be the one that is waited for.
    struct Patience {
        int spins = 0;
        void spend() {
            if (++spins % 4096 == 0) std::this_thread::yield();
            else pause();
        }
    };

    void work(int id) {
        for (uint32_t seen = 0;;) {
            uint32_t turn;
            for (int spins = 0; (turn = turn_.load(std::memory_order_acquire)) == seen; spins++) {
                if (spins < 30000) pause();
                else turn_.wait(seen, std::memory_order_acquire);
            }
            seen = turn;
            if (stopping_.load(std::memory_order_relaxed)) return;
            call_(argument_, id);
            running_.fetch_sub(1, std::memory_order_release);
        }
    }

    void stop() {
        stopping_.store(true, std::memory_order_relaxed);
        turn_.fetch_add(1, std::memory_order_release);
        turn_.notify_all();
        for (std::thread& worker : workers_) worker.join();
        workers_.clear();
    }

    const int threads_;
    Mutex mutex_;
    std::vector<std::thread> workers_;
    void (*call_)(void*, int) = nullptr;
    void* argument_ = nullptr;
    std::atomic<bool> stopping_{false};
    alignas(64) std::atomic<uint32_t> turn_{0};
    alignas(64) std::atomic<int> running_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

#endif

// The part of 0 .. n - 1 that falls to thread `id`.
struct Share {
    int first, last;
    Share(int n, int id, int threads)
        : first(int(int64_t(n) * id / threads)), last(int(int64_t(n) * (id + 1) / threads)) {}
};

}  // namespace doge::cpu
