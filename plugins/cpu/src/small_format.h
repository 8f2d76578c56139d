// vsnprintf of %d, %u, %lld and %s, for WebAssembly: the C library's also knows floats, which is a tenth of a module.
#pragma once
#include <cstdarg>
#include <cstddef>
#include <cstdint>

namespace doge::cpu {

inline void format_small(char* text, size_t bytes, const char* format, va_list arguments) {
    size_t at = 0;
    const auto put = [&](char c) {
        if (at + 1 < bytes) text[at++] = c;
    };
    for (; *format != 0; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        format++;
        const bool is_long = format[0] == 'l' && format[1] == 'l';
        if (is_long) format += 2;
        if (*format == 's') {
            for (const char* s = va_arg(arguments, const char*); *s != 0; s++) put(*s);
            continue;
        }
        int64_t number;
        if (is_long) number = va_arg(arguments, long long);
        else if (*format == 'u') number = va_arg(arguments, unsigned);
        else number = va_arg(arguments, int);
        if (number < 0) put('-');
        uint64_t rest = number < 0 ? 0 - uint64_t(number) : uint64_t(number);
        char digits[20];
        int count = 0;
        do digits[count++] = char('0' + rest % 10);
        while ((rest /= 10) != 0);
        while (count > 0) put(digits[--count]);
    }
    text[at] = 0;
}

}  // namespace doge::cpu
