// Attention of bfloat16 tensors.
#include "attention_launch.cuh"

namespace doge {

template int launch_decode<__nv_bfloat16>(const doge_attention_params&, const AttentionWorkspace&, cudaStream_t);
template int launch_prefill<__nv_bfloat16>(const doge_attention_params&, const AttentionWorkspace&, bool, cudaStream_t);

}  // namespace doge
