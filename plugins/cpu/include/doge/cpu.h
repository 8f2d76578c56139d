/* A Doge on a CPU: the whole decoder, from token ids to logits, as plain C.
 *
 * In order of use:
 *   weights   doge_cpu_plan lays a weight file out, doge_cpu_write_header begins it, doge_cpu_pack fills in each piece
 *   model     doge_cpu_open checks a file in memory (mapped, as a rule) and starts threads; it never changes afterwards
 *   state     doge_cpu_state_create makes the caches of a batch of sequences of one model
 *   run       doge_cpu_run reads new tokens behind those of a state, doge_cpu_run_together behind those of several
 *
 * Symbols: B batch, S new tokens, P tokens read before, H hidden size, V vocabulary size, D head size, N rows and K
 * columns of a matrix.
 *
 * Every function that can fail returns a doge_cpu_status (or 0 in place of a size) and writes one line about it to
 * `message`, cut to message_bytes and always ended by a zero; message may be null. Nothing is thrown and nothing aborts.
 */
#ifndef DOGE_CPU_H
#define DOGE_CPU_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
/* What the library exports of this header; sources.json defines DOGE_CPU_BUILD. */
#if defined(_WIN32) && defined(DOGE_CPU_BUILD)
#define DOGE_CPU_API __declspec(dllexport)
#elif defined(__GNUC__) && !defined(_WIN32)
#define DOGE_CPU_API __attribute__((visibility("default")))
#else
#define DOGE_CPU_API
#endif

/* Of these functions and structs; a caller built for another number must not call anything else. */
#define DOGE_CPU_INTERFACE 3
/* Of weight files. A file of another version is refused; make it anew. */
#define DOGE_CPU_LAYOUT 1

typedef enum {
    DOGE_CPU_SUCCESS = 0,
    DOGE_CPU_BAD_FILE = 1,      /* no weight file, damaged, or of another layout version */
    DOGE_CPU_UNSUPPORTED = 2,   /* a model, size or instruction set that this library does not have */
    DOGE_CPU_BAD_ARGUMENT = 3,
    DOGE_CPU_TOO_LONG = 4,      /* the sequence outgrows the state's maximum length */
    DOGE_CPU_NO_MEMORY = 5
} doge_cpu_status;

/* ---- the library ---- */

DOGE_CPU_API int32_t doge_cpu_interface(void); /* DOGE_CPU_INTERFACE */
DOGE_CPU_API int32_t doge_cpu_layout(void);    /* DOGE_CPU_LAYOUT */
/* Instruction sets of this library in ascending order of preference, separated by spaces: "plain avx2 avx512vnni". */
DOGE_CPU_API const char* doge_cpu_instruction_sets(void);
/* Those of them that this processor has, likewise; the last is what doge_cpu_open takes by default. */
DOGE_CPU_API const char* doge_cpu_usable_instruction_sets(void);

/* ---- weight files ----
 *
 * Little-endian:
 *   doge_cpu_header
 *   doge_cpu_piece [piece_count], in ascending order of layer, role and first row
 *   the pieces, each at its offset, a multiple of 64, zeros between them
 *
 * How a piece is stored follows from its role (see doge_cpu_role), kind and block:
 *   vector       float32, padded with zeros to a multiple of 16
 *   interleaved  16 rows together, rows padded to a multiple of 16. Floats: for each column 16 values. Codes: for each
 *                block of columns all its codes, in pieces of 64 bytes of 16 rows times 4 columns (int8), or times 8
 *                columns (int4: columns 0 to 3 in the low halves, 4 to 7 in the high), then 16 float32 scales
 *   rows         row after row, each padded to a multiple of 64 bytes. Floats: padded with zeros to a multiple of 16.
 *                Codes: all of the row's (int4: 16 columns in 8 bytes, columns 0 to 7 in the low halves, 8 to 15 in the
 *                high), then a float32 scale for each block
 * Only doge_cpu_pack needs to know.
 */
