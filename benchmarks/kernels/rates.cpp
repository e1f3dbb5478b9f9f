// Rates of the vector functions that the compiled kernels are made of: the limits they are compared with.
#include <cstdint>

#include "parallel.h"
#include "simd.h"

using namespace simd;
using parallel::parallel_for;

// rounds exponentials of 8 W numbers in registers per thread; the sum is returned so that nothing is dropped.
extern "C" float rate_exp(int64_t rounds, int threads) {
    float found[256] = {};
    parallel_for(threads, threads, [&](int64_t t) {
        vf x[8];
        for (int i = 0; i < 8; ++i) x[i] = splat(-0.1f * (float)(i + 1));
        for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) x[i] = -vexp(x[i]);
        for (int i = 0; i < 8; ++i) found[t % 256] += hsum(x[i]);
    });
    float sum = 0;
    for (float f : found) sum += f;
    return sum;
}

extern "C" float rate_fma(int64_t rounds, int threads) {
    float found[256] = {};
    parallel_for(threads, threads, [&](int64_t t) {
        vf x[16], a = splat(0.9999f), b = splat(1e-6f);
        for (int i = 0; i < 16; ++i) x[i] = splat((float)i);
        for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) x[i] = fma(x[i], a, b);
        for (int i = 0; i < 16; ++i) found[t % 256] += hsum(x[i]);
    });
    float sum = 0;
    for (float f : found) sum += f;
    return sum;
}

extern "C" int lanes() { return W; }
