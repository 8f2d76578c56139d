// The launches of attention that depend on the storage type, each compiled in a file of its own (attention_fp16.cu,
// ...).
#ifndef DOGE_KERNELS_ATTENTION_LAUNCH_H
#define DOGE_KERNELS_ATTENTION_LAUNCH_H

#include "attention_workspace.h"

namespace doge {

// All return a cudaError_t and only enqueue. `selecting`: the workspace holds thresholds.
template <class T>
int launch_decode(const doge_attention_params& params, const AttentionWorkspace& workspace, cudaStream_t stream);
template <class T>
int launch_prefill(const doge_attention_params& params, const AttentionWorkspace& workspace, bool selecting,
                   cudaStream_t stream);

// What does not depend on the type (attention.cu): thresholds of many new tokens; the prefix into other caches; and the
// tokens that a bounded cache keeps of many.
int launch_thresholds(const doge_attention_params& params, const AttentionWorkspace& workspace, cudaStream_t stream);
int launch_copy_cache(const doge_attention_params& params, cudaStream_t stream);
int launch_replace(const doge_attention_params& params, const AttentionWorkspace& workspace, cudaStream_t stream);

// Attention of any type and length, over a workspace of its own plan (attention.cu).
int run_attention(const doge_attention_params& params, const AttentionWorkspace& workspace, cudaStream_t stream);

// Whether past and present caches are the same memory.
bool in_place(const doge_attention_params& params);

// Of the current device.
int multiprocessors();

// At most how many splits a decode launch uses: as many as make its blocks run all at the same time, where a
// multiprocessor has room for `blocks` of them, if they have the shared memory.
int decode_splits(const doge_attention_params& params, int blocks, int shared_bytes);

}  // namespace doge
#endif
