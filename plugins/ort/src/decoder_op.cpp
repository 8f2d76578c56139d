#include "decoder_op.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "doge/cpu.h"

namespace doge::ort {
namespace {

enum Input : size_t { IDS, MASK, PAST, SEQUENCE, KEEP, WEIGHTS, INPUTS };

constexpr size_t MOST_SEQUENCES = 32;
constexpr int64_t MOST_THREADS = 64, BYTES_PER_THREAD = 4 << 20;
constexpr size_t MESSAGE = 512;

struct ModelDelete {
    void operator()(doge_cpu_model* model) const { doge_cpu_close(model); }
};
struct StateDelete {
    void operator()(doge_cpu_state* state) const { doge_cpu_state_destroy(state); }
};

struct Sequence {
    std::mutex turn;
    std::unique_ptr<doge_cpu_state, StateDelete> state;
    int64_t batch = 0;
    uint64_t used = 0;
};

// One node of one session.
class Decoder {
   public:
    Decoder(const Runtime& runtime, const KernelInfo* info) : runtime_(runtime) {
        const Value* weights = runtime_.constant(info, WEIGHTS);
        if (weights == nullptr) runtime_.fail("doge.Decoder: the weights are no initializer");
        const std::vector<int64_t> shape = runtime_.shape(weights);
        if (shape.size() != 1) runtime_.fail("doge.Decoder: the weights are no vector of bytes");
        const int64_t bytes = shape[0];
        const void* file = runtime_.data(weights);
        if (reinterpret_cast<uintptr_t>(file) % 64 != 0) {  // as onnxruntime gives no promise
            copy_.reset(static_cast<uint8_t*>(::operator new(size_t(bytes), std::align_val_t(64))));
            std::memcpy(copy_.get(), file, size_t(bytes));
            file = copy_.get();
        }
        int64_t threads = runtime_.attribute(info, "threads", 0);
        if (threads <= 0)
            threads = std::min<int64_t>(std::thread::hardware_concurrency(), (bytes + BYTES_PER_THREAD - 1) / BYTES_PER_THREAD);
        threads = std::clamp<int64_t>(threads, 1, MOST_THREADS);
        cache_ = runtime_.attribute(info, "cache_bits", 32) == 8 ? DOGE_CPU_INT8 : DOGE_CPU_FLOAT32;
        doge_cpu_model* model = nullptr;
        char message[MESSAGE] = "";
        check(doge_cpu_open(file, uint64_t(bytes), int32_t(threads), nullptr, 0, &model, message, MESSAGE), message);
        model_.reset(model);
        vocabulary_ = doge_cpu_model_header(model)->config.vocab_size;
    }

    void compute(KernelContext* context) {
        const std::vector<int64_t> shape = runtime_.shape(runtime_.input(context, IDS));
        if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1 || shape[0] > INT32_MAX || shape[1] > INT32_MAX)
            runtime_.fail("doge.Decoder: input_ids has no rows of tokens");
        if (runtime_.shape(runtime_.input(context, MASK)) != shape)
            runtime_.fail("doge.Decoder: attention_mask has another shape than input_ids; it is of the new tokens alone");
        const int64_t past = number(context, PAST), keep = number(context, KEEP);
        if (keep < 0 || past < 0) runtime_.fail("doge.Decoder: past_length or num_logits_to_keep is negative");
        const int64_t kept = keep == 0 ? shape[1] : std::min(keep, shape[1]);
        const std::shared_ptr<Sequence> sequence = find(number(context, SEQUENCE));
        const std::lock_guard<std::mutex> turn(sequence->turn);
        char message[MESSAGE] = "";
        if (sequence->state == nullptr || sequence->batch != shape[0]) {
            if (past != 0) runtime_.fail("doge.Decoder: past_length is not 0, and the sequence has no such rows yet");
            doge_cpu_state* state = nullptr;
            sequence->state.reset();
            check(doge_cpu_state_create(model_.get(), int32_t(shape[0]), cache_, 0, &state, message, MESSAGE), message);
            sequence->state.reset(state);
            sequence->batch = shape[0];
        }
        const int64_t length = doge_cpu_state_length(sequence->state.get());
        if (past > length)
            runtime_.fail("doge.Decoder: past_length is " + std::to_string(past) + ", the sequence holds " +
                          std::to_string(length) + " tokens");
        if (past < length) check(doge_cpu_state_rewind(sequence->state.get(), int32_t(past), message, MESSAGE), message);
        doge_cpu_call call{};
        call.tokens = int32_t(shape[1]);
        call.logits_to_keep = int32_t(kept);
        call.ids = static_cast<const int64_t*>(runtime_.data(runtime_.input(context, IDS)));
        call.mask = static_cast<const int64_t*>(runtime_.data(runtime_.input(context, MASK)));
        if (std::all_of(call.mask, call.mask + shape[0] * shape[1], [](int64_t each) { return each != 0; }))
            call.mask = nullptr;
        call.logits = static_cast<float*>(runtime_.data(runtime_.output(context, 0, {shape[0], kept, vocabulary_})));
        check(doge_cpu_run(sequence->state.get(), &call, message, MESSAGE), message);
    }

