#include "log.h"

#include <atomic>
#include <cstdio>

#include "host.h"

namespace doge::trt {
namespace {

std::atomic<abi::Generation> generation{abi::Generation::eleven};
std::atomic<void*> logger_finder{nullptr};

template <class LoggerFinder>
bool said(void* finder, const char* line) {
    auto* logger = static_cast<LoggerFinder*>(finder)->findLogger();
    if (logger != nullptr) {
        logger->log(abi::Severity::error, line);
    }
    return logger != nullptr;
}

// False where there is no logger.
bool said(const char* line) noexcept {
    void* finder = logger_finder;
    try {
        return finder != nullptr && (generation == abi::Generation::ten ? said<abi::ten::LoggerFinder>(finder, line)
                                                                        : said<abi::eleven::LoggerFinder>(finder, line));
    } catch (...) {
        return false;
    }
}

}  // namespace

void set_logger_finder(void* finder) noexcept {
    logger_finder = nullptr;
    const auto known = finder != nullptr ? abi::generation_of(finder) : std::nullopt;
    if (known) {
        generation = *known;
        logger_finder = finder;
    }
}

void log_error(const char* where, const char* what) noexcept {
    char line[1024];
    std::snprintf(line, sizeof line, "doge: %s: %s", where, what);
    if (!said(line)) {
        std::fprintf(stderr, "%s\n", line);
    }
}

}  // namespace doge::trt
