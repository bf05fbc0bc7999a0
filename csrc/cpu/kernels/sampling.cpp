#include "kernels/sampling.h"

#include "kernels/exp.h"
#include "kernels/gumbel.h"
#include "kernels/sampling_row.h"
#include "pool.h"

// A row's token depends on its own logits and parameters alone. A draw is a race: of the tokens that the filters leave, the one
// with the greatest sum of scaled logit and noise wins (gumbel.h).
//
// The filters keep the best tokens down to some limit, so that nothing is sorted but one bucket of a histogram: tokens that
// cannot be kept are left out while the row is read, the others (candidates, in the order of ids) are counted and weighed
// in buckets by their distance from the best, and only the bucket in which the limit falls is put in order.

namespace octavo {
namespace OCTAVO_ISA {

constexpr int64_t kPiece = 16384;   // logits in a piece when a row is shared by threads
constexpr int64_t kSumBlock = 512;  // weights that are summed in float32 before they go to a double
constexpr int kBuckets = 512;

// One edited logit, as it was.
struct Edit {
    int32_t id;
    float logit;
};

struct Draw {
    float best, inverse_temperature;
    float min_p, top_p;
    int64_t top_k;  // 0: off
    float scaled(float logit) const { return (logit - best) * inverse_temperature; }
};

OCTAVO_INLINE vf weight_of(vf logits, const Draw& d) {
    return exp_nonpositive(vf_mul(vf_sub(logits, vf_set(d.best)), vf_set(d.inverse_temperature)));
}

OCTAVO_INLINE vf load_logits(const float* x, int64_t count) {
    return count >= VW ? vf_load(x) : vf_load_n(x, count > 0 ? int(count) : 0, -INFINITY);
}

static float block_weight(const float* x, int64_t count, const Draw& d) {
    vf sums[2] = {vf_zero(), vf_zero()};
    int64_t i = 0;
    for (int j = 0; i < count; i += VW, j ^= 1) sums[j] = vf_add(sums[j], weight_of(load_logits(x + i, count - i), d));
    return vf_sum(vf_add(sums[0], sums[1]));
}

static double total_weight(const float* x, int64_t vocab, const Draw& d) {
    double total = 0;
    for (int64_t from = 0; from < vocab; from += kSumBlock)
        total += block_weight(x + from, vocab - from < kSumBlock ? vocab - from : kSumBlock, d);
    return total;
}

// The draw among all tokens. `first`, the best of them, opens the race, so that most others are out at once.
static int32_t draw_from_all(const float* x, int64_t vocab, int32_t first, Race& race) {
    race.enter(x[first], first);
    for (int64_t from = 0; from < vocab; from += kNoiseBlock) {
        vf logits[kNoiseBlock / VW];
        vf best = vf_set(-INFINITY);
        for (int64_t i = 0; i < kNoiseBlock; i += VW) {
            logits[i / VW] = load_logits(x + from + i, vocab - from - i);
            best = vf_max(best, logits[i / VW]);
        }
        if (!race.is_open(best)) continue;
        for (int64_t i = 0; i < kNoiseBlock / 4; i += VW) {
            vu words[4];
            philox(noise_counters(int32_t(from + i)), race.key(), words);
            for (int64_t w = 0; w < 4; ++w) {
                const int64_t at = w * (kNoiseBlock / 4) + i;
                race.enter(logits[at / VW], words[w], [&](int j) { return int32_t(from + at + j); });
            }
        }
    }
    return race.winner();
}

// The draw among candidates, in any order.
static int32_t draw_from(const Candidate* c, int64_t count, Race& race) {
    for (; count > 0; c += VW, count -= VW) {
        const int n = count < VW ? int(count) : VW;
        float logits[VW];
        vu counters = {}, words[4], bits = {};
        for (int i = 0; i < n; ++i) logits[i] = c[i].logit;
        const vf logit = load_logits(logits, n);
        if (!race.is_open(logit)) continue;
        for (int i = 0; i < n; ++i) counters[i] = noise_counter(c[i].id);
        philox(counters, race.key(), words);
        for (int i = 0; i < n; ++i) bits[i] = words[noise_word(c[i].id)][i];
        race.enter(logit, bits, [&](int i) { return c[i].id; });
    }
    return race.winner();
}

// Tokens with a logit >= lowest, a weight >= min_p and above 0, in the order of ids.
static int64_t collect(const float* x, int64_t vocab, const Draw& d, float lowest, Candidate* out) {
    int64_t count = 0;
    const vf below = vf_set(nextafterf(lowest, -INFINITY));
    for (int64_t i = 0; i < vocab; i += VW) {
        const int n = vocab - i < VW ? int(vocab - i) : VW;
        const vf v = load_logits(x + i, n);
        if (!vf_any_gt(v, below)) continue;
        float weights[VW];
        vf_store(weights, weight_of(v, d));
        for (int j = 0; j < n; ++j) {
            const float w = weights[j];
            out[count] = {x[i + j], int32_t(i + j), w};
            count += (x[i + j] >= lowest) & (w > 0) & (w >= d.min_p);
        }
    }
    return count;
}

struct Histogram {
    int32_t counts[kBuckets];
    double masses[kBuckets];
    float per_unit;

