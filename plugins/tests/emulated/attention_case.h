// One case of DynamicMaskAttention for the emulated kernels: random tensors, the kernels run on them, and the
// comparison with doge_attention_reference.
//
// Everything that must not be read is NaN: slots beyond a row's tokens, padding tokens, the workspace, shared memory
// and the output before it is written.
#ifndef DOGE_TESTS_ATTENTION_CASE_H
#define DOGE_TESTS_ATTENTION_CASE_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "doge/operators.h"
#include "memory.h"
#include "testing.h"

// What attention is compiled for; a build for tests may have fewer.
#ifndef DOGE_HEAD_SIZES
#define DOGE_HEAD_SIZES 64, 80, 96, 128, 256
#define DOGE_FP16_HEAD_SIZES DOGE_HEAD_SIZES
#endif

namespace doge::emulation {

inline std::vector<int> head_sizes(doge_dtype dtype) {
    return dtype == DOGE_FLOAT16 ? std::vector<int>{DOGE_FP16_HEAD_SIZES} : std::vector<int>{DOGE_HEAD_SIZES};
}

struct AttentionCase {
    std::string name;
    doge_dtype dtype = DOGE_FLOAT16;
    int new_tokens = 1, capacity = 96;
    int num_heads = 2, num_kv_heads = 1, num_score_heads = 1;
    int head_size = 64, keep_window_size = 0;
    std::vector<int> past_lengths = {40};  // one a row of the batch
    std::vector<int> new_lengths = {};     // empty: NULL
    bool in_place = true;
    bool bounded = false;
    std::uint64_t seed = 1;
    // The score of a key by its place in the text; default: normal numbers, no two alike.
    std::function<float(int place, Random&)> score = [](int, Random& random) { return random.normal(); };
};

// A present cache may be the past one.
template <class T>
struct Caches {
    DeviceBuffer<T> key, value;
    DeviceBuffer<float> score;
    DeviceBuffer<std::int32_t> slots;
    Caches(std::size_t numbers, std::size_t scores) : key(numbers), value(numbers), score(scores), slots(scores) {}
};

template <class T>
class AttentionRun {
  public:
    explicit AttentionRun(const AttentionCase& c)
        : c_(c),
          batch_(static_cast<int>(c.past_lengths.size())),
          numbers_(std::size_t(batch_) * c.num_kv_heads * c.capacity * c.head_size),
          scores_(std::size_t(batch_) * c.num_score_heads * c.capacity),
          query_(std::size_t(batch_) * c.new_tokens * c.num_heads * c.head_size),
          key_(std::size_t(batch_) * c.new_tokens * c.num_kv_heads * c.head_size),
          value_(key_.size()),
          score_(std::size_t(batch_) * c.new_tokens * c.num_score_heads),
          past_lengths_(c.past_lengths),
          new_lengths_(c.new_lengths),
          past_(numbers_, scores_),
          output_(query_.size()) {
        fill();
    }

    // Runs the kernels under the current schedule and compares all that they wrote.
    void check(double bar, const std::string& where) {
        Caches<T> expected_past(numbers_, scores_), expected_present(numbers_, scores_);
        Caches<T> actual_past(numbers_, scores_), actual_present(numbers_, scores_);
        copy(past_, expected_past);
        copy(past_, actual_past);
        Caches<T>& expected = c_.in_place ? expected_past : expected_present;
        Caches<T>& actual = c_.in_place ? actual_past : actual_present;

        DeviceBuffer<T> expected_output(query_.size());
        doge_attention_params reference = params(expected_past, expected, expected_output);
        const std::string name = c_.name + ", " + where + ": ";
        CHECK(doge_attention_reference(&reference) == DOGE_SUCCESS, name + "the reference refuses");

        output_.poison();
        doge_attention_params p = params(actual_past, actual, output_);
        DeviceBuffer<char> own_workspace(doge_attention_workspace_bytes(&p) + 256, 256);
        DeviceBuffer<char>& workspace = workspace_ ? *workspace_ : own_workspace;
        const int status = doge_attention(&p, workspace.data(), workspace.size(), nullptr);
        CHECK(status == DOGE_SUCCESS, name + "status " + std::to_string(status));
        compare_outputs(expected_output, bar, name);
        for (int b = 0; b < batch_; ++b) {
            c_.bounded ? compare_bounded(expected, actual, b, name) : compare_unbounded(expected, actual, b, name);
        }
        if (!c_.in_place) {
            CHECK(same(past_.key, actual_past.key) && same(past_.value, actual_past.value) &&
                      same(past_.score, actual_past.score),
                  name + "the past cache was written");
        }
    }

    // Uses this workspace from now on.
    void share_workspace(DeviceBuffer<char>& workspace) { workspace_ = &workspace; }

  private:
    int real(int b) const { return c_.new_lengths.empty() ? c_.new_tokens : c_.new_lengths[b]; }
    int stored(int b) const { return std::min(c_.capacity, c_.past_lengths[b] + real(b)); }