typedef enum {
    DOGE_CPU_INT4 = 4,      /* codes 0 to 15, weight = scale * (code - 8) */
    DOGE_CPU_INT8 = 8,      /* codes 0 to 255, weight = scale * (code - 128) */
    DOGE_CPU_FLOAT16 = 16,
    DOGE_CPU_BFLOAT16 = 17,
    DOGE_CPU_FLOAT32 = 32
} doge_cpu_kind;

/* Rows x columns of each. A matrix may come in parts of several kinds: pieces of one role and layer with their
 * first_row, in order and without a gap, each but the last of a multiple of 16 rows. Vectors are FLOAT32, of one row. */
typedef enum {
    /* of the model: layer = -1 */
    DOGE_CPU_EMBEDDING = 1,        /* [V, H] rows; left out where the head is tied to it: the head's rows are read */
    DOGE_CPU_HEAD = 2,             /* [V, H] interleaved; left out by a model without logits (then EMBEDDING is needed) */
    DOGE_CPU_FINAL_NORM = 3,       /* vector [H] */
    DOGE_CPU_ROPE = 4,             /* vector [D / 2]: radians per position */
    DOGE_CPU_ROPE_LONG = 5,        /* vector [D / 2], DOGE_CPU_ROPE_LONGROPE alone: beyond rope_trained_length */
    /* of every layer */
    DOGE_CPU_INPUT_NORM = 16,      /* vector [H] */
    DOGE_CPU_QUERY = 17,           /* [heads * D, H] interleaved */
    DOGE_CPU_KEY = 18,             /* [kv heads * D, H] interleaved */
    DOGE_CPU_VALUE = 19,           /* [kv heads * D, H] interleaved */
    DOGE_CPU_QUERY_BIAS = 20,      /* vectors, each optional */
    DOGE_CPU_KEY_BIAS = 21,
    DOGE_CPU_VALUE_BIAS = 22,
    DOGE_CPU_QUERY_NORM = 23,      /* vectors [D]; both or neither */
    DOGE_CPU_KEY_NORM = 24,
    DOGE_CPU_SCORE = 25,           /* dt_proj [score heads, kv heads * D] interleaved, of values */
    DOGE_CPU_SCORE_OF_INPUT = 26,  /* or its product with the value projection [score heads, H] interleaved */
    DOGE_CPU_SCORE_BIAS = 27,      /* vector [score heads], optional; of the product: the product's */
    DOGE_CPU_SCORE_A = 28,         /* vector [score heads] */
    DOGE_CPU_OUTPUT = 29,          /* [H, heads * D] interleaved */
    DOGE_CPU_OUTPUT_BIAS = 30,     /* vector [H], optional */
    DOGE_CPU_INPUT_RESIDUAL = 31,  /* vector [H], optional */
    DOGE_CPU_POST_NORM = 32,       /* vector [H] */
    DOGE_CPU_GATE = 33,            /* [I, H] interleaved */
    DOGE_CPU_UP = 34,              /* [I, H] interleaved */
    DOGE_CPU_DOWN = 35,            /* [H, I] interleaved */
    DOGE_CPU_GATE_BIAS = 36,       /* vectors, each optional */
    DOGE_CPU_UP_BIAS = 37,
    DOGE_CPU_DOWN_BIAS = 38,
    DOGE_CPU_POST_RESIDUAL = 39,   /* vector [H], optional */
    /* of every layer of a mixture of experts: E experts, n = floor(sqrt(E)) keys of a routing half */
    DOGE_CPU_ROUTER = 48,          /* [2 n, H] interleaved */
    DOGE_CPU_ROUTER_BIAS = 49,     /* vector [2 n], optional */
    DOGE_CPU_EXPERT_DOWN = 50,     /* [E, H] rows */
    DOGE_CPU_EXPERT_UP = 51        /* [E, H] rows */
} doge_cpu_role;

