// Vectors of W floats (W = 16 with AVX-512, else 8, which GCC and Clang split where the machine is narrower) and the
// functions the kernels need on them. Comparisons give all-ones lanes for true, as the vector extensions define.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace simd {

#if defined(__AVX512F__)
constexpr int W = 16;
#else
constexpr int W = 8;
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));

#define SIMD_INLINE static inline __attribute__((always_inline))

// Minus zero: plus zero would be an addition, as it changes -0.
SIMD_INLINE vf splat(float a) { return a - vf{}; }
SIMD_INLINE vf load(const float* p) { vf v; std::memcpy(&v, p, sizeof v); return v; }
SIMD_INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

// The first n <= W floats at p, zero in the other lanes; nothing behind them is touched.
SIMD_INLINE vf load_part(const float* p, int n) {
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    vf v{};
    std::memcpy(&v, p, sizeof(float) * (size_t)n);
    return v;
#endif
}
SIMD_INLINE void store_part(float* p, vf v, int n) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
    std::memcpy(p, &v, sizeof(float) * (size_t)n);
#endif
}

SIMD_INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// Lanes of a where the mask is set, of b elsewhere.
SIMD_INLINE vf select(vi mask, vf a, vf b) { return mask ? a : b; }
// A NaN in a comes through both.
SIMD_INLINE vf vmin(vf a, vf b) { return select(a > b, b, a); }
SIMD_INLINE vf vmax(vf a, vf b) { return select(a < b, b, a); }
SIMD_INLINE vf vabs(vf a) { return (vf)((vi)a & 0x7fffffff); }

// Sum of the lanes, halves first, always in the same order.
SIMD_INLINE float hsum(vf v) {
    float a[W];
    std::memcpy(a, &v, sizeof v);
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) a[i] += a[i + half];
    return a[0];
}
SIMD_INLINE float hmax(vf v) {
    float a[W];
    std::memcpy(a, &v, sizeof v);
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) a[i] = a[i] < a[i + half] ? a[i + half] : a[i];
    return a[0];
}

// e^x to 2 units in the last place; 0, inf and NaN as std::exp gives them. Cephes expf: x = n ln 2 + r, a polynomial in r.
SIMD_INLINE vf vexp(vf x) {
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer kept in the low bits
    x = vmax(vmin(x, splat(89.0f)), splat(-105.0f));
    vf shifted = fma(x, splat(1.44269504088896341f), magic);
    vf n = shifted - magic;
    vf r = fma(n, splat(-0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r) + 1.0f;
#if defined(__AVX512F__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    // 2^n in two factors: n = 128 overflows to infinity and n < -126 reaches the subnormal numbers only in the product.
    vi k = (vi)shifted - (vi)magic;
    vi half = k >> 1;
    vf a = (vf)((half + 127) << 23), b = (vf)((k - half + 127) << 23);
    return p * a * b;
#endif
}

// 2^x with 2^r - 1 = r q(r), q of degree 4 fitted on [-1/2, 1/2]: off by 2e-7 at worst, exact at 0,
// and half the work of vexp.
SIMD_INLINE vf vexp2(vf x) {
#if defined(__AVX512DQ__)
    vf r = (vf)_mm512_reduce_ps((__m512)x, 0);
    vf n = x - r;
#else
    const vf magic = splat(12582912.0f);
    x = vmax(vmin(x, splat(129.0f)), splat(-151.0f));
    vf shifted = x + magic;
    vf n = shifted - magic;
    vf r = x - n;
#endif
    vf p = splat(1.3264727e-3f);
    p = fma(p, r, splat(9.6715130e-3f));
    p = fma(p, r, splat(5.5507336e-2f));
    p = fma(p, r, splat(2.4022242e-1f));
    p = fma(p, r, splat(6.9314700e-1f));
    p = fma(p, r, splat(1.0f));
#if defined(__AVX512DQ__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    vi k = (vi)shifted - (vi)magic;
    vi half = k >> 1;
    vf a = (vf)((half + 127) << 23), b = (vf)((k - half + 127) << 23);
    return p * a * b;
#endif
}

// ln x for x > 0 that is normal or infinite; NaN for NaN. Cephes logf.
SIMD_INLINE vf vlog(vf x) {
    vi bits = (vi)x;
    vi k = ((bits >> 23) & 0xff) - 126;
    vf m = (vf)((bits & 0x007fffff) | 0x3f000000);
    vi small = m < 0.707106781186547524f;
    vf r = select(small, m + m, m) - 1.0f;
    vf e = __builtin_convertvector(k + small, vf);
    vf z = r * r;
    vf p = splat(7.0376836292e-2f);
    p = fma(p, r, splat(-1.1514610310e-1f));
    p = fma(p, r, splat(1.1676998740e-1f));
    p = fma(p, r, splat(-1.2420140846e-1f));
    p = fma(p, r, splat(1.4249322787e-1f));
    p = fma(p, r, splat(-1.6668057665e-1f));
    p = fma(p, r, splat(2.0000714765e-1f));
    p = fma(p, r, splat(-2.4999993993e-1f));
    p = fma(p, r, splat(3.3333331174e-1f));
    vf y = p * r * z;
    y = fma(e, splat(-2.12194440e-4f), y);
    y = fma(z, splat(-0.5f), y);
    y = fma(e, splat(0.693359375f), r + y);
    return select((x < splat(__builtin_inff())), y, x);
}

// ln(1 + x) for x >= 0, exact to rounding for small x, too.
SIMD_INLINE vf vlog1p(vf x) {
    vf u = x + 1.0f;
    vf lost = x - (u - 1.0f);
    return select(x < splat(__builtin_inff()), vlog(u) + lost / u, x);
}

SIMD_INLINE vf vsigmoid(vf x) { return 1.0f / (1.0f + vexp(-x)); }
// ln(1 + e^x) without overflow; +inf and NaN come through.
SIMD_INLINE vf vsoftplus(vf x) { return vmax(x, vf{}) + vlog1p(vexp(-vabs(x))); }

}  // namespace simd
