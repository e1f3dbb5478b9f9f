// Products of tiles of known size that lie in the cache, a block of rows and vectors of columns in registers at a time.
#pragma once
#include "gemm.h"

namespace product {

using simd::vf;
using simd::W;

#if defined(__AVX512F__)
constexpr int VECTORS = 4;
#else
constexpr int VECTORS = 2;
#endif
constexpr int ROWS = 6;

// sum[r][v] += sum over k < depth of a[r * A_ROW + k * A_K] * b[k * b_row + v * W ..].
template <int A_ROW, int A_K, int R, int V>
SIMD_INLINE void block(vf (&sum)[R][V], const float* a, const float* b, int64_t b_row, int64_t depth) {
    gemm::Product factors;
    factors.at = a;
    factors.row = A_ROW;
    factors.column = A_K;
    factors.right = b;
    factors.stride = b_row;
    gemm::accumulate<R, V>(sum, factors, 0, 0, 0, depth);
}

template <int A_ROW, int A_K, int R, int V, bool ADD>
SIMD_INLINE void rows_of(float* out, int64_t out_row, const float* a, const float* b, int64_t b_row, int64_t depth) {
    vf sum[R][V] = {};
    block<A_ROW, A_K, R, V>(sum, a, b, b_row, depth);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            float* to = out + r * out_row + v * W;
            simd::store(to, ADD ? simd::load(to) + sum[r][v] : sum[r][v]);
        }
}

template <int A_ROW, int A_K, int M, int V, bool ADD>
static void strip(float* out, int64_t out_row, const float* a, const float* b, int64_t b_row, int64_t depth) {
    int r = 0;
    for (; r + ROWS <= M; r += ROWS)
        rows_of<A_ROW, A_K, ROWS, V, ADD>(out + r * out_row, out_row, a + r * A_ROW, b, b_row, depth);
    if constexpr (M % ROWS != 0)
        rows_of<A_ROW, A_K, M % ROWS, V, ADD>(out + r * out_row, out_row, a + r * A_ROW, b, b_row, depth);
}

// out = a b, or out += a b, with M rows; columns a multiple of W.
template <int A_ROW, int A_K, int M, bool ADD>
static void multiply(
    float* out, int64_t out_row, int64_t columns, const float* a, const float* b, int64_t b_row, int64_t depth
) {
    int64_t c = 0;
    for (; c + VECTORS * W <= columns; c += VECTORS * W)
        strip<A_ROW, A_K, M, VECTORS, ADD>(out + c, out_row, a, b + c, b_row, depth);
    for (; c + 2 * W <= columns; c += 2 * W)
        strip<A_ROW, A_K, M, 2, ADD>(out + c, out_row, a, b + c, b_row, depth);
    for (; c < columns; c += W) strip<A_ROW, A_K, M, 1, ADD>(out + c, out_row, a, b + c, b_row, depth);
}

}  // namespace product
