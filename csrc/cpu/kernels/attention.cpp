#include "kernels/attention.h"

#include "kernels/attention_micro.h"
#include "pool.h"

// The law: a row's bits depend on its query and its context alone.
//
// The context of a sequence is split into chunks at multiples of kChunk positions. For a row and a chunk there are a
// partial maximum, sum and output, computed in one fixed order of operations; the chunks are merged from the first to the
// last. Which rows share a tile, and which thread takes which chunks, then decides speed only: one token is computed as
// in the whole prompt.
//
// Rows of a tile are (token, query head) pairs of one kv head, token by token, so that their limits never fall:
//
//      first_key(row) ---------------- seen ---------------- end_key(row)
//        |<------- window, or all ------->| position + 1, an end of its own, or the sequence's
//
// Of these a head may see some blocks only. Chunks that no row of a tile sees are passed over; in the others a row weighs
// what it does not see by zero.

namespace octavo {
namespace OCTAVO_ISA {

// Rows of a prefill tile: enough that unpacking a chunk costs little, few enough that a tile's scores stay in the L2 cache.
constexpr int kTileRows = 96;
// Tiles with more rows unpack the chunk's keys and values to float32 panels first.
constexpr int kUnpackAbove = 2 * kMaxRows;
// Relative cost of an item's fixed part, in rows; and the cost below which threads are not worth waking.
constexpr int64_t kRowsOverhead = 8;
constexpr int64_t kSerialCost = 3000;
constexpr int kItemsPerThread = 4;

struct Tile {
    int seq, kv_head;
    int first_token, num_tokens;   // within the sequence's tokens of this step
    int first_chunk, end_chunk;
    int64_t partials;              // index of its first partial, or -1: one item does it all
};

struct Item {
    int tile, first_chunk, end_chunk;
};

struct Shape {
    const AttentionArgs& args;
    int group;      // query heads per kv head
    int padded;     // dimension of accumulators and cached values
    int max_rows;   // of a tile

    explicit Shape(const AttentionArgs& a)
        : args(a), group(a.num_heads / a.num_kv_heads), padded(padded_dim(a.value_dim)),
          max_rows(tokens_per_tile() * group) {}
    int tokens_per_tile() const { return group >= kTileRows ? 1 : kTileRows / group; }
    int position(const Tile& t, int token) const {
        const int tokens = args.query_start_loc[t.seq + 1] - args.query_start_loc[t.seq];
        return args.seq_lens[t.seq] - tokens + t.first_token + token;
    }
    int first_key(int position) const {
        if (!args.window || position < args.window) return 0;
        return args.chunked ? position / args.window * args.window : position - args.window + 1;
    }
    // The first key that a token of the tile does not see.
    int end_key(const Tile& t, int token) const {
        if (!args.causal) {
            const int end = args.seq_lens[t.seq];
            return args.window && position(t, token) + args.window < end ? position(t, token) + args.window : end;
        }
        if (args.key_ends) return args.key_ends[args.query_start_loc[t.seq] + t.first_token + token];
        return position(t, token) + 1;
    }
    // Whether `query_head` sees one of the keys first .. end, none of which lies behind the position.
    bool sees(int query_head, int position, int first, int end) const {
        const KeyBlocks& b = args.blocks;
        if (!b.size || end > first_local(position)) return true;
        for (int block = first / b.size; block * b.size < end; ++block)
            if ((block + query_head * b.step + 1) % b.stride == 0) return true;
        return false;
    }
    // The first key of the blocks up to a position's own that all heads see.
    int first_local(int position) const {
        const int block = position / args.blocks.size - args.blocks.local + 1;
        return block > 0 ? block * args.blocks.size : 0;
    }
    // Whether a row of the tile sees a key of the chunk. The first token sees what the others do, but for keys behind it.
    bool needs(const Tile& t, int chunk) const {
        for (int i = 0; i < group; ++i)
            if (sees(t.kv_head * group + i, position(t, 0), chunk * kChunk, chunk * kChunk + kChunk)) return true;
        return false;
    }
    int64_t num_needed(const Tile& t) const {
        if (!args.blocks.size) return t.end_chunk - t.first_chunk;
        int64_t count = 0;
        for (int chunk = t.first_chunk; chunk < t.end_chunk; ++chunk) count += needs(t, chunk);
        return count;
    }
    // Floats of a partial result: rows x (output, maximum, sum).
    int64_t partial_floats() const { return int64_t(max_rows) * (padded + 2); }
};

// Partial or running result of a tile's rows.
struct Partial {
    float *acc, *max, *sum;
    Partial(float* memory, const Shape& s)
        : acc(memory), max(memory + int64_t(s.max_rows) * s.padded), sum(max + s.max_rows) {}
};

// One thread's memory for one tile.
struct Workspace {
    float *q, *scores, *keys, *values, *partial, *running;

