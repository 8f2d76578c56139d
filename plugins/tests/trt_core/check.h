// The little that these test programs need: a test is a main() that checks and returns outcome().
#pragma once

#include <cstdio>
#include <sstream>
#include <string>

#include "problem.h"

namespace doge::testing {

inline int checks = 0, failures = 0;

inline void check(bool good, const char* file, int line, const std::string& what) {
    ++checks;
    if (!good) {
        ++failures;
        std::printf("%s:%d: %s\n", file, line, what.c_str());
    }
}

template <class Seen, class Expected>
void check_equal(const Seen& seen, const Expected& expected, const char* file, int line, const char* what) {
    std::ostringstream text;
    text << what << " is '" << seen << "', not '" << expected << "'";
    check(seen == expected, file, line, text.str());
}

// The message of the Problem that `body` throws.
template <class Body>
std::string problem_of(const Body& body) {
    try {
        body();
    } catch (const trt::Problem& problem) {
        return problem.what();
    }
    return "no problem";
}

inline int outcome() {
    std::printf("%d checks, %d failed\n", checks, failures);
    return failures == 0 && checks > 0 ? 0 : 1;
}

}  // namespace doge::testing

#define CHECK(condition) doge::testing::check(condition, __FILE__, __LINE__, #condition)
#define CHECK_EQUAL(seen, expected) doge::testing::check_equal(seen, expected, __FILE__, __LINE__, #seen)
// The expression must throw a Problem of exactly this message.
#define CHECK_PROBLEM(expression, message) \
    CHECK_EQUAL(doge::testing::problem_of([&] { expression; }), std::string(message))
