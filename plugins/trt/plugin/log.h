// Where messages go: to TensorRT's logger, or to stderr while there is none.
#pragma once

#include <exception>

namespace doge::trt {

// Takes TensorRT's ILoggerFinder, of whichever generation (abi/host.h). A finder may find nothing: there is a logger only
// while a builder or a runtime exists. nullptr forgets the finder.
void set_logger_finder(void* finder) noexcept;

// One line: "doge: where: what".
void log_error(const char* where, const char* what) noexcept;

// Calls `body`, which TensorRT must never see throw: logs what it throws, and gives `failure` then.
template <class Result, class Body>
Result guarded(const char* where, Result failure, const Body& body) noexcept {
    try {
        return body();
    } catch (const std::exception& error) {
        log_error(where, error.what());
    } catch (...) {
        log_error(where, "failed, and nothing tells why");
    }
    return failure;
}

}  // namespace doge::trt