    static int64_t floats(const Shape& s) {
        const int64_t rows = s.max_rows;
        return rows * s.args.head_dim + rows * kChunk + int64_t(kChunk) * (s.args.head_dim + s.padded) +
               2 * s.partial_floats() + 6 * 16;
    }
    Workspace(float* memory, const Shape& s) {
        const int64_t rows = s.max_rows;
        q = memory;
        scores = aligned(q + rows * s.args.head_dim);
        keys = aligned(scores + rows * kChunk);
        values = aligned(keys + int64_t(kChunk) * s.args.head_dim);
        partial = aligned(values + int64_t(kChunk) * s.padded);
        running = aligned(partial + s.partial_floats());
    }
    static float* aligned(float* p) { return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(p) + 63) & ~uintptr_t(63)); }
};

// The rows of one tile against one chunk after the other.
template <class In>
struct TileRun {
    typedef typename In::T T;
    const Shape& s;
    const Tile& tile;
    const Tile* next;
    Workspace w;
    int rows;
    int end_chunk;  // where this run stops
    const T* key_tiles[kChunkTiles];
    const T* value_tiles[kChunkTiles];
    const T* next_keys[kChunkTiles];  // of the chunk that follows; at the end, tiles that were read

    // `following`: the tile that comes next in this thread, or null.
    TileRun(const Shape& shape, const Tile& t, float* memory, const Tile* following = nullptr)
        : s(shape), tile(t), next(following), w(memory, shape), rows(t.num_tokens * shape.group), end_chunk(t.end_chunk) {
        const AttentionArgs& a = s.args;
        const int dim = a.head_dim;
        const int64_t stride = a.row_stride;
        const float scale = a.scale * (a.k_scale * In::kFactor);
        const float* q = a.qkv + (a.query_start_loc[t.seq] + t.first_token) * stride + int64_t(t.kv_head) * s.group * dim;
        for (int token = 0; token < t.num_tokens; ++token)
            for (int i = 0; i < s.group * dim; ++i) w.q[token * s.group * dim + i] = q[token * stride + i] * scale;
    }

    // Range of the keys that `row` sees, relative to the chunk that begins at `base`; empty if first >= end.
    struct Range {
        int first, end;
    };
    Range seen(int row, int base) const {
        const int token = row / s.group;
        const int first = s.first_key(s.position(tile, token)) - base, end = s.end_key(tile, token) - base;
        return {first < 0 ? 0 : first, end > kChunk ? kChunk : end};
    }
    // The union over rows that follow each other.
    Range seen(int row, int count, int base) const { return {seen(row, base).first, seen(row + count - 1, base).end}; }

    void run_chunk(int chunk, const Partial& out) {
        if (!s.needs(tile, chunk)) return;
        const int base = chunk * kChunk;
        const Range all = seen(0, rows, base);
        find_tiles(base, all);
        if (rows > kUnpackAbove || s.args.is_latent) {
            const float *keys[kChunkTiles], *values[kChunkTiles];
            unpack(all, keys, values);
            const bool clean = edges_are_finite(base, all);
            const Values<InF32> panels{values, kKeyTile, kChunk * kKeyTile, values};
            compute<InF32, false>(base, all, keys, keys, panels, clean ? kMaxRows : rows_of_one_limit(), out);
        } else {
            find_next_keys(chunk, all);
            const Values<In> direct{value_tiles, s.padded, kKeyTile, next_keys};
            compute<In, true>(base, all, key_tiles, value_tiles, direct, rows_of_one_limit(), out);
        }
    }

    // How many rows from any multiple of it on are sure to see the same keys: heads of one token, or all.
    int rows_of_one_limit() const {
        if (s.group == rows || !(s.args.causal || s.args.window)) return kMaxRows;
        return s.group <= kMaxRows ? s.group : 1;
    }

