// One line for people, formatted as by printf.
#pragma once

namespace doge {

__attribute__((format(printf, 1, 2))) const char* message(const char* format, ...);

}  // namespace doge
