// The one function that onnxruntime looks for in a library of operators.
#include "decoder_op.h"

#if defined(_WIN32)
#define DOGE_EXPORTED __declspec(dllexport)
#else
#define DOGE_EXPORTED __attribute__((visibility("default")))
#endif

extern "C" DOGE_EXPORTED doge::ort::Status* RegisterCustomOps(doge::ort::Options* options, const doge::ort::Base* base) {
    doge::ort::Table* table = base->table(doge::ort::INTERFACE);
    if (table == nullptr) return nullptr;  // onnxruntime is older than 1.17, and will not find the operator
    const doge::ort::Runtime runtime(table);
    return doge::ort::guarded(runtime, [&] {
        // The domain is used by sessions for as long as the library is loaded.
        static doge::ort::Domain* const domain = [&] {
            doge::ort::Domain* made = runtime.domain("doge");
            runtime.add(made, doge::ort::decoder_operator());
            return made;
        }();
        runtime.add(options, domain);
    });
}