    // Buckets by the scaled distance from the best. `lowest` is the scaled logit of the last one's edge.
    Histogram(const Candidate* c, int64_t count, const Draw& d) {
        memset(counts, 0, sizeof counts);
        memset(masses, 0, sizeof masses);
        float lowest = -1e-6f;
        for (int64_t i = 0; i < count; ++i) {
            const float y = d.scaled(c[i].logit);
            lowest = y < lowest ? y : lowest;
        }
        per_unit = -float(kBuckets - 1) / lowest;
        for (int64_t i = 0; i < count; ++i) {
            const int b = bucket(c[i], d);
            ++counts[b];
            masses[b] += c[i].weight;
        }
    }
    int bucket(const Candidate& c, const Draw& d) const {
        const int b = int(-d.scaled(c.logit) * per_unit);
        return b < kBuckets ? b : kBuckets - 1;
    }
    // The candidates of bucket b in order, to out.
    int64_t in_order(const Candidate* c, int64_t count, int b, const Draw& d, Candidate* out) const {
        int64_t n = 0;
        for (int64_t i = 0; i < count; ++i)
            if (bucket(c[i], d) == b) out[n++] = c[i];
        sort_candidates(out, n);
        return n;
    }
};

template <class F>
static int64_t keep_if(Candidate* c, int64_t count, const F& keep) {
    int64_t n = 0;
    for (int64_t i = 0; i < count; ++i) {
        // Written in any case: half of the branches would be mispredicted.
        const Candidate x = c[i];
        c[n] = x;
        n += keep(x);
    }
    return n;
}

// The candidates that are at least as good as the k-th: ties stay.
static int64_t keep_top_k(Candidate* c, int64_t count, const Draw& d, Candidate* spare) {
    if (count <= d.top_k) return count;
    const Histogram h(c, count, d);
    int64_t before = 0;
    int b = 0;
    while (before + h.counts[b] < d.top_k) before += h.counts[b++];
    h.in_order(c, count, b, d, spare);
    const float lowest = spare[d.top_k - before - 1].logit;
    return keep_if(c, count, [&](const Candidate& x) { return x.logit >= lowest; });
}

// The best candidates whose betters weigh less than `mass` together.
static int64_t keep_top_p(Candidate* c, int64_t count, double mass, const Draw& d, Candidate* spare) {
    const Histogram h(c, count, d);
    double before = 0;
    int b = 0;
    while (b < kBuckets && before + h.masses[b] < mass) before += h.masses[b++];
    if (b == kBuckets) return count;
    const int64_t n = h.in_order(c, count, b, d, spare);
    if (n == 0) return count;
    int64_t kept = 0;
    for (; kept < n && (before < mass || (b == 0 && kept == 0)); ++kept) before += spare[kept].weight;
    if (kept == 0) return keep_if(c, count, [&](const Candidate& x) { return better(x, spare[0]); });
    const Candidate last = spare[kept - 1];
    return keep_if(c, count, [&](const Candidate& x) { return !better(last, x); });
}

// The k best in a heap whose root is the worst of them.
static void top_of(const float* x, int64_t vocab, int64_t k, Candidate* heap) {
    const auto sink = [&](int64_t at) {
        const Candidate moving = heap[at];
        for (;;) {
            int64_t child = 2 * at + 1;
            if (child >= k) break;
            if (child + 1 < k && better(heap[child], heap[child + 1])) ++child;
            if (!better(moving, heap[child])) break;
            heap[at] = heap[child];
            at = child;
        }
        heap[at] = moving;
    };
    for (int64_t i = 0; i < k; ++i) heap[i] = {x[i], int32_t(i), 0.0f};
    for (int64_t i = k / 2 - 1; i >= 0; --i) sink(i);
    for (int64_t i = k; i < vocab; i += VW) {
        const int n = vocab - i < VW ? int(vocab - i) : VW;
        if (n == VW && !vf_any_gt(vf_load(x + i), vf_set(heap[0].logit))) continue;
        for (int j = 0; j < n; ++j)
            if (x[i + j] > heap[0].logit) {
                heap[0] = {x[i + j], int32_t(i + j), 0.0f};
                sink(0);
            }
    }
    sort_candidates(heap, k);
}

// A logit that the k-th best of the row is not below: the k-th best of the maxima of small blocks.
constexpr int64_t kMaxBlock = 64;

static float kth_best_at_least(const float* x, int64_t vocab, int64_t k, Candidate* heap) {
    const int64_t blocks = vocab / kMaxBlock;
    if (k > blocks) return -INFINITY;
    float* maxima = reinterpret_cast<float*>(heap + k);
    for (int64_t b = 0; b < blocks; ++b) {
        vf m = vf_load(x + b * kMaxBlock);
        for (int64_t i = VW; i < kMaxBlock; i += VW) m = vf_max(m, vf_load(x + b * kMaxBlock + i));
        maxima[b] = vf_hmax(m);
    }
    top_of(maxima, blocks, k, heap);
    return heap[k - 1].logit;
}

// A logit below which every weight is less than `share`, whatever the rounding.
static float logit_below(const Draw& d, float share) {
    if (!(share > 0)) return -INFINITY;
    return d.best + logf(share) / d.inverse_temperature - 1e-3f * (1.0f + fabsf(d.best));
}

static int32_t draw_filtered(const float* x, int64_t vocab, const Draw& d, Race& race, Candidate* c) {
    Candidate* spare = c + vocab;
    float lowest = logit_below(d, d.min_p);
    double total = 0;
    if (d.top_k) {
        const float bound = kth_best_at_least(x, vocab, d.top_k, c);
        lowest = bound > lowest ? bound : lowest;
    } else if (d.min_p == 0) {
        // All tokens below the limit weigh less than the share that is dropped anyhow.
        total = total_weight(x, vocab, d);
        lowest = logit_below(d, 0.5f * (1.0f - d.top_p) * float(total) / float(vocab));
    }
    int64_t count = collect(x, vocab, d, lowest, c);
    if (d.top_k) count = keep_top_k(c, count, d, spare);
    if (d.top_p < 1.0f) {
        if (total == 0)
            for (int64_t i = 0; i < count; ++i) total += c[i].weight;
        count = keep_top_p(c, count, double(d.top_p) * total, d, spare);
    }
    return draw_from(c, count, race);
}

static int32_t draw(const SampleArgs& a, int64_t row, const Best& best, Candidate* memory) {
    const float* x = a.logits + row * a.vocab;
    const int64_t k = a.top_k[row];
    const Draw d{best.logit, 1.0f / a.temperature[row], a.min_p[row], a.top_p[row], k > 0 && k < a.vocab ? k : 0};
    Race race(d.best, d.inverse_temperature, {a.seeds[row], a.positions[row]});
    if (d.top_k || d.top_p < 1.0f || d.min_p > 0) return draw_filtered(x, a.vocab, d, race, memory);
    return draw_from_all(x, a.vocab, best.id, race);
}

struct Edits {
    const SampleArgs& a;
    Edit* saved;