    void find_tiles(int base, Range all) {
        for (int t = all.first / kKeyTile; t * kKeyTile < all.end; ++t) {
            const Place at = place_of(tile, base + t * kKeyTile);
            key_tiles[t] = keys_at(at);
            value_tiles[t] = s.args.is_latent
                                 ? key_tiles[t]
                                 : static_cast<const T*>(s.args.v_cache) + at.block * s.args.v_stride + at.tile * tile_size(s.padded);
        }
    }

    // The block of a tile, and its number among those of the block's heads. Blocks are whole tiles.
    struct Place {
        int64_t block, tile;
    };
    Place place_of(const Tile& t, int first_key) const {
        const AttentionArgs& a = s.args;
        const int64_t block = a.block_tables[t.seq * a.block_table_stride + first_key / a.block_size];
        return {block, (int64_t(t.kv_head) * a.block_size + first_key % a.block_size) / kKeyTile};
    }
    const T* keys_at(const Place& at) const {
        return static_cast<const T*>(s.args.k_cache) + at.block * s.args.k_stride + at.tile * tile_size(s.args.head_dim);
    }
    // From tile to tile of a block.
    static int64_t tile_size(int dim) { return int64_t(dim) * kKeyTile + (In::kTileScales ? kTileScaleBytes : 0); }

    // Multiplies what belongs to the keys first .. end of a chunk, whole tiles, by the scales behind `tiles`.
    static void scale_tiles(float* x, const T* const* tiles, int dim, int first, int end) {
        for (int t = first / kKeyTile; t * kKeyTile < end; ++t) {
            const float* scales = reinterpret_cast<const float*>(tiles[t] + int64_t(dim) * kKeyTile);
            for (int i = 0; i < kKeyTile; i += VW) {
                float* at = x + t * kKeyTile + i;
                vf_store(at, vf_mul(vf_load(at), vf_load(scales + i)));
            }
        }
    }

    // Behind the last chunk come the keys of the tile that this thread turns to next.
    void find_next_keys(int chunk, Range all) {
        const Tile* of = &tile;
        int base = (chunk + 1) * kChunk;
        if (chunk + 1 == end_chunk && next) of = next, base = next->first_chunk * kChunk;
        const int end = s.args.seq_lens[of->seq];
        for (int t = all.first / kKeyTile; t * kKeyTile < all.end; ++t)
            next_keys[t] = base + t * kKeyTile < end ? keys_at(place_of(*of, base + t * kKeyTile)) : key_tiles[t];
    }

    // Keys to float32 tiles, values to float32 panels [padded / 16][kChunk][16].
    void unpack(Range all, const float** keys, const float** values) {
        const int dim = s.args.head_dim;
        for (int t = all.first / kKeyTile; t * kKeyTile < all.end; ++t) {
            float* k = w.keys + t * kKeyTile * dim;
            keys[t] = k;
            if (s.args.is_latent) transpose_tile<In>(k, key_tiles[t], dim);
            else if constexpr (sizeof(T) == 4) keys[t] = reinterpret_cast<const float*>(key_tiles[t]);
            else
                for (int i = 0; i < dim * kKeyTile; i += VW) vf_store(k + i, In::load(key_tiles[t] + i));
            float* v = w.values + t * kKeyTile * kKeyTile;
            values[t] = v;
            const int row = s.args.is_latent ? dim : s.padded;
            for (int key = 0; key < kKeyTile; ++key)
                for (int d = 0; d < s.padded; d += VW)
                    vf_store(v + d / kKeyTile * kChunk * kKeyTile + key * kKeyTile + d % kKeyTile,
                             In::load(value_tiles[t] + key * row + d));
        }
    }

    // Rows that are weighed together multiply a value that one of them does not see by zero, which is harmless unless it is
    // NaN or infinite: then only rows of one token are. Only keys between the limits of two rows can make a difference.
    bool edges_are_finite(int base, Range all) const {
        const Range low = seen(0, base), high = seen(rows - 1, base);
        return finite(all.first, high.first < all.end ? high.first : all.end) &&
               finite(low.end > all.first ? low.end : all.first, all.end);
    }
    bool finite(int first, int end) const {
        vf bad = vf_zero();
        for (int key = first; key < end; ++key)
            for (int d = 0; d < s.padded; d += VW) {
                const vf x = vf_load(w.values + d / kKeyTile * kChunk * kKeyTile + key * kKeyTile + d % kKeyTile);
                bad = vf_add(bad, vf_mul(x, vf_zero()));
            }
        return vf_sum(bad) == 0.0f;
    }

