// The noise of a draw: Gumbel numbers, and the race that finds the token with the greatest sum of logit and noise.
//
// A token's noise is a function of (seed, position, token id) alone, the same bits at every instruction-set level and in
// ops/triton: Philox4x32-10 gives 32 bits, and what follows uses products and sums that are rounded one by one. The meaning
// is written in octavo/ops/reference_sampling.py.
#pragma once

#include "simd.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace octavo {
namespace OCTAVO_ISA {

// VW floats' worth of unsigned integers of 32 and 64 bits, and of signed ones.
typedef uint32_t vu __attribute__((vector_size(4 * VW)));
typedef uint64_t vq __attribute__((vector_size(4 * VW)));
typedef int32_t vi __attribute__((vector_size(4 * VW)));

// Lane by lane: the lower halves' product, in full.
OCTAVO_INLINE vq vq_mul_low(vq a, uint32_t b) {
#if defined(__AVX512F__)
    return (vq)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
    return (vq)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
    return (vq)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
    return (a & 0xffffffffu) * b;
#endif
}

// The key and the part of the counter that all tokens of a row share.
struct NoiseKey {
    uint64_t seed, position;
};

// Philox4x32-10 with the key `seed` and the counter (position, c, 0): the four words in the lower halves of `words`.
OCTAVO_INLINE void philox(vq c, const NoiseKey& key, vq* words) {
    const vq zero = {};
    vq x0 = zero + (key.position & 0xffffffffu), x1 = zero + (key.position >> 32), x2 = c, x3 = zero;
    uint32_t k0 = uint32_t(key.seed), k1 = uint32_t(key.seed >> 32);
    // The upper halves hold what is left of products: no step reads them.
    for (int round = 0; round < 10; ++round) {
        const vq a = vq_mul_low(x0, 0xD2511F53u), b = vq_mul_low(x2, 0xCD9E8D57u);
        x0 = (b >> 32) ^ x1 ^ k0;
        x1 = b;
        x2 = (a >> 32) ^ x3 ^ k1;
        x3 = a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    words[0] = x0;
    words[1] = x1;
    words[2] = x2;
    words[3] = x3;
}

// The same for VW counters.
OCTAVO_INLINE void philox(vu c, const NoiseKey& key, vu* words) {
    vq even[4], odd[4];
    philox((vq)c & 0xffffffffu, key, even);
    philox((vq)c >> 32, key, odd);
    for (int i = 0; i < 4; ++i) words[i] = (vu)((even[i] & 0xffffffffu) | odd[i] << 32);
}

// Where a token's bits are found: 64 tokens in a row share 16 counters, and token 16 w + i of them has word w of counter i.
constexpr int64_t kNoiseBlock = 64;
OCTAVO_INLINE uint32_t noise_counter(int32_t id) { return uint32_t(id / 64 * 16 + id % 16); }
OCTAVO_INLINE int noise_word(int32_t id) { return id / 16 % 4; }

// The counters of tokens id .. id + VW - 1; id is a multiple of VW.
OCTAVO_INLINE vu noise_counters(int32_t id) {
    vu c;
    for (int i = 0; i < VW; ++i) c[i] = noise_counter(id) + uint32_t(i);
    return c;
}

// ln(1 + f) + e ln(2) for 1 + f in [sqrt(1/2), sqrt(2)).
static float log_from_parts(float f, float e) {
    const float z = f * f;
    float p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    p = p * f * z;
    p = p - e * 2.12194440e-4f;
    p = p - z * 0.5f;
    return f + p + e * 0.693359375f;
}

// ln(x) of a normal number > 0.
static float log_of(float x) {
    const int32_t bits = int32_t(f32_bits(x));
    const int32_t e = (bits - 0x3f3504f3) >> 23;
    return log_from_parts(bits_f32(uint32_t(bits - e * (1 << 23))) - 1.0f, float(e));
}

// -ln(-ln(1 - v)) for v = (bits + 1/2) / 2^32: close to 0, v keeps its precision.
static float gumbel(uint32_t bits) {
    const float v = (float(bits) + 0.5f) * 0x1p-32f;
    const float exponential = bits < 0x40000000u ? -log_from_parts(-v, 0.0f) : -log_of((float(~bits) + 0.5f) * 0x1p-32f);
    return -log_of(exponential);
}

// No noise is greater: 33 ln(2) and a little.
constexpr float kMostNoise = 22.9f;

// The tokens that have entered, and the one of them with the greatest (logit - best) / temperature + noise; of equals the
// lowest id. Nearly all tokens are out by a bound of their noise that needs no logarithm, so that few are looked at.
class Race {
  public:
    Race(float best, float inverse_temperature, const NoiseKey& key) : best_(best), scale_(inverse_temperature), key_(key) {}

    const NoiseKey& key() const { return key_; }
    int32_t winner() const { return winner_; }

    // Whether a token with one of these logits could win, given the greatest noise.
    bool is_open(vf logits) const { return vf_any_gt(logits, vf_set(lowest_)); }

    // Tokens ids(0) .. ids(VW - 1); a lane without one has the logit -infinity.
    template <class F>
    void enter(vf logits, vu bits, const F& ids) {
        // v >= f / 2^31 with f = bits / 2, and -ln(-ln(1 - v)) <= -ln(v): a float's bits are a lower bound of its logarithm.
        const vf log2_f = __builtin_convertvector((vi)__builtin_convertvector((vi)(bits >> 1), vf), vf);
        const vf scaled = vf_mul(vf_sub(logits, vf_set(best_)), vf_set(scale_));
        const vf most = vf_add(scaled, vf_sub(vf_set(kLog2 * 158.0f + 1e-3f), vf_mul(log2_f, vf_set(kLog2 * 0x1p-23f))));
        if (!vf_any_gt(most, vf_set(score_))) return;
        float bounds[VW], logit[VW];
        uint32_t each[VW];
        vf_store(bounds, most);
        vf_store(logit, logits);
        memcpy(each, &bits, sizeof each);
        for (int i = 0; i < VW; ++i)
            if (bounds[i] > score_) enter(logit[i], each[i], ids(i));
    }

    void enter(float logit, int32_t id) {
        vu words[4];
        philox(vu{} + noise_counter(id), key_, words);
        enter(logit, words[noise_word(id)][0], id);
    }

    void enter(float logit, uint32_t bits, int32_t id) {
        const float score = (logit - best_) * scale_ + gumbel(bits);
        if (!(score > score_ || (score == score_ && id < winner_))) return;
        score_ = score;
        winner_ = id;
        lowest_ = best_ + (score - kMostNoise) / scale_ - 1e-3f * (1.0f + fabsf(best_));
    }

  private:
    static constexpr float kLog2 = 0.693147182f;
    const float best_, scale_;
    const NoiseKey key_;
    float score_ = -INFINITY, lowest_ = -INFINITY;
    int32_t winner_ = -1;
};

}  // namespace OCTAVO_ISA
}  // namespace octavo
