// A fiber: a function with a stack of its own that can be left in the middle and resumed later.
#ifndef DOGE_EMULATION_FIBER_H
#define DOGE_EMULATION_FIBER_H

#include <cstddef>

#ifndef __x86_64__
#define DOGE_EMULATION_UCONTEXT 1  // may be defined on x86-64 too: portable, and many times slower
#endif
#ifdef DOGE_EMULATION_UCONTEXT
#include <ucontext.h>
#endif

namespace doge::emulation {

class Fiber {
  public:
    Fiber();
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // Makes the next resume() call entry() on this fiber's stack. entry must end in suspend() and is not resumed then.
    void restart(void (*entry)());
    // From the scheduler: goes on where this fiber left off, returns when it suspends itself.
    void resume();
    // From within this fiber: back to whoever resumed it.
    void suspend();

  private:
    static constexpr std::size_t stack_bytes = 256 * 1024;  // below it lies a page that faults: an overflow is seen
    char* memory_;
#ifndef DOGE_EMULATION_UCONTEXT
    void* inside_ = nullptr;   // stack pointer of the fiber while it is suspended
    void* outside_ = nullptr;  // stack pointer of the scheduler while the fiber runs
#else
    ucontext_t inside_{};
    ucontext_t outside_{};
#endif
};

}  // namespace doge::emulation
#endif