    template <class From, bool FETCH>
    void compute(int base, Range all, const typename From::T* const* keys, const typename From::T* const* ahead,
                 const Values<From>& values, int weigh_at_once, const Partial& out) {
        const int dim = s.args.head_dim;
        // A few tiles of keys stay in the L1 cache while all rows pass over them.
        const int step = rows <= kMaxRows ? kChunkTiles : tiles_at_once(kMaxRows);
        const int end_tile = (all.end + kKeyTile - 1) / kKeyTile;
        for (int t = all.first / kKeyTile; t < end_tile; t += step)
            for (int row = 0; row < rows; row += kMaxRows) {
                const int count = rows - row < kMaxRows ? rows - row : kMaxRows;
                const Range r = seen(row, count, base);
                const int first = r.first / kKeyTile > t ? r.first / kKeyTile : t;
                const int until = (r.end + kKeyTile - 1) / kKeyTile, end = until < t + step ? until : t + step;
                if (first >= end) continue;
                with_rows(count, [&](auto n) {
                    score_rows<From, FETCH, decltype(n)::count>(w.scores + row * kChunk, w.q + row * dim, dim, keys, ahead, first, end);
                });
            }
        for (int row = 0; row < rows; ++row) {
            const int at = row / weigh_at_once * weigh_at_once;
            const int count = rows - at < weigh_at_once ? rows - at : weigh_at_once;
            if constexpr (In::kTileScales) {
                const Range mine = seen(row, base);
                if (mine.first < mine.end) scale_tiles(w.scores + row * kChunk, key_tiles, dim, mine.first, mine.end);
            }
            if (s.args.slopes) add_slope(w.scores + row * kChunk, row, base);
            if (s.args.biases) add_bias(w.scores + row * kChunk, row, base);
            soften(w.scores + row * kChunk, row, base, seen(at, count, base), &out.max[row], &out.sum[row]);
        }
        const int panels = s.padded / kKeyTile, panel_step = rows <= kMaxRows ? panels : tiles_at_once(kMaxRows);
        for (int panel = 0; panel < panels; panel += panel_step)
            for (int row = 0; row < rows; row += weigh_at_once) {
                const int count = rows - row < weigh_at_once ? rows - row : weigh_at_once;
                const Range r = seen(row, count, base);
                if (r.first >= r.end) continue;
                const int panel_end = panel + panel_step < panels ? panel + panel_step : panels;
                with_rows(count, [&](auto n) {
                    weigh_rows<From, FETCH, decltype(n)::count>(out.acc + int64_t(row) * s.padded, s.padded,
                                                         w.scores + row * kChunk, values, panel, panel_end, r.first, r.end);
                });
            }
    }

    int head_of(int row) const { return tile.kv_head * s.group + row % s.group; }
    // Whether `row` sees one of the keys `r` of its range in the chunk that begins at `base`.
    bool sees_some(int row, int base, Range r) const {
        return r.first < r.end && s.sees(head_of(row), s.position(tile, row / s.group), base + r.first, base + r.end);
    }

