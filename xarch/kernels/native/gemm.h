// Products of small row-major tiles that stay in cache, and their transposition. The rows of a tile are a whole number of
// vectors long (see `padded`); what lies behind the columns in use is zero, or goes to columns that nobody reads.
#pragma once
#include <cstring>
#include <utility>

#include "simd.h"

namespace gemm {

using simd::vf;
using simd::W;

#if defined(__AVX512F__)
constexpr int STRIP = 4;
constexpr int ROWS[5] = {0, 12, 12, 8, 6};
#else
constexpr int STRIP = 2;
constexpr int ROWS[3] = {0, 12, 6};
#endif
// Widest block of rows; a causal sum may read so many columns less one beyond the diagonal.
constexpr int MAX_ROWS = 12;

constexpr int64_t padded(int64_t columns) { return (columns + W - 1) / W * W; }

// Left factor: element (i, k) lies at `at[i * row + k * column]`. Right factor: row k begins at `right + k * stride`.
struct Product {
    const float* at = nullptr;
    int64_t row = 0, column = 0;
    const float* right = nullptr;
    int64_t stride = 0;
    int64_t inner = 0;
};

// Which k of the last product count for a block of rows first..last-1: all, k < last, or k >= first. BELOW computes the
// columns up to the diagonal only.
enum class Range { ALL, UP_TO_ROW, FROM_ROW, BELOW };

template <int MR, int NV>
SIMD_INLINE void accumulate(vf (&sum)[MR][NV], const Product& p, int64_t first, int64_t column, int64_t from, int64_t to) {
    const float* a = p.at + first * p.row + from * p.column;
    const float* b = p.right + from * p.stride + column;
    for (int64_t k = from; k < to; ++k, a += p.column, b += p.stride) {
        vf right[NV];
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) right[j] = simd::load(b + j * W);
#pragma GCC unroll 12
        for (int i = 0; i < MR; ++i) {
            const vf left = a[i * p.row] - vf{};
#pragma GCC unroll 4
            for (int j = 0; j < NV; ++j) sum[i][j] = simd::fma(left, right[j], sum[i][j]);
        }
    }
}

// Cache lines that are wanted soon, fetched a few at a time between blocks of a product: rows of a tensor are too far
// apart for the processor to foresee them, and waiting for them takes as long as all the arithmetic.
class Ahead {
    struct Region {
        const char* at;
        int64_t stride, rows, lines;
        bool written;
    };
    Region regions_[8];
    int count_ = 0, now_ = 0;
    int64_t row_ = 0;

public:
    void clear() { count_ = now_ = 0, row_ = 0; }
    void add(const float* at, int64_t stride, int64_t rows, int64_t columns, bool written = false) {
        if (count_ < 8) regions_[count_++] = {(const char*)at, 4 * stride, rows, (4 * columns + 63) / 64, written};
    }
    void step(int64_t lines = 20) {
        while (now_ < count_ && lines > 0) {
            const Region& r = regions_[now_];
            const char* at = r.at + row_ * r.stride;
            for (int64_t i = 0; i < r.lines; ++i)
                if (r.written)
                    __builtin_prefetch(at + 64 * i, 1, 2);
                else
                    __builtin_prefetch(at + 64 * i, 0, 2);
            lines -= r.lines;
            if (++row_ == r.rows) row_ = 0, ++now_;
        }
    }
};

struct Job {
    float* out;
    int64_t stride;
    int64_t rows, columns;
    // What was in `out` counts times this.
    float keep = 0.0f;
    // out[i] = keep out[i] + scale[i] (first product)[i] + (second product)[i]
    Product first;
    const float* scale = nullptr;
    Product second;
    Range range = Range::ALL;
};

template <int MR, int NV>
static void block(const Job& job, int64_t row, int64_t column) {
    vf sum[MR][NV] = {};
    if (job.first.inner > 0) {
        accumulate<MR, NV>(sum, job.first, row, column, 0, job.first.inner);
#pragma GCC unroll 12
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < NV; ++j) sum[i][j] *= job.scale[row + i];
    }
    const int64_t from = job.range == Range::FROM_ROW ? row : 0;
    const int64_t to = job.range == Range::UP_TO_ROW ? row + MR : job.second.inner;
    accumulate<MR, NV>(sum, job.second, row, column, from, to);
    float* out = job.out + row * job.stride + column;
