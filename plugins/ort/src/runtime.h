// What of onnxruntime's C interface the operator calls, declared here in our own words; nothing of onnxruntime is linked.
//
// onnxruntime hands out a table of functions that only ever grows at its end, so a function is known by its place in it and
// its arguments. All of these are there since interface 17 (onnxruntime 1.17) or earlier.
#pragma once
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace doge::ort {

constexpr uint32_t INTERFACE = 17;

// Things of onnxruntime, which only it looks into.
struct Status;
struct Value;
struct Shape;
struct Options;
struct Domain;
struct KernelInfo;
struct KernelContext;
using Table = void* const;

struct Base {
    Table* (*table)(uint32_t interface);
    const char* (*version)();
};

enum ElementType : int { FLOAT = 1, UINT8 = 2, INT64 = 7 };
enum ErrorCode : int { FAIL = 1, INVALID_ARGUMENT = 2 };

// A description of an operator, as onnxruntime reads it; the order is that of its interface.
struct Operator {
    uint32_t interface;
    void* (*create_old)(const Operator*, Table*, const KernelInfo*);
    const char* (*name)(const Operator*);
    const char* (*provider)(const Operator*);
    int (*input_type)(const Operator*, size_t);
    size_t (*input_count)(const Operator*);
    int (*output_type)(const Operator*, size_t);
    size_t (*output_count)(const Operator*);
    void (*compute_old)(void*, KernelContext*);
    void (*destroy)(void*);
    int (*input_kind)(const Operator*, size_t);
    int (*output_kind)(const Operator*, size_t);
    int (*input_memory)(const Operator*, size_t);
    int (*least_variadic_inputs)(const Operator*);
    int (*alike_variadic_inputs)(const Operator*);
    int (*least_variadic_outputs)(const Operator*);
    int (*alike_variadic_outputs)(const Operator*);
    Status* (*create)(const Operator*, Table*, const KernelInfo*, void** kernel);
    Status* (*compute)(void* kernel, KernelContext*);
    Status* (*infer_shapes)(const Operator*, void*);
    int (*first_version)(const Operator*);
    int (*last_version)(const Operator*);
    void* later[4];  // of interface 18
};

// Thrown by what fails; `guarded` gives the Status back to onnxruntime.
struct Failure {
    Status* status;
};

// Calls of the table.
class Runtime {
   public:
    explicit Runtime(Table* table) : table_(table) {}

    Status* error(ErrorCode code, const std::string& text) const {
        return at<Status* (*)(int, const char*)>(0)(code, text.c_str());
    }
    [[noreturn]] void fail(const std::string& text) const { throw Failure{error(INVALID_ARGUMENT, text)}; }

    Domain* domain(const char* name) const {
        Domain* made = nullptr;
        check(at<Status* (*)(const char*, Domain**)>(26)(name, &made));
        return made;
    }
    void add(Domain* domain, const Operator* op) const { check(at<Status* (*)(Domain*, const Operator*)>(27)(domain, op)); }
    void add(Options* options, Domain* domain) const { check(at<Status* (*)(Options*, Domain*)>(28)(options, domain)); }

    void* data(const Value* value) const {
        void* found = nullptr;
        check(at<Status* (*)(const Value*, void**)>(51)(value, &found));
        return found;
    }
    std::vector<int64_t> shape(const Value* value) const {
        Shape* info = nullptr;
        check(at<Status* (*)(const Value*, Shape**)>(65)(value, &info));
        size_t rank = 0;
        Status* status = at<Status* (*)(const Shape*, size_t*)>(61)(info, &rank);
        std::vector<int64_t> sizes(rank);
        if (status == nullptr) status = at<Status* (*)(const Shape*, int64_t*, size_t)>(62)(info, sizes.data(), rank);
        at<void (*)(Shape*)>(99)(info);
        check(status);
        return sizes;
    }

    // An attribute of the node; `otherwise` where it has none.
    int64_t attribute(const KernelInfo* info, const char* name, int64_t otherwise) const {
        int64_t value = 0;
        Status* status = at<Status* (*)(const KernelInfo*, const char*, int64_t*)>(86)(info, name, &value);
        if (status == nullptr) return value;
        at<void (*)(Status*)>(93)(status);
        return otherwise;
    }
    // An input that is an initializer; null where it is computed.
    const Value* constant(const KernelInfo* info, size_t index) const {
        int is_constant = 0;
        const Value* value = nullptr;
        check(at<Status* (*)(const KernelInfo*, size_t, int*, const Value**)>(249)(info, index, &is_constant, &value));
        return is_constant != 0 ? value : nullptr;
    }
    const Value* input(KernelContext* context, size_t index) const {
        const Value* value = nullptr;
        check(at<Status* (*)(const KernelContext*, size_t, const Value**)>(90)(context, index, &value));
        return value;
    }
    Value* output(KernelContext* context, size_t index, const std::vector<int64_t>& sizes) const {
        Value* value = nullptr;
        check(at<Status* (*)(KernelContext*, size_t, const int64_t*, size_t, Value**)>(91)(context, index, sizes.data(),
                                                                                           sizes.size(), &value));
        return value;
    }

   private:
    template <class Function>
    Function at(size_t place) const {
        return reinterpret_cast<Function>(table_[place]);
    }
    static void check(Status* status) {
        if (status != nullptr) throw Failure{status};
    }

    Table* table_;
};

// Runs `work` and returns null, or the Status of what it throws.
template <class Work>
Status* guarded(const Runtime& runtime, Work work) {
    try {
        work();
        return nullptr;
    } catch (const Failure& failure) {
        return failure.status;
    } catch (const std::exception& error) {
        return runtime.error(FAIL, error.what());
    } catch (...) {
        return runtime.error(FAIL, "an unknown error");
    }
}

}  // namespace doge::ort