    // Scores to weights e^(score - max) over the keys that `row` sees, zero over the rest of the tiles that `shared` touches;
    // each times the scale of its value, if there are scales.
    void soften(float* x, int row, int base, Range shared, float* max_out, float* sum_out) const {
        const Range mine = seen(row, base);
        if (!sees_some(row, base, mine)) {
            for (int i = shared.first; i < shared.end; ++i) x[i] = 0.0f;
            return;
        }
        const int first = mine.first / kKeyTile * kKeyTile, end = (mine.end + kKeyTile - 1) / kKeyTile * kKeyTile;
        if (s.args.softcap != 0.0f) cap(x, first, end);
        for (int i = first; i < mine.first; ++i) x[i] = -INFINITY;
        for (int i = mine.end; i < end; ++i) x[i] = -INFINITY;
        if (s.args.blocks.size) {
            const int position = s.position(tile, row / s.group);
            for (int t = first; t < end; t += kKeyTile)
                if (!s.sees(head_of(row), position, base + t, base + t + kKeyTile))
                    for (int i = 0; i < kKeyTile; ++i) x[t + i] = -INFINITY;
        }
        vf high = vf_set(-INFINITY);
        for (int i = first; i < end; i += VW) high = vf_max(high, vf_load(x + i));
        const float max = vf_hmax(high);
        const vf m = vf_set(max);
        vf sums[kTileVectors];
        for (int v = 0; v < kTileVectors; ++v) sums[v] = vf_zero();
        for (int i = first; i < end; i += kKeyTile)
            for (int v = 0; v < kTileVectors; ++v) {
                const vf e = exp_nonpositive(vf_sub(vf_load(x + i + v * VW), m));
                vf_store(x + i + v * VW, e);
                sums[v] = vf_add(sums[v], e);
            }
        for (int v = 1; v < kTileVectors; ++v) sums[0] = vf_add(sums[0], sums[v]);
        *max_out = max;
        *sum_out = vf_sum(sums[0]);
        if constexpr (In::kTileScales) {
            // A scale that no key has may be anything: zero times it need not be zero.
            scale_tiles(x, value_tiles, s.args.is_latent ? s.args.head_dim : s.padded, first, end);
            for (int i = first; i < mine.first; ++i) x[i] = 0.0f;
            for (int i = mine.end; i < end; ++i) x[i] = 0.0f;
        }
        for (int i = shared.first; i < first; ++i) x[i] = 0.0f;
        for (int i = end; i < shared.end; ++i) x[i] = 0.0f;
    }

    // What lies at a distance weighs less, in the tiles that the row sees: slope * (key - query position), or of rows that see
    // what lies behind them -slope * |key - query position|.
    void add_slope(float* x, int row, int base) const {
        float lanes[VW];
        for (int i = 0; i < VW; ++i) lanes[i] = float(i);
        const Range mine = seen(row, base);
        const int first = mine.first / kKeyTile * kKeyTile, end = (mine.end + kKeyTile - 1) / kKeyTile * kKeyTile;
        const int offset = base - s.position(tile, row / s.group);
        const vf slope = vf_set(s.args.slopes[tile.kv_head * s.group + row % s.group]), lane = vf_load(lanes);
        for (int i = first; i < end; i += VW) {
            vf distance = vf_add(vf_set(float(offset + i)), lane);
            if (!s.args.causal) distance = vf_sub(vf_zero(), vf_max(distance, vf_sub(vf_zero(), distance)));
            vf_store(x + i, vf_add(vf_load(x + i), vf_mul(slope, distance)));
        }
    }

    // What is told of a head's scores by key - query position, in the tiles that the row sees.
    void add_bias(float* x, int row, int base) const {
        const Range mine = seen(row, base);
        const int first = mine.first / kKeyTile * kKeyTile, end = (mine.end + kKeyTile - 1) / kKeyTile * kKeyTile;
        const int reach = s.args.reach, offset = base - s.position(tile, row / s.group);
        const float* bias = s.args.biases + int64_t(head_of(row)) * (2 * reach + 1) + reach;
        for (int i = first; i < end; ++i) {
            const int distance = offset + i;
            x[i] += bias[distance < -reach ? -reach : distance > reach ? reach : distance];
        }
    }

    // softcap * tanh(x / softcap), with tanh z = 1 - 2 / (e^(2z) + 1).
    void cap(float* x, int first, int end) const {
        const vf c = vf_set(s.args.softcap), one = vf_set(1.0f), two = vf_set(2.0f);
        const vf inverse = vf_set(2.0f / s.args.softcap);
        for (int i = first; i < end; i += VW) {
            const vf e = vf_exp(vf_mul(vf_load(x + i), inverse));
            vf_store(x + i, vf_mul(c, vf_sub(one, vf_div(two, vf_add(e, one)))));
        }
    }