    static int64_t at(const int32_t* offsets, int64_t row) { return offsets ? offsets[row] : 0; }
    static int64_t first(const SampleArgs& a, int64_t row) {
        return at(a.bias.offsets, row) + at(a.masks.offsets, row) + at(a.penalties.offsets, row);
    }

    void apply(int64_t row) const {
        float* x = a.logits + row * a.vocab;
        Edit* save = saved + first(a, row);
        for (int64_t i = at(a.bias.offsets, row), end = at(a.bias.offsets, row + 1); i < end; ++i) {
            *save++ = {a.bias.ids[i], x[a.bias.ids[i]]};
            x[a.bias.ids[i]] += a.bias.values[i];
        }
        for (int64_t i = at(a.masks.offsets, row), end = at(a.masks.offsets, row + 1); i < end; ++i) {
            *save++ = {a.masks.ids[i], x[a.masks.ids[i]]};
            x[a.masks.ids[i]] = -INFINITY;
        }
        const PenaltyRows& p = a.penalties;
        for (int64_t i = at(p.offsets, row), end = at(p.offsets, row + 1); i < end; ++i) {
            float v = x[p.ids[i]];
            *save++ = {p.ids[i], v};
            if (p.counts[i] > 0 || p.in_prompt[i]) v = v > 0 ? v / p.repetition[row] : v * p.repetition[row];
            v -= p.frequency[row] * float(p.counts[i]);
            if (p.counts[i] > 0) v -= p.presence[row];
            x[p.ids[i]] = v;
        }
    }
    void undo(int64_t row) const {
        float* x = a.logits + row * a.vocab;
        for (int64_t i = first(a, row + 1) - 1; i >= first(a, row); --i) x[saved[i].id] = saved[i].logit;
    }
};

static void finish(const SampleArgs& a, int64_t row, const Best& best, size_t scratch_bytes, int thread) {
    const bool bad = best.nan || !(fabsf(best.logit) < INFINITY);
    a.flags[row] = bad;
    if (bad) a.ids[row] = -1;
    else if (a.temperature[row] == 0) a.ids[row] = best.id;
    else a.ids[row] = draw(a, row, best, static_cast<Candidate*>(thread_scratch(thread, scratch_bytes)));
}

static void sample(const SampleArgs& a) {
    const KernelLock lock;
    // Few rows: threads share a row while its best token is sought.
    const int64_t pieces = a.rows >= 2 * num_threads() ? 1 : (a.vocab + kPiece - 1) / kPiece;
    const int64_t num_edits = Edits::first(a, a.rows);
    char* memory = static_cast<char*>(shared_scratch(num_edits * sizeof(Edit) + a.rows * pieces * sizeof(Best) + 64));
    const Edits edits{a, reinterpret_cast<Edit*>(memory)};
    Best* bests = reinterpret_cast<Best*>(memory + num_edits * sizeof(Edit));
    const size_t scratch_bytes = 2 * a.vocab * sizeof(Candidate) + 64;
    if (pieces == 1) {
        parallel_for(a.rows, [&](int64_t row, int thread) {
            edits.apply(row);
            finish(a, row, best_of(a.logits + row * a.vocab, a.vocab, 0), scratch_bytes, thread);
            edits.undo(row);
        });
        return;
    }
    for (int64_t row = 0; row < a.rows; ++row) edits.apply(row);
    parallel_for(a.rows * pieces, [&](int64_t task, int) {
        const int64_t row = task / pieces, from = task % pieces * kPiece;
        bests[task] = best_of(a.logits + row * a.vocab + from, a.vocab - from < kPiece ? a.vocab - from : kPiece, from);
    });
    parallel_for(a.rows, [&](int64_t row, int thread) {
        Best best = bests[row * pieces];
        for (int64_t i = 1; i < pieces; ++i) {
            const Best& other = bests[row * pieces + i];
            const bool nan = best.nan || other.nan;
            if (other.logit > best.logit) best = other;
            best.nan = nan;
        }
        finish(a, row, best, scratch_bytes, thread);
        edits.undo(row);
    });
}

// ---- log probabilities ----

static int32_t rank_of(const float* x, int64_t vocab, int64_t id) {
    const float value = x[id];
    int32_t ahead = 0;
    for (int64_t i = 0; i < id; ++i) ahead += x[i] >= value;
    for (int64_t i = id + 1; i < vocab; ++i) ahead += x[i] > value;
    return ahead + 1;
}

static void logprobs_row(const LogprobArgs& a, int64_t row, Candidate* heap) {
    const float* x = a.logits + row * a.vocab;
    const Draw plain{best_of(x, a.vocab, 0).logit, 1.0f, 0.0f, 1.0f, 0};
    const double log_total = log(total_weight(x, a.vocab, plain));
    const auto logprob = [&](float logit) { return float(double(logit) - double(plain.best) - log_total); };
    a.logprob[row] = logprob(x[a.ids[row]]);
    a.rank[row] = rank_of(x, a.vocab, a.ids[row]);
    if (a.k == 0) return;
    top_of(x, a.vocab, a.k, heap);
    for (int64_t i = 0; i < a.k; ++i) {
        a.top_ids[row * a.k + i] = heap[i].id;
        a.top_logprobs[row * a.k + i] = logprob(heap[i].logit);
    }
}

static void logprobs(const LogprobArgs& a) {
    parallel_for(a.rows, [&](int64_t row, int thread) {
        logprobs_row(a, row, static_cast<Candidate*>(thread_scratch(thread, a.k * sizeof(Candidate) + 64)));
    });
}

extern const SamplingKernels sampling_kernels = {sample, logprobs};

}  // namespace OCTAVO_ISA
}  // namespace octavo