    void fill() {
        Random random(c_.seed);
        for (T& x : values(query_)) x = T(random.normal());
        for (int b = 0; b < batch_; ++b) {
            for (int h = 0; h < c_.num_kv_heads; ++h) {
                for (int j = 0; j < std::min(c_.past_lengths[b], c_.capacity); ++j) {
                    for (int d = 0; d < c_.head_size; ++d) {
                        const std::size_t at =
                            ((std::size_t(b) * c_.num_kv_heads + h) * c_.capacity + j) * c_.head_size + d;
                        past_.key[at] = T(random.normal());
                        past_.value[at] = T(random.normal());
                    }
                }
            }
            for (int h = 0; h < c_.num_score_heads; ++h) fill_scores(b, h, random);
            for (int i = 0; i < real(b); ++i) {
                for (int n = 0; n < c_.num_kv_heads * c_.head_size; ++n) {
                    const std::size_t at = (std::size_t(b) * c_.new_tokens + i) * c_.num_kv_heads * c_.head_size + n;
                    key_[at] = T(random.normal());
                    value_[at] = T(random.normal());
                }
                for (int h = 0; h < c_.num_score_heads; ++h) {
                    score_[(std::size_t(b) * c_.new_tokens + i) * c_.num_score_heads + h] =
                        c_.score(c_.past_lengths[b] + i, random);
                }
            }
        }
    }

    // The cached scores; a bounded cache holds the best of its past, in any order.
    void fill_scores(int b, int h, Random& random) {
        struct Key {
            float score;
            int place;
        };
        std::vector<Key> keys;
        for (int j = 0; j < c_.past_lengths[b]; ++j) keys.push_back({c_.score(j, random), j});
        if (c_.bounded) {
            std::sort(keys.begin(), keys.end(),
                      [](Key a, Key b) { return a.score != b.score ? a.score > b.score : a.place < b.place; });
            if (keys.size() > std::size_t(c_.capacity)) keys.resize(c_.capacity);
            for (std::size_t i = keys.size(); i > 1; --i)
                std::swap(keys[i - 1], keys[random.below(static_cast<int>(i))]);
        }
        for (std::size_t j = 0; j < keys.size(); ++j) {
            const std::size_t at = (std::size_t(b) * c_.num_score_heads + h) * c_.capacity + j;
            past_.score[at] = keys[j].score;
            if (c_.bounded) past_.slots[at] = keys[j].place;
        }
    }

    struct Range {
        T *first, *last;
        T* begin() { return first; }
        T* end() { return last; }
    };
    static Range values(DeviceBuffer<T>& buffer) { return {buffer.data(), buffer.data() + buffer.size()}; }

    static void copy(const Caches<T>& from, Caches<T>& to) {
        std::memcpy(static_cast<void*>(to.key.data()), from.key.data(), from.key.size() * sizeof(T));
        std::memcpy(static_cast<void*>(to.value.data()), from.value.data(), from.value.size() * sizeof(T));
        std::memcpy(to.score.data(), from.score.data(), from.score.size() * 4);
        std::memcpy(to.slots.data(), from.slots.data(), from.slots.size() * 4);
    }
    template <class U>
    static bool same(const DeviceBuffer<U>& a, const DeviceBuffer<U>& b) {
        return std::memcmp(a.data(), b.data(), a.size() * sizeof(U)) == 0;
    }

    doge_attention_params params(Caches<T>& past, Caches<T>& present, DeviceBuffer<T>& output) {
        doge_attention_params p{};
        p.batch = batch_;
        p.new_tokens = c_.new_tokens;
        p.capacity = c_.capacity;
        p.num_heads = c_.num_heads;
        p.num_kv_heads = c_.num_kv_heads;
        p.num_score_heads = c_.num_score_heads;
        p.head_size = c_.head_size;
        p.keep_window_size = c_.keep_window_size;
        p.scale = 1.0f / std::sqrt(static_cast<float>(c_.head_size));
        p.dtype = c_.dtype;
        p.query = query_.data();
        p.key = key_.data();
        p.value = value_.data();
        p.score = score_.data();
        p.past_key = past.key.data();
        p.past_value = past.value.data();
        p.past_score = past.score.data();
        p.past_lengths = past_lengths_.data();
        p.new_lengths = c_.new_lengths.empty() ? nullptr : new_lengths_.data();
        p.past_slots = c_.bounded ? past.slots.data() : nullptr;
        p.output = output.data();
        p.present_key = present.key.data();
        p.present_value = present.value.data();
        p.present_score = present.score.data();
        p.present_slots = c_.bounded ? present.slots.data() : nullptr;
        return p;
    }

