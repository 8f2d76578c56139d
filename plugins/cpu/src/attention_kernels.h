// Attention of a few queries over one page of keys: softmax(scale <q, k> + score) v, with the maximum and the sum carried
// from page to page (online softmax, https://arxiv.org/abs/1805.02867).
#pragma once

namespace doge::cpu {
namespace {

// What lies in a page for all of its queries.
struct Weights {
    alignas(64) float logits[MOST_QUERIES][PAGE];  // then exp(logit - largest)
    alignas(64) uint8_t codes[MOST_QUERIES][PAGE];  // of these times the value's scale, 0 to 127
    float scales[MOST_QUERIES][PAGE / KEY_BLOCK];
};

template <int M>
inline void logits_of_16(const Keys& keys, int g, const Query* query, const float* x, const int8_t* codes, size_t stride,
                         F* r) {
    if (!keys.int8) {
        float_tile<DOGE_CPU_FLOAT32, M>(keys.keys + size_t(g) * size_t(keys.width) * 64, keys.width, x, stride, r);
        return;
    }
    const uint8_t* p = keys.keys + size_t(g) * (size_t(keys.width) * 16 + 64);
    I acc[M];
    int32_t sums[M];
    for (int t = 0; t < M; t++) {
        acc[t] = splat_int(0);
        sums[t] = query[t].sum;
    }
    dots8<M>(p, keys.width / 4, codes, stride, sums, acc);
    const F scales = load(reinterpret_cast<const float*>(p + size_t(keys.width) * 16));
    for (int t = 0; t < M; t++) r[t] = mul(to_float(acc[t]), mul(scales, splat(query[t].scale)));
}

// Leaves out what the query must not see, among 16 keys from `place` on.
inline F masked(F logits, F scores, const Query& query, int place) {
    const F places = add(lanes(), splat(float(place)));
    F kept = select(greater(splat(float(query.limit)), places), logits, splat(MASKED));
    if (query.selects) {
        const F least = splat(query.least);
        const Mask tie = both(equal(scores, least), greater(splat(float(query.last + 1)), places));
        kept = select(either(greater(scores, least), tie), kept, splat(MASKED));
    }
    return kept;
}

// The largest logit of this page for each query, by the way.
template <int M>
inline void logits(const Keys& keys, Query* query, const float* x, const int8_t* codes, size_t stride, float (*out)[PAGE],
                   float* most) {
    F top[M];
    for (int t = 0; t < M; t++) top[t] = splat(MASKED);
    for (int g = 0; g * 16 < keys.count; g++) {
        F r[M];
        logits_of_16<M>(keys, g, query, x, codes, stride, r);
        const int place = keys.first + g * 16;
        for (int t = 0; t < M; t++) {
            const F scores = load(query[t].scores + g * 16);
            r[t] = max(add(r[t], scores), splat(MASKED));  // padding's score is lower still
            if (place + 16 > query[t].limit || query[t].selects) r[t] = masked(r[t], scores, query[t], place);
            top[t] = max(top[t], r[t]);
            store(out[t] + g * 16, r[t]);
        }
    }
    for (int t = 0; t < M; t++) most[t] = largest(top[t]);
}

// exp of the logits of one query, and what was gathered before brought to the new maximum. False where it sees none.
inline bool weigh(const Keys& keys, Query& query, float most, float* row) {
    const int count = keys.count;
    const float top = most > query.largest ? most : query.largest;
    if (!(most > MASKED * 0.5f)) return false;
    if (top > query.largest) {
        if (query.total > 0.0f) {
            const float factor = ::expf(query.largest - top);
            query.total *= factor;
            for (int d = 0; d < keys.width; d += 16) store(query.out + d, mul(load(query.out + d), splat(factor)));
        }
        query.largest = top;
    }
    F total = splat(0.0f);
    for (int k = 0; k < count; k += 16) {
        const F e = exp(sub(load(row + k), splat(top)));
        total = add(total, e);
        store(row + k, e);
    }
    query.total += sum(total);
    return true;
}

// Codes of the weights times the scales of their values. Keys beyond the last 16 get code 0.
inline void code_weights(const Keys& keys, const float* row, uint8_t* codes, float* scales) {
    for (int block = 0; block * KEY_BLOCK < keys.count; block++) {
        F w[KEY_BLOCK / 16], most = splat(0.0f);
        for (int i = 0; i < KEY_BLOCK / 16; i++) {
            const int k = block * KEY_BLOCK + i * 16;
            w[i] = k < keys.count ? mul(load(row + k), load(keys.value_scales + k)) : splat(0.0f);
            most = max(most, w[i]);
        }
        const float top = largest(most);
        const F inverse = splat(top > SMALLEST ? 127.0f / top : 0.0f);
        for (int i = 0; i < KEY_BLOCK / 16; i++)
            store_codes(reinterpret_cast<int8_t*>(codes) + block * KEY_BLOCK + i * 16, to_int(nearest(mul(w[i], inverse))));
        scales[block] = top / 127.0f;
    }
}

template <int M>
inline void add_int8_values(const Keys& keys, Query* query, const uint8_t (*codes)[PAGE],
                            const float (*scales)[PAGE / KEY_BLOCK]) {
    for (int block = 0; block * KEY_BLOCK < keys.count; block++) {
        const int left = keys.count - block * KEY_BLOCK;
        const int chunks = ((left < KEY_BLOCK ? left : KEY_BLOCK) + 3) / 4;
        for (int d = 0; d < keys.width; d += 16) {
            I acc[M];
            for (int t = 0; t < M; t++) acc[t] = splat_int(0);
            dots_values<M>(keys.values + (size_t(block) * size_t(keys.width) + size_t(d)) * KEY_BLOCK, chunks,
                           codes[0] + block * KEY_BLOCK, PAGE, acc);
            for (int t = 0; t < M; t++) {
                float* out = query[t].out + d;
                store(out, fma(to_float(acc[t]), splat(scales[t][block]), load(out)));
            }
        }
    }
}

template <int M>
inline void add_values(const Keys& keys, Query* query, const float (*weights)[PAGE]) {
    const float* values = reinterpret_cast<const float*>(keys.values);
    const size_t width = size_t(keys.width);
    for (size_t d = 0; d < width; d += 16) {
        F s[M];
        for (int t = 0; t < M; t++) s[t] = load(query[t].out + d);
        for (int k = 0; k < keys.count; k++) {
            const F v = load(values + size_t(k) * width + d);
            for (int t = 0; t < M; t++) s[t] = fma(v, splat(weights[t][k]), s[t]);
        }
        for (int t = 0; t < M; t++) store(query[t].out + d, s[t]);
    }
}

void attend(const Keys& keys, Query* queries, int n, const float* x, const int8_t* codes, size_t stride) {
    Weights w;
    each_tile<CODE_TILE>(0, n, [&](auto size, int first) {
        constexpr int M = decltype(size)::value;
        Query* query = queries + first;
        float most[M];
        const size_t start = size_t(first) * stride;
        logits<M>(keys, query, x == nullptr ? nullptr : x + start, codes == nullptr ? nullptr : codes + start, stride,
                  w.logits + first, most);
        for (int t = 0; t < M; t++) {
            float* row = w.logits[first + t];
            const bool seen = weigh(keys, query[t], most[t], row);
            if (!seen) {
                for (int k = 0; k < keys.count; k += 16) store(row + k, splat(0.0f));
            }
            if (keys.int8) code_weights(keys, row, w.codes[first + t], w.scales[first + t]);
        }
        if (keys.int8) add_int8_values<M>(keys, query, w.codes + first, w.scales + first);
        else add_values<M>(keys, query, w.logits + first);
    });
}

}  // namespace
}  // namespace doge::cpu
