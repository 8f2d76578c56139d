// A few threads that run one function together, and wait for each other in the middle of it.
//
// A step of a small model has some fifty places to wait at and takes 200 us, so waiting is spinning. Between calls a thread
// spins for about a millisecond, which a loop that generates tokens never lets pass, and then sleeps.
//
// Where other work takes the processors, a thread that is waited for may have to wait for its turn itself, at every place:
// two threads were then three to ten times as slow as one. So a pool whose threads wait half of their time for several calls
// in a row leaves the next ones to the caller alone, and tries again later.
#pragma once
#include <atomic>
#include <cstdint>

#ifndef DOGE_CPU_ONE_THREAD
#include <chrono>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>
#if !defined(_WIN32)
#include <unistd.h>
#endif
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
    int size() const { return 1; }
    int threads() const { return 1; }
    void settle() {}
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
    explicit Pool(int threads) : threads_(threads), active_(threads) {
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

    int size() const { return threads_; }
    // Those that the next call takes; one call at a time, so it stays the same until that has ended.
    int threads() const { return active_; }
    // To be called before a call's work is laid out. A process that was forked from the pool's has its memory and none of
    // its threads: the caller is alone there.
    void settle() {
        if (forked()) active_ = 1;
    }

    // Calls function(id) for every id, 0 in the caller's thread; one call at a time. function must
    // not throw: what it needs is allocated before.
    template <class Function>
    void run(Function& function) {
        const Lock lock(mutex_);
        if (active_ == 1) {
            function(0);
            if (threads_ > 1 && !forked() && --alone_ == 0) active_ = threads_;
            return;
        }
        waited_.store(0, std::memory_order_relaxed);
        const Clock::time_point start = Clock::now();
        call_ = [](void* f, int id) { (*static_cast<Function*>(f))(id); };
        argument_ = &function;
        running_.store(threads_ - 1, std::memory_order_relaxed);
        turn_.fetch_add(1, std::memory_order_release);
        turn_.notify_all();
        function(0);
        {
            Patience patience(*this);
            while (running_.load(std::memory_order_acquire) != 0) patience.spend();
        }
        judge(std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count());
    }

    // Returns when every thread has called it: what was written before is seen by all behind.
    void barrier() {
        if (active_ == 1) return;
        const uint32_t phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
        } else {
            Patience patience(*this);
            while (phase_.load(std::memory_order_acquire) == phase) patience.spend();
        }
    }

   private:
    using Clock = std::chrono::steady_clock;

#if defined(_WIN32)
    static int process() { return 0; }
#else
    static int process() { return int(getpid()); }
#endif
    bool forked() const { return process() != process_; }

    // Spins; now and then lets another thread have the processor, which may be the one that is waited for. What is waited
    // beyond the first of these times, some 50 us, is added up: between threads that all run it does not come to that.
    class Patience {
       public:
        explicit Patience(Pool& pool) : pool_(pool) {}
        ~Patience() {
            if (spins_ >= LONG)
                pool_.waited_.fetch_add(
                    std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - since_).count(),
                    std::memory_order_relaxed);
        }
        void spend() {
            if (++spins_ % LONG != 0) return pause();
            if (spins_ == LONG) since_ = Clock::now();
            std::this_thread::yield();
        }

       private:
        static constexpr int64_t LONG = 4096;
        Pool& pool_;
        int64_t spins_ = 0;
        Clock::time_point since_;
    };

    // Decides behind a call of so many nanoseconds whether the next ones are the caller's alone.
    void judge(int64_t nanoseconds) {
        const bool crowded = waited_.load(std::memory_order_relaxed) > nanoseconds / 2 * (threads_ - 1);
        strikes_ = crowded ? strikes_ + 1 : strikes_ > 0 ? strikes_ - 1 : 0;
        if (!crowded && ++calm_ > 1000) penalty_ = FIRST_PENALTY;
        if (strikes_ < 4) return;
        strikes_ = calm_ = 0;
        alone_ = penalty_;
        penalty_ = penalty_ < 4096 ? penalty_ * 2 : penalty_;
        active_ = 1;
    }

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
        for (std::thread& worker : workers_) {
            if (forked()) worker.detach();
            else worker.join();
        }
        workers_.clear();
    }

    static constexpr int FIRST_PENALTY = 64;  // calls

    const int threads_;
    const int process_ = process();
    int active_;
    int strikes_ = 0, calm_ = 0, alone_ = 0, penalty_ = FIRST_PENALTY;
    std::atomic<int64_t> waited_{0};  // nanoseconds of all threads in a call
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
