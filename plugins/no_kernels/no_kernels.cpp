// The functions of the kernels where there is no CUDA compiler: they say so, and nothing else is missing.
#include "doge/operators.h"

size_t doge_attention_workspace_bytes(const doge_attention_params*) { return 0; }
size_t doge_fused_attention_workspace_bytes(const doge_fused_attention_params*) { return 0; }
size_t doge_cdmoe_workspace_bytes(const doge_cdmoe_params*) { return 0; }

int doge_attention(const doge_attention_params*, void*, size_t, void*) { return DOGE_NO_KERNELS; }
int doge_fused_attention(const doge_fused_attention_params*, void*, size_t, void*) { return DOGE_NO_KERNELS; }
int doge_cdmoe(const doge_cdmoe_params*, void*, size_t, void*) { return DOGE_NO_KERNELS; }
