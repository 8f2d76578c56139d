/* The operators of domain `doge`, as plain C: no TensorRT, no torch, no C++.
 *
 * Symbols: B batch, S new tokens, P tokens cached, T = P + S, C capacity of a cache row, Hq query heads, Hkv key/value
 * heads, Hs score heads (1, Hkv or Hq), D head size, H hidden size, w keep_window_size, R routing heads, K keys of a
 * routing half, E experts, k experts per token.
 *
 * Every tensor is contiguous, last axis fastest, and aligned to 16 bytes. Scores are float32 whatever the type of the
 * rest.
 */
#ifndef DOGE_OPERATORS_H
#define DOGE_OPERATORS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
/* Visible from a shared library that means to export them; its version script decides. */
#pragma GCC visibility push(default)

typedef enum { DOGE_FLOAT32 = 0, DOGE_FLOAT16 = 1, DOGE_BFLOAT16 = 2 } doge_dtype;

/* 0 is success; a positive value is a cudaError_t. */
typedef enum {
    DOGE_SUCCESS = 0,
    DOGE_BAD_SHAPE = -1,      /* sizes that no Doge has, or that the kernels do not cover; see doge_*_problem */
    DOGE_BAD_WORKSPACE = -2,  /* smaller than doge_*_workspace_bytes, or not aligned to 256 bytes */
    DOGE_NO_KERNELS = -3      /* built without CUDA */
} doge_status;

/* The lowest finite float32: the score of a token that must not be seen. */
#define DOGE_NEG (-3.402823466e+38f)

/* DynamicMaskAttention over a cache of fixed capacity.
 *
 * Row b holds past_lengths[b] = P tokens. New token i of that row stands at P + i and sees the keys j <= P + i;
 * beyond w of them it sees the w of highest score, of equal ones those of lower place. logit = scale <q, k> + score;
 * softmax and both sums in float32. Lengths are read where the work is done, never by the host, so that a launch can
 * be captured in a graph.
 *
 * past and present caches may be the same memory (written in place, the rule) or not (then the P live tokens are
 * copied first). Slots beyond the tokens of a row are neither read nor written. Keys that would land beyond the
 * capacity are not stored, and what the row gives is then unspecified.
 *
 * Rows that are shorter than S are padded on the right; new_lengths counts the real tokens. Padding is not stored,
 * and its output is some finite number.
 *
 * Unbounded (slots = NULL): slot j holds token j. No token sees what comes after it, so without new_lengths too the
 * real ones come out right, if the caller counts only them into the next past_lengths.
 *
 * Bounded (slots given; Hs = Hkv, 0 < w = C): a row keeps its w best keys in any order, and past_slots /
 * present_slots [B, Hkv, C] tell the place in the text of each. The slots in use are the first min(P, C). A new key
 * takes the next free one, or the slot of the worst key if it is better than that, of equal scores the one of higher
 * place being worse; after several new tokens the keys are the best, in any order. past_lengths counts all tokens
 * read so far, so P may exceed C.
 */
typedef struct {
    int32_t batch;            /* B */
    int32_t new_tokens;       /* S */
    int32_t capacity;         /* C */
    int32_t num_heads;        /* Hq */
    int32_t num_kv_heads;     /* Hkv */
    int32_t num_score_heads;  /* Hs */
    int32_t head_size;        /* D */
    int32_t keep_window_size; /* w; 0 keeps every key */
    float scale;
    doge_dtype dtype;            /* of query, key, value, the caches and the output */
    const void* query;           /* [B, S, Hq * D] */
    const void* key;             /* [B, S, Hkv * D] */
    const void* value;           /* [B, S, Hkv * D] */
    const float* score;          /* [B, S, Hs] */
    const void* past_key;        /* [B, Hkv, C, D] */
    const void* past_value;      /* [B, Hkv, C, D] */
    const float* past_score;     /* [B, Hs, C] */
    const int32_t* past_lengths; /* [B] */
    const int32_t* new_lengths;  /* [B], 0 to S, or NULL: S for every row */
    const int32_t* past_slots;   /* [B, Hkv, C], or NULL: unbounded */
    void* output;                /* [B, S, Hq * D] */
    void* present_key;           /* [B, Hkv, C, D] */
    void* present_value;         /* [B, Hkv, C, D] */
    float* present_score;        /* [B, Hs, C] */
    int32_t* present_slots;      /* [B, Hkv, C], or NULL: unbounded */
} doge_attention_params;