    // Every token by itself, so that no large output hides a wrong one; what padding gives must only be finite.
    void compare_outputs(const DeviceBuffer<T>& expected, double bar, const std::string& name) {
        const std::size_t row = std::size_t(c_.num_heads) * c_.head_size;
        double worst = 0;
        int worst_token = -1;
        for (int b = 0; b < batch_; ++b) {
            for (int i = 0; i < c_.new_tokens; ++i) {
                const std::size_t first = (std::size_t(b) * c_.new_tokens + i) * row;
                const bool specified = i < real(b) && (c_.bounded || c_.past_lengths[b] + i < c_.capacity);
                for (int h = 0; h < c_.num_heads; ++h) {
                    const T* from = output_.data() + first + std::size_t(h) * c_.head_size;
                    const T* to = expected.data() + first + std::size_t(h) * c_.head_size;
                    const std::vector<T> a(from, from + c_.head_size), e(to, to + c_.head_size);
                    const double error = specified ? norm_error(a, e) : norm_error(a, std::vector<T>(a)) * 0;
                    if (!(error <= worst)) {
                        worst = error;
                        worst_token = i;
                    }
                }
            }
        }
        CHECK(worst <= bar, name + "error " + std::to_string(worst) + " at token " + std::to_string(worst_token));
        worst_ = std::max(worst_, worst);
    }

    // Slot j holds token j, and beyond the tokens nothing is written.
    void compare_unbounded(const Caches<T>& expected, const Caches<T>& actual, int b, const std::string& name) {
        const std::size_t head = std::size_t(c_.capacity) * c_.head_size;
        bool good = true;
        for (int h = 0; h < c_.num_kv_heads; ++h) {
            const std::size_t at = (std::size_t(b) * c_.num_kv_heads + h) * head;
            good = good && std::memcmp(expected.key.data() + at, actual.key.data() + at, head * sizeof(T)) == 0;
            good = good && std::memcmp(expected.value.data() + at, actual.value.data() + at, head * sizeof(T)) == 0;
        }
        CHECK(good, name + "present keys or values differ");
        good = true;
        for (int h = 0; h < c_.num_score_heads; ++h) {
            const std::size_t at = (std::size_t(b) * c_.num_score_heads + h) * c_.capacity;
            good = good && std::memcmp(expected.score.data() + at, actual.score.data() + at, c_.capacity * 4) == 0;
        }
        CHECK(good, name + "present scores differ");
    }

    // The same keys in any order.
    void compare_bounded(const Caches<T>& expected, const Caches<T>& actual, int b, const std::string& name) {
        for (int h = 0; h < c_.num_kv_heads; ++h) {
            const std::size_t first = (std::size_t(b) * c_.num_kv_heads + h) * c_.capacity;
            const auto by_place = [&](const Caches<T>& caches) {
                std::vector<int> slots(stored(b));
                for (int j = 0; j < stored(b); ++j) slots[j] = j;
                std::sort(slots.begin(), slots.end(),
                          [&](int x, int y) { return caches.slots[first + x] < caches.slots[first + y]; });
                return slots;
            };
            const std::vector<int> left = by_place(expected), right = by_place(actual);
            bool good = true;
            for (int j = 0; j < stored(b) && good; ++j) {
                const std::size_t x = first + left[j], y = first + right[j];
                good = expected.slots[x] == actual.slots[y] && expected.score[x] == actual.score[y] &&
                       std::memcmp(&expected.key[x * c_.head_size], &actual.key[y * c_.head_size],
                                   c_.head_size * sizeof(T)) == 0 &&
                       std::memcmp(&expected.value[x * c_.head_size], &actual.value[y * c_.head_size],
                                   c_.head_size * sizeof(T)) == 0;
            }
            CHECK(good, name + "the bounded cache holds other keys, row " + std::to_string(b) + ", head " +
                            std::to_string(h));
        }
    }

  public:
    double worst() const { return worst_; }

  private:
    const AttentionCase& c_;
    const int batch_;
    const std::size_t numbers_, scores_;
    DeviceBuffer<T> query_, key_, value_;
    DeviceBuffer<float> score_;
    DeviceBuffer<std::int32_t> past_lengths_, new_lengths_;
    Caches<T> past_;
    DeviceBuffer<T> output_;
    DeviceBuffer<char>* workspace_ = nullptr;
    double worst_ = 0;
};

// The bars of issue 5.
inline double bar_of(doge_dtype dtype) { return dtype == DOGE_FLOAT32 ? 1e-5 : dtype == DOGE_FLOAT16 ? 2e-3 : 1.5e-2; }

template <class T>
void check_attention_as(const AttentionCase& c, const std::string& where) {
    AttentionRun<T> run(c);
    run.check(bar_of(c.dtype), where);
    if (std::getenv("DOGE_TEST_VERBOSE")) std::printf("%-60s %-10s %.2e\n", c.name.c_str(), where.c_str(), run.worst());
}

// Runs a case under the schedule that is set.
inline void check_attention(const AttentionCase& c, const std::string& where = "forward") {
    switch (c.dtype) {
        case DOGE_FLOAT32:
            return check_attention_as<float>(c, where);
        case DOGE_FLOAT16:
            return check_attention_as<__half>(c, where);
        default:
            return check_attention_as<__nv_bfloat16>(c, where);
    }
}

}  // namespace doge::emulation
#endif