typedef enum {
    DOGE_CPU_SCORE_EXP = 0,    /* exp(A * softplus(dt)) */
    DOGE_CPU_SCORE_LINEAR = 1, /* A * softplus(dt) */
    DOGE_CPU_SCORE_NONE = 2    /* 0 */
} doge_cpu_score;

typedef enum {
    DOGE_CPU_ROPE_FIXED = 0,   /* the frequencies do not depend on the length: default, linear, yarn, llama3, ... */
    DOGE_CPU_ROPE_DYNAMIC = 1, /* dynamic NTK beyond rope_trained_length */
    DOGE_CPU_ROPE_LONGROPE = 2 /* other frequencies beyond rope_trained_length */
} doge_cpu_rope;

typedef enum {
    DOGE_CPU_DENSE = 0,
    DOGE_CPU_MOE_PER_TOKEN = 1, /* CDMoE of M7's router, every token by its own scores */
    DOGE_CPU_MOE_REFERENCE = 2  /* and as published: the scores of a call's tokens, B * S of them, mix */
} doge_cpu_moe;

/* What the model is. Zeros where a field has no meaning. */
typedef struct {
    int32_t vocab_size;
    int32_t hidden_size;
    int32_t intermediate_size;
    int32_t num_hidden_layers;
    int32_t num_attention_heads;
    int32_t num_key_value_heads;
    int32_t head_dim;            /* even, at most 256 */
    int32_t score_heads;         /* divides num_attention_heads; 1 without scores */
    int32_t keep_window_size;    /* 0 keeps every key */
    int32_t max_length;          /* the longest sequence (cached and new, padding too) of any state */
    int32_t score;               /* doge_cpu_score */
    int32_t rope;                /* doge_cpu_rope */
    int32_t moe;                 /* doge_cpu_moe */
    int32_t num_experts;
    int32_t num_experts_per_tok;
    float rms_norm_eps;
    float rope_attention_factor; /* of cosines and sines; 1 as a rule */
    float rope_theta;            /* these four for DYNAMIC: theta, factor, */
    float rope_factor;
    int32_t rope_trained_length; /* (for LONGROPE too) the length beyond which frequencies change, */
    int32_t rope_max_positions;  /* and what the formula divides the length by */
    int32_t reserved[11];
} doge_cpu_config;

typedef struct {
    int32_t role;      /* doge_cpu_role */
    int32_t layer;     /* -1 for pieces of the model */
    int32_t first_row; /* of the matrix that this is a part of; 0 as a rule */
    int32_t rows;
    int32_t columns;
    int32_t kind;      /* doge_cpu_kind */
    int32_t block;     /* codes that share a scale: 16, 32, 64 or 128, a divisor of columns; 0 for floats */
    int32_t reserved;
    uint64_t offset;   /* from the file's beginning; doge_cpu_plan sets both */
    uint64_t bytes;
} doge_cpu_piece;

typedef struct {
    char magic[8];             /* "DOGE.CPU" */
    uint32_t layout;           /* DOGE_CPU_LAYOUT */
    uint32_t piece_count;
    uint64_t file_bytes;
    uint64_t checksum;         /* of header and pieces with this field 0: FNV-1a of 64 bits */
    uint8_t source[32];        /* whatever the writer wants to know again, such as the hash of what it read */
    doge_cpu_config config;
} doge_cpu_header;

/* Sets offset and bytes of every piece and returns the size of the file; 0 where the pieces are not those of the model.
 */
DOGE_CPU_API uint64_t doge_cpu_plan(const doge_cpu_config* config, doge_cpu_piece* pieces, uint32_t piece_count,
                                    char* message, size_t message_bytes);

/* Writes header and pieces to `file`, which holds the planned size; source may be null (zeros). */
DOGE_CPU_API doge_cpu_status doge_cpu_write_header(const doge_cpu_config* config, const doge_cpu_piece* pieces,
                                                   uint32_t piece_count, const uint8_t source[32], void* file,
                                                   uint64_t file_bytes, char* message, size_t message_bytes);

