// Squares of W x W floats: transposition, and the sums of many vectors at once.
#pragma once
#include "simd.h"

namespace tiles {
using simd::vf;
using simd::W;

// low: lane j is lane j of a where bit K of j is clear, else lane j - K of b. high: the lanes of both that low leaves out.
#if defined(__AVX512F__)
template <int K>
SIMD_INLINE vf low(vf a, vf b) {
    simd::vi index;
    for (int j = 0; j < 16; ++j) index[j] = j & K ? 16 + j - K : j;
    return (vf)_mm512_permutex2var_ps((__m512)a, (__m512i)index, (__m512)b);
}
template <int K>
SIMD_INLINE vf high(vf a, vf b) {
    simd::vi index;
    for (int j = 0; j < 16; ++j) index[j] = j & K ? 16 + j : j + K;
    return (vf)_mm512_permutex2var_ps((__m512)a, (__m512i)index, (__m512)b);
}
#elif defined(__AVX__)
template <int K>
SIMD_INLINE vf low(vf a, vf b) {
    __m256 x = (__m256)a, y = (__m256)b;
    if constexpr (K == 4) return (vf)_mm256_permute2f128_ps(x, y, 0x20);
    if constexpr (K == 2) return (vf)_mm256_shuffle_ps(x, y, 0x44);
    return (vf)_mm256_blend_ps(x, _mm256_permute_ps(y, 0xa0), 0xaa);
}
template <int K>
SIMD_INLINE vf high(vf a, vf b) {
    __m256 x = (__m256)a, y = (__m256)b;
    if constexpr (K == 4) return (vf)_mm256_permute2f128_ps(x, y, 0x31);
    if constexpr (K == 2) return (vf)_mm256_shuffle_ps(x, y, 0xee);
    return (vf)_mm256_blend_ps(_mm256_permute_ps(x, 0xf5), y, 0xaa);
}
#else
template <int K>
SIMD_INLINE vf low(vf a, vf b) {
    vf r;
    for (int j = 0; j < W; ++j) r[j] = j & K ? b[j - K] : a[j];
    return r;
}
template <int K>
SIMD_INLINE vf high(vf a, vf b) {
    vf r;
    for (int j = 0; j < W; ++j) r[j] = j & K ? b[j] : a[j + K];
    return r;
}
#endif

template <int K>
SIMD_INLINE void exchange(vf* v) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
        if (i & K) continue;
        vf a = v[i], b = v[i + K];
        v[i] = low<K>(a, b);
        v[i + K] = high<K>(a, b);
    }
}
// v[i][j] becomes v[j][i].
SIMD_INLINE void transpose(vf* v) {
    if constexpr (W == 16) exchange<8>(v);
    exchange<4>(v);
    exchange<2>(v);
    exchange<1>(v);
}

// One branch of sum_tree: the vectors n, n + STEP, n + 2 STEP, ... below COUNT. Each is made where it is needed, so that
// few of them live at the same time.
template <int COUNT, int STEP, class F>
SIMD_INLINE vf sum_branch(int n, const F& make) {
    if constexpr (STEP == COUNT) {
        return make(n);
    } else {
        vf a = sum_branch<COUNT, 2 * STEP>(n, make), b = sum_branch<COUNT, 2 * STEP>(n + STEP, make);
        return low<STEP>(a, b) + high<STEP>(a, b);
    }
}
// Sums within both halves of COUNT vectors make(0), make(1), ...: with COUNT = W / 2 lane n of each half of the result is
// the sum of that half of make(n), with COUNT = 1 every lane of a half is its sum.
template <int COUNT, class F>
SIMD_INLINE vf sum_tree(const F& make) {
    static_assert(COUNT == W / 2 || COUNT == 1, "half a vector or one");
    vf v = sum_branch<COUNT, 1>(0, make);
    if constexpr (COUNT == 1) {
        if constexpr (W == 16) v = low<4>(v, v) + high<4>(v, v);
        v = low<2>(v, v) + high<2>(v, v);
        v = low<1>(v, v) + high<1>(v, v);
    }
    return v;
}

}  // namespace tiles
