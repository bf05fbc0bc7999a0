#include "packed_linear.h"

#include "pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>

namespace octavo {

namespace {

constexpr size_t kHugePage = size_t(2) << 20, kChunk = size_t(16) << 20;

// Bytes of packed weights worth a task of their own, and tasks wanted for each thread: few enough to cost nothing, enough
// that a thread which lost its core to another process does not hold up the rest.
constexpr int64_t kTaskBytes = 16 << 10;
constexpr int64_t kTasksPerThread = 6;
// Activations of one block of rows: they stay in the second-level cache while the weights pass.
constexpr int64_t kRowBlockBytes = 192 << 10;
// A multiple of every level's block of rows.
constexpr int64_t kRowStep = 12;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Column c of a part of so many values, `bits` each, from the bytes at v.
void pack_part(uint8_t* part, const uint8_t* v, int64_t values, int bits, int64_t c) {
    const int64_t steps = values / 4;
    uint32_t step[kActGroup / 4];
    std::memcpy(step, v, size_t(values));
    if (bits == 8) {
        for (int64_t i = 0; i < steps; ++i) std::memcpy(part + 64 * i + 4 * c, step + i, 4);
        return;
    }
    constexpr uint32_t kLowNibbles = 0x0f0f0f0fu;
    for (int64_t i = 0; i < steps; i += 2) {
        const uint32_t both = (step[i] & kLowNibbles) | (step[i + 1] & kLowNibbles) << 4;
        std::memcpy(part + 32 * i + 4 * c, &both, 4);
    }
    if (bits == 4) return;
    const int high = bits - 4, sharing = 8 / high;
    for (int64_t i = 0; i < steps; i += sharing) {
        uint32_t above = 0;
        for (int j = 0; j < sharing; ++j) above |= (step[i + j] >> 4 & kLowNibbles) << (j * high);
        std::memcpy(part + 8 * values + 64 * (i / sharing) + 4 * c, &above, 4);
    }
}

// M rows of K quantised activations at p, or, without memory, how many bytes they take.
size_t quantized_rows(QuantizedRows& rows, int8_t* p, int64_t M, int64_t K, int64_t block) {
    rows.rows = M;
    rows.block = block;
    rows.groups = ceil_div(K, kActGroup);
    rows.ldq = rows.groups * kActGroup;
    const size_t values = size_t(M * rows.groups), blocks = size_t(ceil_div(M, block));
    if (p) {
        rows.q = p;
        rows.low = p + values * kActGroup;
        rows.scale = reinterpret_cast<float*>(p + values * 2 * kActGroup);
        rows.sum = rows.scale + values;
        rows.sum16 = rows.scale + 2 * values;
        rows.wide = reinterpret_cast<uint32_t*>(rows.scale + 4 * values);
        rows.num_wide = reinterpret_cast<int32_t*>(rows.wide + blocks * size_t(rows.groups));
    }
    return values * (2 * kActGroup + 4 * 4) + blocks * size_t(rows.groups + 1) * 4;
}

// The same for the fixed form.
size_t fixed_rows(FixedRows& rows, int8_t* p, int64_t M, int64_t K) {
    rows.rows = M;
    rows.ldq = ceil_div(K, kStep) * kStep;
    rows.groups = ceil_div(K, kFixedGroup);
    const size_t values = size_t(M * rows.ldq) * sizeof *rows.q;
    if (p) {
        rows.q = reinterpret_cast<int16_t*>(p);
        rows.scale = reinterpret_cast<float*>(p + values);
    }
    return values + size_t(M * rows.groups) * sizeof *rows.scale;
}

int64_t float_bytes(WeightKind kind) { return kind == WeightKind::f32 ? 4 : 2; }

}  // namespace

// A large mapping that many matrices share. What is mapped page by page costs a TLB miss every 4 KB, a third of a decoding
// step's time; in huge pages of its own a small matrix would take 2 MB.
class Chunk {
public:
    explicit Chunk(size_t bytes) : size_(bytes) {
        const size_t slack = kHugePage;  // to begin on a huge page; what is too much is given back
        void* p = mmap(nullptr, size_ + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        data_ = static_cast<uint8_t*>(p);
        const size_t head = (kHugePage - reinterpret_cast<uintptr_t>(p) % kHugePage) % kHugePage;
        if (head) munmap(data_, head);
        data_ += head;
        if (slack > head) munmap(data_ + size_, slack - head);
#ifdef MADV_HUGEPAGE
        madvise(data_, size_, MADV_HUGEPAGE);
#endif
    }
    ~Chunk() { munmap(data_, size_); }
    Chunk(const Chunk&) = delete;
    Chunk& operator=(const Chunk&) = delete;

    // The next `bytes` of it, or null if they do not fit.
    uint8_t* take(size_t bytes) {
        if (bytes > size_ - used_) return nullptr;
        used_ += bytes;
        return data_ + used_ - bytes;
    }

private:
    uint8_t* data_;
    size_t size_, used_ = 0;
};

Pages::Pages(size_t bytes) {
    static std::mutex mutex;
    static std::weak_ptr<Chunk> current;  // lives as long as a matrix in it
    bytes = (std::max<size_t>(bytes, 1) + 63) / 64 * 64;
    const std::lock_guard lock(mutex);
    chunk_ = current.lock();
    if (chunk_ && (data_ = chunk_->take(bytes))) return;
    chunk_ = std::make_shared<Chunk>((std::max(bytes, kChunk) + kHugePage - 1) / kHugePage * kHugePage);
    data_ = chunk_->take(bytes);
    if (bytes < kChunk) current = chunk_;
}

Pages::~Pages() = default;

PackedLinear::PackedLinear(int64_t K) : K_(K) {
    if (K < 1) throw std::invalid_argument("a matrix needs at least one column");
}

void PackedLinear::append(PackedMatrix w, const float* bias) {
    w.K = K_;
    w.tiles = ceil_div(w.N, kTile);
    Part part{w, N_, std::make_unique<Pages>(size_t(w.tiles * w.tile_bytes)), nullptr};
    if (bias) {
        part.bias = std::make_unique<Pages>(size_t(w.tiles * kTile) * sizeof(float));
        std::memcpy(part.bias->data(), bias, size_t(w.N) * sizeof(float));
        part.w.bias = reinterpret_cast<const float*>(part.bias->data());
    }
    part.w.data = part.data->data();
    N_ += w.N;
    tiles_ += w.tiles;
    nbytes_ += w.tiles * w.tile_bytes + (bias ? w.N * 4 : 0);
    has_int_ = has_int_ || w.kind == WeightKind::integer;
    has_bf16_ = has_bf16_ || w.kind == WeightKind::bf16;
    has_fixed_ = has_fixed_ || w.kind == WeightKind::fixed;
    parts_.push_back(std::move(part));
}

void PackedLinear::add_int(const Values& values, int64_t N, int bits, int64_t group, const Scales& from, int zero,
                           const float* bias) {
    const bool two_level = from.form == ScaleForm::two_level;
    if (K_ >= int64_t(1) << 21) throw std::invalid_argument("an integer matrix has fewer than 2^21 columns");
    if (N < 1 || (bits != 4 && bits != 5 && bits != 6 && bits != 8) || group < 16 || (group != 16 && group % 32) || K_ % group ||
        (two_level && (K_ % kSuperGroup || kSuperGroup % group)))
        throw std::invalid_argument("this shape or group size has no integer layout");
    PackedMatrix w;
    w.N = N;
    w.kind = WeightKind::integer;
    w.bits = bits == 5 && group == 16 ? 6 : bits;  // half a part's fifth bits would not fill a load
    w.zero = from.mins ? 0 : zero;
    w.mins = from.mins != nullptr;
    w.scales = from.form;
    w.group = group;
    w.unit_groups = two_level ? kSuperGroup / group : 1;
    const int64_t kinds = w.mins ? 2 : 1;  // scales, and mins if there are any
    const int64_t scale_bytes = two_level ? 1 : from.form == ScaleForm::f32 ? 4 : 2;
    const int64_t factor_bytes = two_level ? kTile * 2 : 0;
    w.header = kinds * (factor_bytes + kTile * scale_bytes * w.unit_groups);
    if (two_level) w.header = ceil_div(w.header, 64) * 64;
    const int64_t count_of_part = part_values(group), part_bytes = kTile * count_of_part * w.bits / 8;
    w.unit_bytes = w.header + kTile * group * w.bits / 8 * w.unit_groups;
    const int64_t groups = K_ / group, units = groups / w.unit_groups;
    w.tile_bytes = w.unit_bytes * units;
    append(w, bias);
    const Part& part = parts_.back();
    const auto pack_scales = [&](uint8_t* unit, int64_t u, int64_t n, int64_t c) {
        for (int64_t kind = 0; kind < kinds; ++kind) {
            const auto* s = static_cast<const uint8_t*>(kind ? from.mins : from.scales);
            if (two_level) {
                const auto* f = static_cast<const uint16_t*>(kind ? from.min_factors : from.factors);
                std::memcpy(unit + kind * factor_bytes + c * 2, f + n * units + u, 2);
            }
            uint8_t* to = unit + kinds * factor_bytes + kind * w.unit_groups * kTile * scale_bytes;
            for (int64_t g = 0; g < w.unit_groups; ++g)
                std::memcpy(to + (g * kTile + c) * scale_bytes, s + (n * groups + u * w.unit_groups + g) * scale_bytes,
                            size_t(scale_bytes));
        }
    };
    // A row of blocks is put together where it stays in the first cache until it is packed.
    const int64_t row_bytes = values.format ? values.format->row_bytes(K_) : K_;
    const auto row_of = [&](int64_t n, int thread) -> const uint8_t* {
        const uint8_t* row = values.data + (values.rows ? values.rows[n] : n) * row_bytes;
        if (!values.format) return row;
        auto* whole = static_cast<uint8_t*>(thread_scratch(thread, size_t(K_)));
        values.format->unpack_row(whole, row, K_);
        return whole;
    };
    parallel_for(part.w.tiles, [&](int64_t t, int thread) {
        uint8_t* tile = part.data->data() + t * w.tile_bytes;
        const int64_t columns = std::min<int64_t>(kTile, N - t * kTile);
        for (int64_t c = 0; c < columns; ++c) {
            const int64_t n = t * kTile + c;
            const uint8_t* row = row_of(n, thread);
            for (int64_t u = 0; u < units; ++u) {
                pack_scales(tile + u * w.unit_bytes, u, n, c);
                uint8_t* p = tile + u * w.unit_bytes + w.header;
                const int64_t count = w.unit_groups * group;
                const uint8_t* v = row + u * count;
                for (int64_t k = 0; k < count; k += count_of_part, p += part_bytes)
                    pack_part(p, v + k, count_of_part, w.bits, c);
            }
        }
    });
}

void PackedLinear::add_float(const void* weights, int64_t N, WeightKind kind, const float* bias) {
    if (N < 1 || (kind != WeightKind::bf16 && kind != WeightKind::f16 && kind != WeightKind::f32))
        throw std::invalid_argument("this shape or type has no float layout");
    PackedMatrix w;
    w.N = N;
    w.kind = kind;
    w.tile_bytes = kTile * float_bytes(kind) * (kind == WeightKind::bf16 ? (K_ + 1) / 2 * 2 : K_);
    append(w, bias);
    const Part& part = parts_.back();
    parallel_for(part.w.tiles, [&](int64_t t, int) {
        uint8_t* tile = part.data->data() + t * w.tile_bytes;
        const int64_t columns = std::min<int64_t>(kTile, N - t * kTile);
        for (int64_t c = 0; c < columns; ++c) {
            const int64_t n = t * kTile + c;
            if (kind == WeightKind::f32) {
                const auto* v = static_cast<const uint32_t*>(weights) + n * K_;
                auto* p = reinterpret_cast<uint32_t*>(tile) + c;
                for (int64_t k = 0; k < K_; ++k) p[k * kTile] = v[k];
                continue;
            }
            const auto* v = static_cast<const uint16_t*>(weights) + n * K_;
            auto* p = reinterpret_cast<uint16_t*>(tile);
            if (kind == WeightKind::f16)
                for (int64_t k = 0; k < K_; ++k) p[k * kTile + c] = v[k];
            else
                for (int64_t k = 0; k < K_; ++k) p[k / 2 * 2 * kTile + 2 * c + k % 2] = v[k];
        }
    });
}

void PackedLinear::add_fixed(const float* weights, int64_t N, const float* bias) {
    if (N < 1) throw std::invalid_argument("a matrix needs at least one row");
    PackedMatrix w;
    w.N = N;
    w.kind = WeightKind::fixed;
    w.group = kFixedGroup;
    w.header = kTile * 4;
    w.unit_bytes = w.header + kTile * kFixedGroup * 2;
    FixedRows row;
    const size_t row_bytes = fixed_rows(row, nullptr, 1, K_);
    w.tile_bytes = row.groups * w.header + kTile * row.ldq * 2;
    append(w, bias);
    const Part& part = parts_.back();
    const LinearKernels& kernels = OCTAVO_KERNELS(linear_kernels);
    parallel_for(part.w.tiles, [&](int64_t t, int thread) {
        const int64_t columns = std::min<int64_t>(kTile, N - t * kTile);
        for (int64_t c = 0; c < columns; ++c) {
            FixedRows fixed;
            fixed_rows(fixed, static_cast<int8_t*>(thread_scratch(thread, row_bytes)), 1, K_);
            kernels.fix(weights + (t * kTile + c) * K_, K_, K_, 0, 1, fixed);
            uint8_t* unit = part.data->data() + t * w.tile_bytes;
            for (int64_t g = 0; g < fixed.groups; ++g, unit += w.unit_bytes) {
                std::memcpy(unit + 4 * c, fixed.scale + g, 4);
                const int64_t from = g * kFixedGroup, to = std::min(fixed.ldq, from + kFixedGroup);
                for (int64_t k = from; k < to; k += 2) std::memcpy(unit + w.header + (k - from) * 2 * kTile + 4 * c, fixed.q + k, 4);
            }
        }
    });
}

void PackedLinear::add_table(const uint8_t* codes, int64_t N, int64_t group, const float* scales, const float* table,
                             const float* bias) {
    if (N < 1 || group < 2 || group % 2 || K_ % group)
        throw std::invalid_argument("this shape or group size has no table layout");
    PackedMatrix w;
    w.N = N;
    w.kind = table ? WeightKind::table : WeightKind::e4m3;
    if (table) std::copy_n(table, kTableValues, w.table);
    w.group = group;
    w.header = kTile * 4;
    w.unit_bytes = w.header + kTile * group / (table ? 2 : 1);
    w.tile_bytes = w.unit_bytes * (K_ / group);
    append(w, bias);
    const Part& part = parts_.back();
    const int64_t groups = K_ / group;
    parallel_for(part.w.tiles, [&](int64_t t, int) {
        const int64_t columns = std::min<int64_t>(kTile, N - t * kTile);
        for (int64_t c = 0; c < columns; ++c) {
            const int64_t n = t * kTile + c;
            uint8_t* unit = part.data->data() + t * w.tile_bytes;
            for (int64_t g = 0; g < groups; ++g, unit += w.unit_bytes) {
                const float scale = scales[n * groups + g] * (table ? 1.0f : kE4m3Factor);
                std::memcpy(unit + 4 * c, &scale, 4);
                uint8_t* p = unit + w.header + c;
                const uint8_t* v = codes + n * K_ + g * group;
                if (table)
                    for (int64_t k = 0; k < group; k += 2) p[k / 2 * kTile] = uint8_t(v[k] | v[k + 1] << 4);
                else
                    for (int64_t k = 0; k < group; ++k) p[k * kTile] = v[k];
            }
        }
    });
}

void PackedLinear::set_order(const int64_t* order) {
    std::vector<bool> seen(static_cast<size_t>(K_));
    for (int64_t j = 0; j < K_; ++j) {
        if (order[j] < 0 || order[j] >= K_ || seen[size_t(order[j])]) throw std::invalid_argument("the order is no permutation");
        seen[size_t(order[j])] = true;
    }
    order_.assign(order, order + K_);
}

bool PackedLinear::is_prepared(const LinearKernels& kernels) const {
    return has_int_ || has_fixed_ || (has_bf16_ && kernels.round_bf16) || !order_.empty();
}

size_t PackedLinear::lay_out(const LinearKernels& kernels, Activations& a, int8_t* memory, int64_t M) const {
    if (!is_prepared(kernels)) return 0;
    const bool bf16 = has_bf16_ && kernels.round_bf16;
    const size_t int_bytes = has_int_ ? (quantized_rows(a.quantized, nullptr, M, K_, kernels.block) + 63) / 64 * 64 : 0;
    a.bf16.rows = M;
    a.bf16.ld = ceil_div(K_, kStep) * kStep;
    const size_t bf16_bytes = bf16 ? (size_t(M * a.bf16.ld) * 2 + 63) / 64 * 64 : 0;
    const size_t fixed_bytes = has_fixed_ ? (fixed_rows(a.fixed, nullptr, M, K_) + 63) / 64 * 64 : 0;
    if (memory) {
        if (has_int_) quantized_rows(a.quantized, memory, M, K_, kernels.block);
        if (bf16) a.bf16.x = reinterpret_cast<uint16_t*>(memory + int_bytes);
        if (has_fixed_) fixed_rows(a.fixed, memory + int_bytes + bf16_bytes, M, K_);
        if (!order_.empty()) {
            a.given = a.x;
            a.ld_given = a.ldx;
            a.x = reinterpret_cast<float*>(memory + int_bytes + bf16_bytes + fixed_bytes);
            a.ldx = K_;
        }
    }
    return int_bytes + bf16_bytes + fixed_bytes + (order_.empty() ? 0 : (size_t(M * K_) * 4 + 63) / 64 * 64);
}

void PackedLinear::fill(const LinearKernels& kernels, const Activations& a, int64_t from, int64_t to) const {
    if (!order_.empty()) {
        auto* ordered = const_cast<float*>(a.x);
        for (int64_t m = from * kernels.block; m < std::min(a.bf16.rows, to * kernels.block); ++m)
            for (int64_t j = 0; j < K_; ++j) ordered[m * K_ + j] = a.given[m * a.ld_given + order_[size_t(j)]];
    }
    if (has_int_) kernels.quantize(a.x, a.ldx, K_, from, to, a.quantized);
    if (has_fixed_) kernels.fix(a.x, a.ldx, K_, from, to, a.fixed);
    if (a.bf16.x) kernels.round_bf16(a.x, a.ldx, K_, from, to, a.bf16);
}

PackedLinear::Activations PackedLinear::prepare(const LinearKernels& kernels, const float* x, int64_t ldx, int64_t M) const {
    Activations a{x, ldx, {}, {}, {}};
    if (!is_prepared(kernels)) return a;
    lay_out(kernels, a, static_cast<int8_t*>(shared_scratch(lay_out(kernels, a, nullptr, M))), M);
    const int64_t blocks = ceil_div(M, kernels.block);
    const int64_t run = std::max<int64_t>(1, std::min(16384 / (K_ * kernels.block), blocks / num_threads()));
    parallel_for(ceil_div(blocks, run), [&](int64_t i, int) {
        fill(kernels, a, i * run, std::min(blocks, (i + 1) * run));
    });
    return a;
}

void PackedLinear::run_tiles(const LinearKernels& kernels, const Activations& a, int64_t row0, int64_t row1, int64_t tile0,
                             int64_t tile1, float* out, int64_t ldo) const {
    for (const Part& part : parts_) {
        const int64_t from = std::max<int64_t>(tile0, 0), to = std::min(tile1, part.w.tiles);
        if (from < to) {
            float* columns = out + part.column;
            if (part.w.kind == WeightKind::integer) kernels.gemm_int(part.w, a.quantized, row0, row1, from, to, columns, ldo);
            else if (part.w.kind == WeightKind::bf16 && kernels.gemm_bf16)
                kernels.gemm_bf16(part.w, a.bf16, row0, row1, from, to, columns, ldo);
            else if (part.w.kind == WeightKind::fixed)
                kernels.gemm_fixed(part.w, a.fixed, row0, row1, from, to, columns, ldo);
            else kernels.gemm_float(part.w, a.x, a.ldx, row0, row1, from, to, columns, ldo);
        }
        tile0 -= part.w.tiles;
        tile1 -= part.w.tiles;
        if (tile1 <= 0) return;
    }
}

PackedLinear::Cut PackedLinear::cut(const Activations& a, int64_t M, int64_t most) const {
    // Where the cuts fall has no part in the result.
    const int64_t row_bytes = has_int_ ? a.quantized.ldq : K_ * (a.bf16.x || has_fixed_ ? 2 : 4);
    const int64_t row_block = std::min(M, std::max<int64_t>(2 * kRowStep, kRowBlockBytes / row_bytes / kRowStep * kRowStep));
    const int64_t row_blocks = ceil_div(M, row_block);
    const int64_t work = nbytes_ * ceil_div(M, 4);
    const int64_t wanted = num_threads() == 1 ? 1 : std::clamp<int64_t>(work / kTaskBytes, 1, most);
    const int64_t run = std::max<int64_t>(1, tiles_ / ceil_div(wanted, row_blocks));
    return {row_block, row_blocks, run, ceil_div(tiles_, run)};
}

void PackedLinear::run_task(const LinearKernels& kernels, const Activations& a, const Cut& cut, int64_t task, int64_t M,
                            float* out, int64_t ldo) const {
    const int64_t row0 = task / cut.runs * cut.row_block, tile0 = task % cut.runs * cut.run;
    run_tiles(kernels, a, row0, std::min(M, row0 + cut.row_block), tile0, std::min(tiles_, tile0 + cut.run), out, ldo);
}

void PackedLinear::linear(float* out, int64_t ldo, const float* x, int64_t ldx, int64_t M) const {
    if (M < 1 || tiles_ < 1) return;
    const KernelLock lock;
    const LinearKernels& kernels = OCTAVO_KERNELS(linear_kernels);
    const Activations a = prepare(kernels, x, ldx, M);
    // With many rows a task lasts long, and an uneven end costs more than handing out twice as many.
    const Cut tasks = cut(a, M, (M > kRowStep ? 2 * kTasksPerThread : kTasksPerThread) * num_threads());
    parallel_for(tasks.tasks(), [&](int64_t task, int) { run_task(kernels, a, tasks, task, M, out, ldo); });
}

void PackedLinear::linear_groups(const std::vector<const PackedLinear*>& weights, const std::vector<int64_t>& starts,
                                 float* out, const float* x) {
    struct Group {
        const PackedLinear* w;
        int64_t first, rows;
        Activations a;
        Cut tasks;
        int64_t first_block, first_task;
    };
    const KernelLock lock;
    const LinearKernels& kernels = OCTAVO_KERNELS(linear_kernels);
    std::vector<Group> groups;
    size_t bytes = 0;
    int64_t blocks = 0, tasks = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
        const PackedLinear* w = weights[i];
        const int64_t rows = starts[i + 1] - starts[i];
        if (rows < 1) continue;
        Group group{w, starts[i], rows, {x + starts[i] * w->K_, w->K_, {}, {}, {}}, {}, blocks, 0};
        bytes += w->lay_out(kernels, group.a, nullptr, rows);
        blocks += w->is_prepared(kernels) ? ceil_div(rows, kernels.block) : 0;
        groups.push_back(group);
    }
    auto* memory = static_cast<int8_t*>(bytes ? shared_scratch(bytes) : nullptr);
    const int64_t most = ceil_div(2 * kTasksPerThread * num_threads(), std::max<int64_t>(1, int64_t(groups.size())));
    for (Group& group : groups) {
        if (memory) memory += group.w->lay_out(kernels, group.a, memory, group.rows);
        group.tasks = group.w->cut(group.a, group.rows, most);
        group.first_task = tasks;
        tasks += group.tasks.tasks();
    }
    parallel_for(blocks, [&](int64_t block, int) {
        const auto next = std::upper_bound(groups.begin(), groups.end(), block,
                                           [](int64_t at, const Group& group) { return at < group.first_block; });
        const Group& group = *(next - 1);
        group.w->fill(kernels, group.a, block - group.first_block, block - group.first_block + 1);
    });
    parallel_for(tasks, [&](int64_t task, int) {
        const auto next = std::upper_bound(groups.begin(), groups.end(), task,
                                           [](int64_t at, const Group& group) { return at < group.first_task; });
        const Group& group = *(next - 1);
        group.w->run_task(kernels, group.a, group.tasks, task - group.first_task, group.rows, out + group.first * group.w->N_,
                          group.w->N_);
    });
}

void PackedLinear::gather(float* out, int64_t ldo, const int32_t* ids, int64_t M, float scale) const {
    const KernelLock lock;
    const LinearKernels& kernels = OCTAVO_KERNELS(linear_kernels);
    const int64_t block = std::max<int64_t>(1, 16384 / K_);
    parallel_for(ceil_div(M, block), [&](int64_t i, int thread) {
        for (int64_t m = i * block; m < std::min(M, (i + 1) * block); ++m) {
            int64_t n = ids[m];
            for (const Part& part : parts_) {
                if (n < part.w.N) {
                    float* row = out + m * ldo;
                    auto* ordered = order_.empty() ? row : static_cast<float*>(thread_scratch(thread, size_t(K_) * 4));
                    kernels.gather_row(part.w, n, scale, ordered);
                    for (size_t j = 0; j < order_.size(); ++j) row[order_[j]] = ordered[j];
                    break;
                }
                n -= part.w.N;
            }
        }
    });
}

}  // namespace octavo
