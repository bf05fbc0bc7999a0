#include "kernels/forbid.h"

#include "pool.h"
#include "simd.h"

namespace octavo {
namespace OCTAVO_ISA {

constexpr int64_t kWordBits = 32;

// x[0 .. count), count <= 32: -inf where the bit of `word` is 0. Most words are all or nothing.
OCTAVO_INLINE void forbid_word(float* x, uint32_t word, int64_t count) {
    if (word == ~uint32_t(0)) return;
    if (word == 0) {
        for (int64_t i = 0; i < count; ++i) x[i] = -INFINITY;
        return;
    }
    for (int64_t i = 0; i < count; ++i) x[i] = word >> i & 1 ? x[i] : -INFINITY;
}

static void forbid_row(float* x, int64_t vocab, const uint32_t* mask, int64_t num_words) {
    int64_t from = 0;
    for (int64_t i = 0; i < num_words && from + kWordBits <= vocab; ++i, from += kWordBits)
        forbid_word(x + from, mask[i], kWordBits);
    if (from < vocab && from / kWordBits < num_words) {  // the vocabulary ends within a word
        forbid_word(x + from, mask[from / kWordBits], vocab - from);
        return;
    }
    for (; from < vocab; ++from) x[from] = -INFINITY;
}

static void forbid(const ForbidArgs& a) {
    parallel_for(a.num_masks, [&](int64_t i, int) {
        forbid_row(a.logits + a.rows[i] * a.vocab, a.vocab, a.masks + i * a.num_words, a.num_words);
    });
}

extern const ForbidKernels forbid_kernels = {forbid};

}  // namespace OCTAVO_ISA
}  // namespace octavo