    // The running result of `row` takes in the partial of the next chunk.
    void merge(const Partial& run, const Partial& part, int row, bool first) const {
        float *a = run.acc + int64_t(row) * s.padded, *b = part.acc + int64_t(row) * s.padded;
        if (first) {
            run.max[row] = part.max[row];
            run.sum[row] = part.sum[row];
            memcpy(a, b, sizeof(float) * s.padded);
            return;
        }
        const float before = run.max[row], now = part.max[row], max = before > now ? before : now;
        float x[VW], e[VW];
        for (int i = 0; i < VW; ++i) x[i] = i & 1 ? now - max : before - max;
        vf_store(e, exp_nonpositive(vf_load(x)));
        const vf old_scale = vf_set(e[0]), new_scale = vf_set(e[1]);
        for (int d = 0; d < s.padded; d += VW)
            vf_store(a + d, vf_fma(vf_load(a + d), old_scale, vf_mul(vf_load(b + d), new_scale)));
        run.sum[row] = run.sum[row] * e[0] + part.sum[row] * e[1];
        run.max[row] = max;
    }

    void merge_chunk(const Partial& run, const Partial& part, int chunk) const {
        const int base = chunk * kChunk;
        for (int row = 0; row < rows; ++row) {
            if (!sees_some(row, base, seen(row, base))) continue;
            merge(run, part, row, chunk == first_chunk(row));
        }
    }
    // The first of which `row` sees a key.
    int first_chunk(int row) const {
        const int position = s.position(tile, row / s.group);
        int chunk = s.first_key(position) / kChunk;
        if (s.args.blocks.size)
            while (!s.sees(head_of(row), position, chunk * kChunk, chunk * kChunk + kChunk)) ++chunk;
        return chunk;
    }

    // What a weight of e^(score - max) is of all, the sink's among them.
    static float share_beside(float sink, float max, float sum) {
        const float high = sink > max ? sink : max, keys = expf(max - high);
        return keys / (sum * keys + expf(sink - high));
    }

    void write(const Partial& run) const {
        const AttentionArgs& a = s.args;
        for (int row = 0; row < rows; ++row) {
            const int64_t token = a.query_start_loc[tile.seq] + tile.first_token + row / s.group;
            float* out = a.out + (token * a.num_heads + tile.kv_head * s.group + row % s.group) * a.value_dim;
            const float* acc = run.acc + int64_t(row) * s.padded;
            const float inverse = a.sinks ? share_beside(a.sinks[head_of(row)], run.max[row], run.sum[row])
                                          : 1.0f / run.sum[row];
            const float factor = inverse * (a.v_scale * In::kFactor);
            for (int d = 0; d < a.value_dim; ++d) out[d] = acc[d] * factor;
        }
    }

    void run_all() {
        const Partial part(w.partial, s), run(w.running, s);
        for (int chunk = tile.first_chunk; chunk < tile.end_chunk; ++chunk) {
            run_chunk(chunk, part);
            merge_chunk(run, part, chunk);
        }
        write(run);
    }
    void run_part(int first, int end, float* partials) {
        end_chunk = end;
        for (int chunk = first; chunk < end; ++chunk)
            run_chunk(chunk, Partial(partials + (tile.partials + chunk - tile.first_chunk) * s.partial_floats(), s));
    }
    void merge_parts(float* partials) {
        const Partial run(w.running, s);
        for (int chunk = tile.first_chunk; chunk < tile.end_chunk; ++chunk)
            merge_chunk(run, Partial(partials + (tile.partials + chunk - tile.first_chunk) * s.partial_floats(), s), chunk);
        write(run);
    }
};

template <class F>
static void for_tiles(const Shape& s, const F& each) {
    const AttentionArgs& a = s.args;
    for (int seq = 0; seq < a.num_seqs; ++seq) {
        const int tokens = a.query_start_loc[seq + 1] - a.query_start_loc[seq], step = s.tokens_per_tile();
        // The last tokens first: theirs are the longest contexts, and the short ones then fill the gaps at the end.
        for (int from = (tokens + step - 1) / step * step - step; from >= 0; from -= step)
            for (int head = 0; head < a.num_kv_heads; ++head) {
                Tile t{seq, head, from, tokens - from < step ? tokens - from : step, 0, 0, -1};
                t.first_chunk = s.first_key(s.position(t, 0)) / kChunk;
                t.end_chunk = (s.end_key(t, t.num_tokens - 1) - 1) / kChunk + 1;
                each(t, s.num_needed(t) * kChunk * (t.num_tokens * s.group + kRowsOverhead));
            }
    }
}

