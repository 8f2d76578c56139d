#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#ifndef DOGE_EMULATION_UCONTEXT
// System V x86-64: what a function must preserve is pushed, the stack pointers are exchanged, and what the other side
// pushed is popped. (swapcontext would do it too, with two system calls each time.)
extern "C" void doge_fiber_switch(void** save, void* resume);
asm(R"(
.text
.globl doge_fiber_switch
.type doge_fiber_switch, @function
doge_fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size doge_fiber_switch, .-doge_fiber_switch
)");
#endif

namespace doge::emulation {

static std::size_t page_bytes() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

Fiber::Fiber() {
    void* memory = mmap(nullptr, stack_bytes + page_bytes(), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page_bytes(), PROT_NONE);
    memory_ = static_cast<char*>(memory);
}

Fiber::~Fiber() { munmap(memory_, stack_bytes + page_bytes()); }

#ifndef DOGE_EMULATION_UCONTEXT

void Fiber::restart(void (*entry)()) {
    auto top = reinterpret_cast<std::uintptr_t*>(memory_ + page_bytes() + stack_bytes);
    *--top = 0;  // entry's return address, as if it had been called; it never returns
    *--top = reinterpret_cast<std::uintptr_t>(entry);  // where `ret` goes
    for (int saved_register = 0; saved_register < 6; ++saved_register) *--top = 0;
    inside_ = top;
}

void Fiber::resume() { doge_fiber_switch(&outside_, inside_); }
void Fiber::suspend() { doge_fiber_switch(&inside_, outside_); }

#else

void Fiber::restart(void (*entry)()) {
    getcontext(&inside_);
    inside_.uc_stack.ss_sp = memory_ + page_bytes();
    inside_.uc_stack.ss_size = stack_bytes;
    inside_.uc_link = nullptr;
    makecontext(&inside_, entry, 0);
}

void Fiber::resume() { swapcontext(&outside_, &inside_); }
void Fiber::suspend() { swapcontext(&inside_, &outside_); }

#endif

}  // namespace doge::emulation