#pragma GCC unroll 12
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) {
            float* to_store = out + i * job.stride + j * W;
            vf value = sum[i][j];
            if (job.keep != 0.0f) value = simd::fma(simd::load(to_store), vf{} + job.keep, value);
            simd::store(to_store, value);
        }
}

template <int NV>
static int64_t block_of(const Job& job, int64_t row, int64_t column, int64_t left) {
    if (left >= ROWS[NV]) return block<ROWS[NV], NV>(job, row, column), ROWS[NV];
    if (left >= 4) return block<4, NV>(job, row, column), 4;
    if (left >= 2) return block<2, NV>(job, row, column), 2;
    return block<1, NV>(job, row, column), 1;
}

static inline int64_t block_at(const Job& job, int64_t row, int64_t column, int64_t vectors, int64_t left) {
#if defined(__AVX512F__)
    if (vectors >= 4) return block_of<4>(job, row, column, left);
    if (vectors == 3) return block_of<3>(job, row, column, left);
#endif
    if (vectors >= 2) return block_of<2>(job, row, column, left);
    return block_of<1>(job, row, column, left);
}

static inline void run(const Job& job, Ahead& ahead) {
    const int64_t all = padded(job.columns) / W;
    for (int64_t v = 0; v < all; v += STRIP) {
        if (job.range != Range::BELOW) {
            for (int64_t row = 0; row < job.rows; ahead.step())
                row += block_at(job, row, v * W, all - v, job.rows - row);
            continue;
        }
        for (int64_t row = v * W; row < job.rows; ahead.step()) {
            // Rows of one vector share a diagonal block, so that a block of rows never needs a column more.
            const int64_t upto = row / W + 1, left = (upto * W < job.rows ? upto * W : job.rows) - row;
            const int64_t vectors = upto - v < STRIP ? upto - v : STRIP;
            row += block_at(job, row, v * W, vectors, left);
        }
    }
}

template <int D, bool HIGH, int... L>
SIMD_INLINE vf merge(vf a, vf b, std::integer_sequence<int, L...>) {
    return HIGH ? __builtin_shufflevector(a, b, ((L & D) ? W + L : L + D)...)
                : __builtin_shufflevector(a, b, ((L & D) ? W + L - D : L)...);
}

template <int D>
SIMD_INLINE void exchange(vf (&r)[W]) {
    constexpr auto lanes = std::make_integer_sequence<int, W>{};
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
        if ((i & D) == 0) {
            const vf a = r[i], b = r[i + D];
            r[i] = merge<D, false>(a, b, lanes);
            r[i + D] = merge<D, true>(a, b, lanes);
        }
}

// to[j, i] = from[i, j] for whole blocks of W x W; both tiles must reach that far.
static inline void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i += W)
        for (int64_t j = 0; j < columns; j += W) {
            vf r[W];
#pragma GCC unroll 16
            for (int k = 0; k < W; ++k) r[k] = simd::load(from + (i + k) * from_stride + j);
#if defined(__AVX512F__)
            exchange<8>(r);
#endif
            exchange<4>(r);
            exchange<2>(r);
            exchange<1>(r);
#pragma GCC unroll 16
            for (int k = 0; k < W; ++k) simd::store(to + (j + k) * to_stride + i, r[k]);
        }
}

// Copies rows of any stride into a tile; zero behind the columns up to the padding, and in the rows up to `all_rows`.
static inline void pack(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t all_rows) {
    const int64_t stride = padded(columns);
    for (int64_t i = 0; i < rows; ++i) {
        const float* row = from + i * from_stride;
        float* tile = to + i * stride;
        int64_t j = 0;
        for (; j + W <= columns; j += W) simd::store(tile + j, simd::load(row + j));
        if (j < columns) simd::store(tile + j, simd::load_part(row + j, (int)(columns - j)));
    }
    if (all_rows > rows) std::memset(to + rows * stride, 0, sizeof(float) * (size_t)((all_rows - rows) * stride));
}

// The inverse: rows of a tile to rows of any stride.
static inline void unpack(const float* tile, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
    const int64_t stride = padded(columns);
    for (int64_t i = 0; i < rows; ++i) {
        int64_t j = 0;
        for (; j + W <= columns; j += W) simd::store(to + i * to_stride + j, simd::load(tile + i * stride + j));
        if (j < columns) simd::store_part(to + i * to_stride + j, simd::load(tile + i * stride + j), (int)(columns - j));
    }
}

}  // namespace gemm