template <class In>
static void attend(const AttentionArgs& args) {
    const Shape s(args);
    int64_t total = 0, tiles = 0, items = 0, partials = 0;
    for_tiles(s, [&](const Tile&, int64_t cost) { total += cost, ++tiles; });
    // A tile that would keep one thread busy while the others wait is split by chunks.
    const int64_t share = total < kSerialCost || num_threads() == 1 ? total : total / (kItemsPerThread * num_threads()) + 1;
    // Short items follow each other in one thread, which then knows whose keys it needs next.
    const int64_t run_share = total / (2 * kItemsPerThread * num_threads()) + 1;
    const auto pieces = [&](const Tile& t, int64_t cost) {
        const int64_t n = (cost + share - 1) / share, chunks = t.end_chunk - t.first_chunk;
        return n < chunks ? n : chunks;
    };
    for_tiles(s, [&](const Tile& t, int64_t cost) {
        const int64_t n = pieces(t, cost);
        items += n;
        if (n > 1) partials += t.end_chunk - t.first_chunk;
    });

    const KernelLock lock;
    const int64_t partial_bytes = (partials * s.partial_floats() * int64_t(sizeof(float)) + 63) / 64 * 64;
    char* memory = static_cast<char*>(
        shared_scratch(partial_bytes + tiles * sizeof(Tile) + items * sizeof(Item) + (items + 1) * sizeof(int64_t)));
    float* partial_memory = reinterpret_cast<float*>(memory);
    Tile* tile_list = reinterpret_cast<Tile*>(memory + partial_bytes);
    int64_t* run_starts = reinterpret_cast<int64_t*>(tile_list + tiles);
    Item* item_list = reinterpret_cast<Item*>(run_starts + items + 1);
    int64_t t = 0, i = 0, p = 0, runs = 0, run_cost = run_share;
    for_tiles(s, [&](const Tile& tile, int64_t cost) {
        const int64_t n = pieces(tile, cost), chunks = tile.end_chunk - tile.first_chunk;
        tile_list[t] = tile;
        if (n > 1) tile_list[t].partials = p, p += chunks;
        for (int64_t k = 0; k < n; ++k, run_cost += cost / n) {
            if (run_cost >= run_share) run_starts[runs++] = i, run_cost = 0;
            item_list[i++] = {int(t), tile.first_chunk + int(chunks * k / n), tile.first_chunk + int(chunks * (k + 1) / n)};
        }
        ++t;
    });
    run_starts[runs] = items;

    const size_t bytes = Workspace::floats(s) * sizeof(float);
    const auto do_items = [&](int64_t first, int64_t end, int thread) {
        float* workspace = static_cast<float*>(thread_scratch(thread, bytes));
        for (int64_t at = first; at < end; ++at) {
            const Item& item = item_list[at];
            TileRun<In> run(s, tile_list[item.tile], workspace, at + 1 < end ? &tile_list[item_list[at + 1].tile] : nullptr);
            if (tile_list[item.tile].partials < 0) run.run_all();
            else run.run_part(item.first_chunk, item.end_chunk, partial_memory);
        }
    };
    if (total < kSerialCost) {
        parallel_for(1, [&](int64_t, int thread) { do_items(0, items, thread); });
        return;
    }
    parallel_for(runs, [&](int64_t at, int thread) { do_items(run_starts[at], run_starts[at + 1], thread); });
    if (partials == 0) return;
    parallel_for(tiles, [&](int64_t at, int thread) {
        if (tile_list[at].partials < 0) return;
        TileRun<In>(s, tile_list[at], static_cast<float*>(thread_scratch(thread, bytes))).merge_parts(partial_memory);
    });
}

static void attention(const AttentionArgs& args) {
    switch (args.type) {
        case CacheType::f32: return attend<InF32>(args);
        case CacheType::bf16: return attend<InBF16>(args);
        case CacheType::f16: return attend<InF16>(args);
        case CacheType::e4m3: return attend<InE4M3>(args);
        case CacheType::e5m2: return attend<InE5M2>(args);
        case CacheType::i8: return attend<InI8>(args);
    }
}

extern const AttentionKernels attention_kernels = {attention};

}  // namespace OCTAVO_ISA
}  // namespace octavo