/* Packs the weights of one planned piece into `out`, piece->bytes bytes.
 *
 * values   [rows, columns] float32, contiguous: of float kinds; of codes too where codes is null: then they are rounded
 *          to the nearest, the largest of each block to the last code
 * codes    [rows, columns], one a byte; scales [rows, columns / block] float32
 */
DOGE_CPU_API doge_cpu_status doge_cpu_pack(const doge_cpu_piece* piece, const float* values, const uint8_t* codes,
                                           const float* scales, void* out, char* message, size_t message_bytes);

/* ---- the model ---- */

typedef struct doge_cpu_model doge_cpu_model;

enum {
    DOGE_CPU_COPY = 1,  /* copy the weights to memory of large pages; else `file` must outlive the model */
    DOGE_CPU_SCREEN = 2 /* keep an int8 copy of a float head, by which candidates are found in less time; exact */
};

/* `file` must be aligned to 64 bytes and must not change while the model lives. Everything in it is checked before it
 * is used, so that no file makes the library read outside it.
 *
 * threads          1 to 64, the caller's own among them
 * instruction_set  one of doge_cpu_usable_instruction_sets; null for the best
 * flags            DOGE_CPU_COPY, DOGE_CPU_SCREEN
 */
DOGE_CPU_API doge_cpu_status doge_cpu_open(const void* file, uint64_t file_bytes, int32_t threads,
                                           const char* instruction_set, uint32_t flags, doge_cpu_model** model,
                                           char* message, size_t message_bytes);
/* Makes what DOGE_CPU_SCREEN makes later on, between two runs: it takes as long as some tens of tokens, which a short answer
 * does not win back. Nothing where it is there, or the head is no float. */
DOGE_CPU_API doge_cpu_status doge_cpu_screen(doge_cpu_model* model, char* message, size_t message_bytes);
/* After all of its states. Null is allowed. */
DOGE_CPU_API void doge_cpu_close(doge_cpu_model* model);

DOGE_CPU_API const doge_cpu_header* doge_cpu_model_header(const doge_cpu_model* model);
DOGE_CPU_API const char* doge_cpu_model_instruction_set(const doge_cpu_model* model);
DOGE_CPU_API int32_t doge_cpu_model_threads(const doge_cpu_model* model);

/* ---- sequences ----
 *
 * A state belongs to one caller at a time; several states of a model may be used by several threads at once, and then
 * wait for each other. Caches grow as tokens come, 256 tokens at a time.
 */
typedef struct doge_cpu_state doge_cpu_state;

/* cache_kind: FLOAT32, or INT8 with one scale for each key and value. max_length: 0 for the model's. */
DOGE_CPU_API doge_cpu_status doge_cpu_state_create(const doge_cpu_model* model, int32_t batch, int32_t cache_kind,
                                                   int32_t max_length, doge_cpu_state** state, char* message,
                                                   size_t message_bytes);
DOGE_CPU_API void doge_cpu_state_destroy(doge_cpu_state* state); /* null is allowed */
DOGE_CPU_API int32_t doge_cpu_state_length(const doge_cpu_state* state); /* P, padding included */
DOGE_CPU_API uint64_t doge_cpu_state_bytes(const doge_cpu_state* state); /* memory of its caches now */
/* From now on an empty state's tokens see the `window` keys of highest score, 1 to keep_window_size (any number where that is
 * 0): an approximation of the model where it is less. */
DOGE_CPU_API doge_cpu_status doge_cpu_state_window(doge_cpu_state* state, int32_t window, char* message,
                                                   size_t message_bytes);
