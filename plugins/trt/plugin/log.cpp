#include "log.h"

#include <atomic>
#include <cstdio>

namespace doge::trt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

nvinfer1::ILogger* current_logger() noexcept {
    nvinfer1::ILoggerFinder* finder = logger_finder;
    try {
        return finder != nullptr ? finder->findLogger() : nullptr;
    } catch (...) {
        return nullptr;  // as if there were none
    }
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder = finder; }

void log_error(const char* where, const char* what) noexcept {
    char line[1024];
    std::snprintf(line, sizeof line, "doge: %s: %s", where, what);
    nvinfer1::ILogger* logger = current_logger();
    if (logger != nullptr) {
        logger->log(nvinfer1::ILogger::Severity::kERROR, line);
    } else {
        std::fprintf(stderr, "%s\n", line);
    }
}

}  // namespace doge::trt
