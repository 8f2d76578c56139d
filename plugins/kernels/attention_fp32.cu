// Attention of float32 tensors.
#include "attention_launch.cuh"

namespace doge {

template int launch_decode<float>(const doge_attention_params&, const AttentionWorkspace&, cudaStream_t);
template int launch_prefill<float>(const doge_attention_params&, const AttentionWorkspace&, bool, cudaStream_t);

}  // namespace doge