/* From now on an empty state keeps of every layer and head as many keys of highest score as its window has (of equal ones the
 * earlier), and for a while as many others, 64 to 512, or those of a longer piece of a prompt: its memory does not grow with
 * its length. Exact: a later token sees no other key. UNSUPPORTED without a window, with more score heads than key/value heads,
 * or with a router that mixes a call's tokens. */
DOGE_CPU_API doge_cpu_status doge_cpu_state_bound(doge_cpu_state* state, char* message, size_t message_bytes);
/* Keys that each layer and head holds: P, or fewer where keys were dropped. */
DOGE_CPU_API int32_t doge_cpu_state_slots(const doge_cpu_state* state);
/* Forgets all but the first `length` tokens. Once keys were dropped, that is 0 or P. */
DOGE_CPU_API doge_cpu_status doge_cpu_state_rewind(doge_cpu_state* state, int32_t length, char* message,
                                                   size_t message_bytes);
/* Copies the cache of one layer: keys (normalised and rotated) and values, each [B, kv heads, slots, D]. */
DOGE_CPU_API doge_cpu_status doge_cpu_state_copy(const doge_cpu_state* state, int32_t layer, float* keys, float* values,
                                                 char* message, size_t message_bytes);
/* A state's content as bytes, for a file: a state of the same model, batch and kind of cache, bounded or not, takes them on
 * a machine of the same byte order. Their number now. */
DOGE_CPU_API uint64_t doge_cpu_state_saved_bytes(const doge_cpu_state* state);
/* Writes the bytes. */
DOGE_CPU_API doge_cpu_status doge_cpu_state_save(const doge_cpu_state* state, void* out, uint64_t bytes, char* message,
                                                 size_t message_bytes);
/* Replaces the content by that of another state. After an error the state is as it was. */
DOGE_CPU_API doge_cpu_status doge_cpu_state_load(doge_cpu_state* state, const void* in, uint64_t bytes, char* message,
                                                 size_t message_bytes);

typedef struct {
    int32_t tokens;            /* S, at least 1 */
    int32_t logits_to_keep;    /* logits of the last so many tokens; 0 for all S */
    const int64_t* ids;        /* [B, S] */
    const int64_t* mask;       /* [B, S], 0 for padding; null: all are tokens */
    const int64_t* positions;  /* [B, S] for RoPE; null: the tokens of a row that are no padding count from 0 */
    float* logits;             /* [B, logits_to_keep, V]; null: not wanted */
    float* hidden;             /* [B, S, H] behind the final norm; null: not wanted */
    int32_t num_candidates;    /* C: the best tokens behind the last one of each row; 0: not wanted; at most V */
    int32_t reserved;
    int64_t* candidates;       /* [B, C] best first, of equal logits the lower id */
    float* candidate_logits;   /* [B, C] */
} doge_cpu_call;

/* Reads S tokens behind the P before, which then are P + S. After an error the state is as it was; or empty, where it is
 * bounded and memory ran out while it dropped keys or after it had, between two pieces of the call.
 * `model` is the one the state was created with. */
DOGE_CPU_API doge_cpu_status doge_cpu_run(doge_cpu_state* state, const doge_cpu_call* call, char* message,
                                          size_t message_bytes);

/* The same for several states of one model in one pass over its weights: calls[i] reads behind states[i]. They may differ
 * in everything: batch, length, new tokens, kind of cache, what is wanted. Each gets bit for bit what doge_cpu_run gives it,
 * but for prompts behind a bounded state, which are cut into other pieces, so that keys are dropped, and summed, by others.
 * Errors are as there; a state that is there twice is one. DOGE_CPU_MOE_REFERENCE mixes a call's
 * tokens, so that a model of it takes one state at a time (DOGE_CPU_UNSUPPORTED). */
DOGE_CPU_API doge_cpu_status doge_cpu_run_together(doge_cpu_state* const* states, const doge_cpu_call* calls, int32_t count,
                                                   char* message, size_t message_bytes);

#ifdef __cplusplus
}
#endif
#endif
