// Models and states: made, looked at, and given back.
#include <algorithm>
#include <cstring>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "doge/cpu.h"
#include "guard.h"
#include "processor.h"
#include "state.h"

namespace doge::cpu {
namespace {

constexpr int MOST_THREADS = 64, MOST_ROWS = 1 << 16;

// Large pages where the system has them: fewer addresses to look up while all of the weights stream by.
Memory large(size_t bytes) {
    Memory memory(bytes);
#if defined(__linux__)
    constexpr uintptr_t page = 2 << 20;
    const uintptr_t begin = (uintptr_t(memory.data()) + page - 1) / page * page, end = uintptr_t(memory.data()) + bytes;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
    return memory;
}

doge_cpu_status open(const void* bytes, uint64_t size, int32_t threads, const char* instruction_set, uint32_t flags,
                     doge_cpu_model** out, const Message& message) {
    if (threads < 1 || threads > MOST_THREADS)
        return message.fail(DOGE_CPU_BAD_ARGUMENT, "%d threads, 1 to %d are possible", threads, MOST_THREADS);
    const Kernels* kernels = find_kernels(instruction_set);
    if (kernels == nullptr)
        return message.fail(DOGE_CPU_UNSUPPORTED, "instruction set %s is not one of those usable here: %s",
                            instruction_set == nullptr ? "(any)" : instruction_set, doge_cpu_usable_instruction_sets());
    auto model = std::make_unique<doge_cpu_model>();
    if (const doge_cpu_status status = check_file(bytes, size, model->file, message)) return status;
    if ((flags & DOGE_CPU_COPY) != 0) {
        model->copy = large(size);
        std::memcpy(model->copy.data(), bytes, size);
        if (const doge_cpu_status status = check_file(model->copy.data(), size, model->file, message)) return status;
    }
    model->kernels = kernels;
    model->weights.read(model->file);
    model->pool = std::make_unique<Pool>(threads);
#ifndef DOGE_CPU_NO_SCREEN  // it saves nothing but time, and is left out of WebAssembly, which is downloaded
    if ((flags & DOGE_CPU_SCREEN) != 0) model->screen.make(model->weights.head, *model->pool);
#endif
    *out = model.release();
    return DOGE_CPU_SUCCESS;
}

doge_cpu_status create(const doge_cpu_model* model, int32_t batch, int32_t cache_kind, int32_t max_length,
                       doge_cpu_state** out, const Message& message) {
    if (batch < 1 || batch > MOST_ROWS) return message.fail(DOGE_CPU_BAD_ARGUMENT, "a batch of %d sequences", batch);
    if (cache_kind != DOGE_CPU_FLOAT32 && cache_kind != DOGE_CPU_INT8)
        return message.fail(DOGE_CPU_BAD_ARGUMENT, "there is no cache of kind %d", cache_kind);
    const int32_t longest = model->config().max_length;
    if (max_length < 0 || max_length > longest)
        return message.fail(DOGE_CPU_BAD_ARGUMENT, "a maximum length of %d, the model's is %d", max_length, longest);
    if (!Cache::fits(model->config()))
        return message.fail(DOGE_CPU_UNSUPPORTED, "%d tokens of cache need more memory than there are addresses", PAGE);
    *out = new doge_cpu_state(*model, batch, cache_kind == DOGE_CPU_INT8, max_length == 0 ? longest : max_length);
    return DOGE_CPU_SUCCESS;
}

}  // namespace
}  // namespace doge::cpu

using namespace doge::cpu;

extern "C" doge_cpu_status doge_cpu_open(const void* file, uint64_t file_bytes, int32_t threads,
                                         const char* instruction_set, uint32_t flags, doge_cpu_model** model,
                                         char* message, size_t message_bytes) {
    const Message text{message, message_bytes};
    if (model == nullptr) return text.fail(DOGE_CPU_BAD_ARGUMENT, "nowhere to put the model");
    *model = nullptr;
    return guarded(text, [&] { return open(file, file_bytes, threads, instruction_set, flags, model, text); });
}

