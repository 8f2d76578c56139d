// A user's mistake, in one line: what was seen, what was expected.
#pragma once

#include <stdexcept>

namespace doge::trt {

class Problem : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

}  // namespace doge::trt
