// The little that a test program of the emulator needs. A test is a main() that calls CHECK and returns failures().
#ifndef DOGE_EMULATION_TESTING_H
#define DOGE_EMULATION_TESTING_H

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "half.h"
#include "memory.h"
#include "grid.h"

namespace doge::emulation {

inline int failure_count = 0;

// What main() returns; says on stdout how it went.
inline int failures() {
    std::printf(failure_count == 0 ? "ok\n" : "%d checks failed\n", failure_count);
    return failure_count == 0 ? 0 : 1;
}

inline void check(bool good, const char* file, int line, const std::string& what) {
    if (good) return;
    ++failure_count;
    std::printf("%s:%d: %s\n", file, line, what.c_str());
    std::fflush(stdout);
}

#define CHECK(condition, what) doge::emulation::check(condition, __FILE__, __LINE__, what)

struct NamedSchedule {
    const char* name;
    Schedule schedule;
};
inline const NamedSchedule schedules[] = {{"forward", {Order::Forward, 1}},
                                          {"reversed", {Order::Reversed, 1}},
                                          {"random 1", {Order::Random, 1}},
                                          {"random 2", {Order::Random, 2}}};

// Calls body(name) under each schedule.
template <class Body>
void under_every_schedule(Body body) {
    for (const NamedSchedule& entry : schedules) {
        set_schedule(entry.schedule);
        body(entry.name);
    }
}

// ||actual - expected|| / ||expected||, and infinity where something is not finite that should be.
template <class Actual, class Expected>
double norm_error(const Actual& actual, const Expected& expected) {
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const double a = static_cast<float>(actual[i]), e = static_cast<double>(expected[i]);
        if (!std::isfinite(a)) return INFINITY;
        difference += (a - e) * (a - e);
        norm += e * e;
    }
    return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

// A generator with the same numbers everywhere.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ULL | 1) {}
    std::uint64_t next() {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return state_ * 0x2545F4914F6CDD1DULL;
    }
    double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }  // [0, 1)
    int below(int limit) { return static_cast<int>(next() % static_cast<std::uint64_t>(limit)); }
    float normal() {
        return static_cast<float>(std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()));
    }

  private:
    std::uint64_t state_;
};

}  // namespace doge::emulation
#endif
