// doge.Decoder: all layers of a Doge, its head and its caches, as one operator.
#pragma once
#include "runtime.h"

namespace doge::ort {

// The description that is registered.
//
// Inputs
//   0 input_ids           int64 [B, S], new tokens
//   1 attention_mask      int64 [B, S], 0 for padding (on the left)
//   2 past_length         int64 [1], tokens before: 0 begins anew, less than the sequence holds forgets the rest
//   3 sequence            int64 [1], which of several sequences goes on; a number of the caller's choice
//   4 num_logits_to_keep  int64 [], of the last tokens; 0 for all
//   5 weights             uint8 [bytes], an initializer: a weight file of doge/cpu.h
// Output
//   0 logits              float [B, S or num_logits_to_keep, V]
// Attributes
//   threads      0: as many as suit the weights and the machine
//   cache_bits   32, or 8 with a scale for each key and value
//
// Keys and values stay in the operator, by `sequence`; of more than 32 sequences the one that waited longest is forgotten.
const Operator* decoder_operator();

}  // namespace doge::ort