/* DynamicMaskAttention and what stands between the projections and it, over caches of either kind.
 *
 * `projected` holds, of every new token, its queries, then its keys, then its values. Of a query and a key each head is
 * normalised, x / sqrt(mean(x^2) + epsilon) * norm, where norms are given, then rotated: the pair (x[n], x[D/2 + n]) by
 * the angle of cos[n] and sin[n]; both in float32, and then rounded to the type once. The score of a key is
 * rate * softplus(<weight, source>), or its exponential, in float32. These are what `attention` takes as query, key,
 * value and score.
 */
typedef struct {
    doge_attention_params attention; /* query, key, value and score are not read */
    int32_t num_score_inputs;        /* X */
    int32_t exponential_score;       /* 1: exp(rate * softplus(...)); 0: rate * softplus(...) */
    float epsilon;                   /* of the norms */
    const void* projected;           /* [B, S, (Hq + 2 Hkv) * D] */
    const float* score_source;       /* [B, S, X] */
    const float* score_weight;       /* [Hs, X] */
    const float* score_rate;         /* [Hs] */
    const float* cos;                /* [B, S, D / 2] */
    const float* sin;                /* [B, S, D / 2] */
    const float* query_norm;         /* [D], or NULL: queries and keys are not normalised */
    const float* key_norm;           /* [D], or NULL */
} doge_fused_attention_params;

/* CDMoE: the routed part, sum over routing heads and picks of silu(<down[e], hidden>) * weight * up[e].
 * The k best of x[a] + y[b], added in float32, over all pairs, lower a * K + b first among equals; weights are their
 * softmax in float32.
 */
typedef struct {
    int32_t tokens;              /* B * S */
    int32_t hidden_size;         /* H */
    int32_t num_experts;         /* E >= K * K */
    int32_t num_keys;            /* K */
    int32_t num_routing_heads;   /* R */
    int32_t num_experts_per_tok; /* k <= K * K */
    int32_t weights_inside;      /* 1: silu(product * weight), the first generation; 0: silu(product) * weight */
    int32_t score_stride;        /* numbers from the scores of a token to those of the next; 0: R * K */
    doge_dtype dtype;            /* of hidden, the tables and the output */
    const void* hidden;          /* [tokens, H] */
    const float* scores_x;       /* [tokens, R, K] */
    const float* scores_y;       /* [tokens, R, K] */
    const void* down_embed;      /* [E, H] */
    const void* up_embed;        /* [E, H] */
    void* output;                /* [tokens, H] */
} doge_cdmoe_params;

/* What is wrong with the sizes, or with them for the kernels, in one line for people; NULL where nothing is. Pointers
 * are not followed; whether slots are given tells bounded from unbounded. The line is the thread's until it asks again.
 */
const char* doge_attention_problem(const doge_attention_params* params);
const char* doge_fused_attention_problem(const doge_fused_attention_params* params);
const char* doge_cdmoe_problem(const doge_cdmoe_params* params);

/* Scratch memory the kernels need: depends on sizes alone and never shrinks when one of them grows. */
size_t doge_attention_workspace_bytes(const doge_attention_params* params);
size_t doge_fused_attention_workspace_bytes(const doge_fused_attention_params* params);
size_t doge_cdmoe_workspace_bytes(const doge_cdmoe_params* params);

/* On the GPU: device pointers, a cudaStream_t. Neither allocates nor waits. */
int doge_attention(const doge_attention_params* params, void* workspace, size_t workspace_bytes, void* stream);
int doge_fused_attention(const doge_fused_attention_params* params, void* workspace, size_t workspace_bytes,
                         void* stream);
int doge_cdmoe(const doge_cdmoe_params* params, void* workspace, size_t workspace_bytes, void* stream);

/* On the CPU: host pointers, sums in double. The definition the kernels are tested against. */
int doge_attention_reference(const doge_attention_params* params);
int doge_fused_attention_reference(const doge_fused_attention_params* params);
int doge_cdmoe_reference(const doge_cdmoe_params* params);

const char* doge_status_message(int status);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
