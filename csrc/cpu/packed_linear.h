// A matrix [N, K], or several stacked along N, in the tile order of kernels/linear.h. Owns its memory.
//
// Built once, at load, then only read: linear() and gather() may be called for different objects in turn from any thread;
// they take the kernel lock, so that two calls never run at the same time.
#pragma once

#include "block_format.h"
#include "kernels/linear.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace octavo {

class Chunk;

// Zeroed, 64-byte aligned memory from the system, in huge pages where the system has them. Small areas share mappings.
class Pages {
public:
    explicit Pages(size_t bytes);
    ~Pages();
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    uint8_t* data() const { return data_; }

private:
    std::shared_ptr<Chunk> chunk_;
    uint8_t* data_;
};

class PackedLinear {
public:
    explicit PackedLinear(int64_t K);
    PackedLinear(const PackedLinear&) = delete;
    PackedLinear& operator=(const PackedLinear&) = delete;

    // The scales of an integer matrix, and its mins or null, [N, K / group]: f16, f32, or the int8 steps of two levels, whose
    // factors are f16 [N, K / 256].
    struct Scales {
        ScaleForm form;
        const void *scales, *mins;
        const void *factors, *min_factors;  // of two levels only
    };

    // The values of an integer matrix: uint8 [N, K], or, with a format, blocks of a file. Of these the rows named are meant, or
    // the first N if `rows` is null.
    struct Values {
        const uint8_t* data;
        const BlockFormat* format;
        const int64_t* rows;
    };

    // values are below 2**bits; bias f32 [N] or null. group is 16 or a multiple of 32 and divides K (and 256, which
    // divides K then, if scales have two levels). Throws std::invalid_argument.
    void add_int(const Values& values, int64_t N, int bits, int64_t group, const Scales& scales, int zero, const float* bias);

    // weights [N, K] of kind bf16, f16 or f32.
    void add_float(const void* weights, int64_t N, WeightKind kind, const float* bias);

    // weights f32 [N, K], all finite, rounded to kind fixed.
    void add_fixed(const float* weights, int64_t N, const float* bias);

    // codes uint8 [N, K]; w = table[code] * scale. scales f32 [N, K / group]. table: 16 values, codes are below 16; or null,
    // codes are float8 e4m3. group is even and divides K.
    void add_table(const uint8_t* codes, int64_t N, int64_t group, const float* scales, const float* table, const float* bias);

    // Column j of all parts is column order[j] of x and of what gather() writes; order is a permutation of 0 .. K - 1.
    void set_order(const int64_t* order);

    // out [M, N] = x [M, K] w^T + bias; rows of out and x lie ldo and ldx floats apart.
    void linear(float* out, int64_t ldo, const float* x, int64_t ldx, int64_t M) const;

    // `linear` of several matrices of one shape, and the same bits, in one go: of the consecutive rows of x, matrix i takes those
    // from starts[i] to starts[i + 1], which may be none. Rows of x and out lie K and N floats apart.
    static void linear_groups(const std::vector<const PackedLinear*>& weights, const std::vector<int64_t>& starts, float* out,
                              const float* x);

    // out [M, K] = scale * row ids[m] of w, every value as the checkpoint defines it. ids must be in [0, N).
    void gather(float* out, int64_t ldo, const int32_t* ids, int64_t M, float scale) const;

    int64_t N() const { return N_; }
    int64_t K() const { return K_; }
    int64_t nbytes() const { return nbytes_; }  // read by one linear() call

private:
    struct Part {
        PackedMatrix w;
        int64_t column;  // where its columns begin in the stack
        std::unique_ptr<Pages> data, bias;
    };

    // One product's activations in the forms that the parts want.
    struct Activations {
        const float* x;
        int64_t ldx;
        QuantizedRows quantized;
        Bf16Rows bf16;
        FixedRows fixed;
        const float* given = nullptr;  // where x is in the order of the columns: as it was given
        int64_t ld_given = 0;
    };

    void append(PackedMatrix w, const float* bias);
    // Lays out the forms of M rows in memory, which is counted only if there is none yet. Returns the bytes.
    size_t lay_out(const LinearKernels& kernels, Activations& a, int8_t* memory, int64_t M) const;
    bool is_prepared(const LinearKernels& kernels) const;  // whether the parts want another form than floats
    void fill(const LinearKernels& kernels, const Activations& a, int64_t from, int64_t to) const;  // blocks of rows
    Activations prepare(const LinearKernels& kernels, const float* x, int64_t ldx, int64_t M) const;
    // How M rows are cut into tasks: blocks of rows by runs of tiles.
    struct Cut {
        int64_t row_block, row_blocks, run, runs;
        int64_t tasks() const { return runs * row_blocks; }
    };
    Cut cut(const Activations& a, int64_t M, int64_t most) const;
    void run_task(const LinearKernels& kernels, const Activations& a, const Cut& cut, int64_t task, int64_t M, float* out,
                  int64_t ldo) const;
    void run_tiles(const LinearKernels& kernels, const Activations& a, int64_t row0, int64_t row1, int64_t tile0, int64_t tile1,
                   float* out, int64_t ldo) const;

    std::vector<Part> parts_;
    std::vector<int32_t> order_;  // empty: columns stand as those of x
    int64_t N_ = 0, K_, tiles_ = 0, nbytes_ = 0;
    bool has_int_ = false, has_bf16_ = false, has_fixed_ = false;
};

}  // namespace octavo
