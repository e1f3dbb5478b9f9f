// Products of small matrices that lie in the cache, a block of rows and vectors of columns in registers at a time.
#pragma once
#include "simd.h"

namespace product {

using simd::vf;
using simd::W;

constexpr int ROWS = 4;
#if defined(__AVX512F__)
constexpr int VECTORS = 4;
#else
constexpr int VECTORS = 2;
#endif

// acc[r][v] += sum over k < depth of a[r * A_ROW + k * A_K] * b[k * b_row + v * W ..].
template <int A_ROW, int A_K, int V>
SIMD_INLINE void block(vf (&acc)[ROWS][V], const float* a, const float* b, int64_t b_row, int64_t depth) {
    for (int64_t k = 0; k < depth; ++k) {
        vf column[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) column[v] = simd::load(b + v * W);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
            const vf factor = a[r * A_ROW] - vf{};
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) acc[r][v] = simd::fma(factor, column[v], acc[r][v]);
        }
        a += A_K;
        b += b_row;
    }
}

template <int A_ROW, int A_K, int V, bool ADD>
static void strip(
    float* out, int64_t out_row, int rows, const float* a, const float* b, int64_t b_row, int64_t depth
) {
    for (int r = 0; r < rows; r += ROWS) {
        vf acc[ROWS][V] = {};
        block<A_ROW, A_K, V>(acc, a + r * A_ROW, b, b_row, depth);
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; ++i) {
            float* to = out + (r + i) * out_row;
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) simd::store(to + v * W, ADD ? simd::load(to + v * W) + acc[i][v] : acc[i][v]);
        }
    }
}

// out = a b, or out += a b; rows a multiple of ROWS, columns a multiple of W.
template <int A_ROW, int A_K, bool ADD>
static void multiply(
    float* out,
    int64_t out_row,
    int rows,
    int64_t columns,
    const float* a,
    const float* b,
    int64_t b_row,
    int64_t depth
) {
    int64_t c = 0;
    for (; c + VECTORS * W <= columns; c += VECTORS * W)
        strip<A_ROW, A_K, VECTORS, ADD>(out + c, out_row, rows, a, b + c, b_row, depth);
    for (; c + 2 * W <= columns; c += 2 * W)
        strip<A_ROW, A_K, 2, ADD>(out + c, out_row, rows, a, b + c, b_row, depth);
    for (; c < columns; c += W) strip<A_ROW, A_K, 1, ADD>(out + c, out_row, rows, a, b + c, b_row, depth);
}

}  // namespace product