   private:
    struct Aligned {
        void operator()(uint8_t* bytes) const { ::operator delete(bytes, std::align_val_t(64)); }
    };

    void check(doge_cpu_status status, const char* message) const {
        if (status == DOGE_CPU_BAD_ARGUMENT || status == DOGE_CPU_TOO_LONG) runtime_.fail(std::string("doge.Decoder: ") + message);
        if (status != DOGE_CPU_SUCCESS) throw Failure{runtime_.error(FAIL, std::string("doge.Decoder: ") + message)};
    }

    int64_t number(KernelContext* context, size_t index) const {
        const Value* value = runtime_.input(context, index);
        int64_t count = 1;
        for (const int64_t size : runtime_.shape(value)) count *= size;
        if (count != 1) runtime_.fail("doge.Decoder: input " + std::to_string(index) + " is not one number");
        return *static_cast<const int64_t*>(runtime_.data(value));
    }

    std::shared_ptr<Sequence> find(int64_t number) {
        const std::lock_guard<std::mutex> guard(lock_);
        std::shared_ptr<Sequence>& found = sequences_[number];
        if (found == nullptr) found = std::make_shared<Sequence>();
        found->used = ++clock_;
        const std::shared_ptr<Sequence> kept = found;
        if (sequences_.size() > MOST_SEQUENCES)
            sequences_.erase(std::min_element(sequences_.begin(), sequences_.end(), [](const auto& one, const auto& other) {
                return one.second->used < other.second->used;
            }));
        return kept;
    }

    const Runtime runtime_;
    std::unique_ptr<uint8_t, Aligned> copy_;
    std::unique_ptr<doge_cpu_model, ModelDelete> model_;
    int32_t cache_ = DOGE_CPU_FLOAT32;
    int64_t vocabulary_ = 0;
    std::mutex lock_;
    std::map<int64_t, std::shared_ptr<Sequence>> sequences_;  // goes before the model it is of
    uint64_t clock_ = 0;
};

struct Kernel {
    Runtime runtime;
    Decoder decoder;
};

Operator described() {
    Operator op{};
    op.interface = INTERFACE;
    op.name = [](const Operator*) { return "Decoder"; };
    op.provider = [](const Operator*) { return "CPUExecutionProvider"; };
    op.input_count = [](const Operator*) -> size_t { return INPUTS; };
    op.input_type = [](const Operator*, size_t index) -> int { return index == WEIGHTS ? UINT8 : INT64; };
    op.output_count = [](const Operator*) -> size_t { return 1; };
    op.output_type = [](const Operator*, size_t) -> int { return FLOAT; };
    op.input_kind = op.output_kind = op.input_memory = [](const Operator*, size_t) { return 0; };  // required; of the CPU
    op.least_variadic_inputs = op.alike_variadic_inputs = [](const Operator*) { return 0; };
    op.least_variadic_outputs = op.alike_variadic_outputs = [](const Operator*) { return 0; };
    op.first_version = [](const Operator*) { return 1; };
    op.last_version = [](const Operator*) { return INT32_MAX; };
    op.create = [](const Operator*, Table* table, const KernelInfo* info, void** kernel) {
        const Runtime runtime(table);
        return guarded(runtime, [&] { *kernel = new Kernel{runtime, {runtime, info}}; });
    };
    op.compute = [](void* kernel, KernelContext* context) {
        Kernel* self = static_cast<Kernel*>(kernel);
        return guarded(self->runtime, [&] { self->decoder.compute(context); });
    };
    op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    return op;
}

}  // namespace

const Operator* decoder_operator() {
    static const Operator op = described();
    return &op;
}

}  // namespace doge::ort