extern "C" doge_cpu_status doge_cpu_screen(doge_cpu_model* model, char* message, size_t message_bytes) {
    const Message text{message, message_bytes};
    if (model == nullptr) return text.fail(DOGE_CPU_BAD_ARGUMENT, "no model");
    return guarded(text, [&] {
        const Lock turn(model->turn);
        model->pool->settle();
        if (!model->screen.ready()) model->screen.make(model->weights.head, *model->pool);
        return DOGE_CPU_SUCCESS;
    });
}

extern "C" void doge_cpu_close(doge_cpu_model* model) { delete model; }

extern "C" const doge_cpu_header* doge_cpu_model_header(const doge_cpu_model* model) { return model->file.header; }
extern "C" const char* doge_cpu_model_instruction_set(const doge_cpu_model* model) { return model->kernels->name; }
extern "C" int32_t doge_cpu_model_threads(const doge_cpu_model* model) { return model->pool->size(); }

extern "C" doge_cpu_status doge_cpu_state_create(const doge_cpu_model* model, int32_t batch, int32_t cache_kind,
                                                 int32_t max_length, doge_cpu_state** state, char* message,
                                                 size_t message_bytes) {
    const Message text{message, message_bytes};
    if (model == nullptr || state == nullptr) return text.fail(DOGE_CPU_BAD_ARGUMENT, "no model, or nowhere to put the state");
    *state = nullptr;
    return guarded(text, [&] { return create(model, batch, cache_kind, max_length, state, text); });
}

extern "C" void doge_cpu_state_destroy(doge_cpu_state* state) { delete state; }
extern "C" int32_t doge_cpu_state_length(const doge_cpu_state* state) { return state->length; }
extern "C" uint64_t doge_cpu_state_bytes(const doge_cpu_state* state) {
    uint64_t bytes = 0;
    for (const Cache& cache : state->caches) bytes += cache.bytes();
    return bytes;
}

extern "C" int32_t doge_cpu_state_slots(const doge_cpu_state* state) { return state->slots; }

extern "C" doge_cpu_status doge_cpu_state_window(doge_cpu_state* state, int32_t window, char* message, size_t message_bytes) {
    const Message text{message, message_bytes};
    if (state == nullptr || state->length > 0) return text.fail(DOGE_CPU_BAD_ARGUMENT, "no state, or one that is not empty");
    const int32_t kept = state->model->config().keep_window_size;
    if (window < 1 || (kept > 0 && window > kept))
        return text.fail(DOGE_CPU_BAD_ARGUMENT, "a window of %d keys, the model keeps %d (0: all)", window, kept);
    state->window = std::min(window, state->max_length);
    return DOGE_CPU_SUCCESS;
}

extern "C" doge_cpu_status doge_cpu_state_bound(doge_cpu_state* state, char* message, size_t message_bytes) {
    const Message text{message, message_bytes};
    if (state == nullptr || state->length > 0) return text.fail(DOGE_CPU_BAD_ARGUMENT, "no state, or one that is not empty");
    const doge_cpu_config& c = state->model->config();
    if (state->window == 0 || c.num_key_value_heads % c.score_heads != 0 || c.moe == DOGE_CPU_MOE_REFERENCE)
        return text.fail(DOGE_CPU_UNSUPPORTED, "this model has no window, a score for each query head, or a router that mixes tokens");
    state->bounded = true;
    return DOGE_CPU_SUCCESS;
}

extern "C" doge_cpu_status doge_cpu_state_rewind(doge_cpu_state* state, int32_t length, char* message,
                                                 size_t message_bytes) {
    const Message text{message, message_bytes};
    if (state == nullptr || length < 0 || length > state->length)
        return text.fail(DOGE_CPU_BAD_ARGUMENT, "cannot go back to %d tokens", length);
    if (length == state->length) return DOGE_CPU_SUCCESS;
    if (length > 0 && state->slots != state->length)
        return text.fail(DOGE_CPU_BAD_ARGUMENT, "cannot go back to %d tokens: keys of that time were dropped", length);
    state->length = state->slots = state->settled = length;
    for (auto& row : state->counts) row.resize(size_t(length));
    for (auto& row : state->kept) {
        for (Selection& selection : row) {
            if (selection.length() > length) selection.clear();
        }
    }
    return DOGE_CPU_SUCCESS;
}
