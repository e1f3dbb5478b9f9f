// The teacher's part of one tile of query rows: attention to all keys, kept as a panel of exponentials relative to the
// maximum of the row so far, and a factor per row and column tile that the whole row gives once it is known.
#pragma once
#include "packed.h"

namespace distance {

using simd::vf;
using simd::vi;
using simd::W;

constexpr int VU = U / W;

// tanh to 1e-7 absolute near zero and relative elsewhere: Cephes tanhf.
SIMD_INLINE vf vtanh(vf x) {
    const vf z = x * x;
    vf p = simd::splat(-5.70498872745e-3f);
    p = simd::fma(p, z, simd::splat(2.06390887954e-2f));
    p = simd::fma(p, z, simd::splat(-5.37397155531e-2f));
    p = simd::fma(p, z, simd::splat(1.33314422036e-1f));
    p = simd::fma(p, z, simd::splat(-3.33332819422e-1f));
    const vf small = simd::fma(p * z, x, x);
    const vf large = 1.0f - 2.0f / (simd::vexp(x + x) + 1.0f);
    return simd::select(simd::vabs(x) < 0.625f, small, large);
}

SIMD_INLINE vi lanes(int64_t first) {
    vi index;
    for (int i = 0; i < W; ++i) index[i] = static_cast<int32_t>(first) + i;
    return index;
}

SIMD_INLINE vi load_mask(const int32_t* p) {
    vi v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// Lanes of keys s0 .. that query t, whose first key is `first`, may meet.
SIMD_INLINE vi allowed(int64_t s, int64_t first, int64_t t, const int32_t* real) {
    const vi index = lanes(s);
    return (index >= static_cast<int32_t>(first)) & (index <= static_cast<int32_t>(t)) & load_mask(real + s);
}

SIMD_INLINE float top(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    return simd::hmax(v);
#endif
}

class Panel {
    Buffer<float> exponentials_;  // [tiles][T][U]
    Buffer<float> factors_;  // [tiles][T]
    Buffer<float> queries_, scratch_;  // [padded width][T]
    int64_t first_ = 0;

    static int64_t tiles(const Problem& p) {
        return p.window > 0 ? std::min(p.tiles(), (p.window + T + U - 2) / U + 1) : p.tiles();
    }

public:
    explicit Panel(const Problem& p)
        : exponentials_(tiles(p) * T * U), factors_(tiles(p) * T), queries_(p.padded_width() * T), scratch_(T * p.padded_width()) {}

    // Exponentials [T][U] of a column tile and their factors [T]; null if no query attends to the tile.
    const float* tile(int64_t j) const { return j < first_ ? nullptr : exponentials_.get() + (j - first_) * T * U; }
    const float* factors(int64_t j) const { return factors_.get() + (j - first_) * T; }

    void fill(const Problem& p, const Sequence& sequence, const Columns& columns, int64_t b, int64_t h, int64_t t0) {
        const int64_t count = std::min<int64_t>(T, p.length - t0);
        const int64_t last = (t0 + count - 1) / U;
        first_ = sequence.teacher_first[t0] / U;
        const float scale = static_cast<float>(p.softcap > 0 ? p.scale / p.softcap : p.scale);
        copy_across(queries_.get(), p.q, p.width, b, t0, h, sequence.real.get(), scratch_.get());
        for (int64_t i = 0; i < p.width * T; ++i) queries_[i] *= scale;
        alignas(64) float maximum[T], sum[T];
        alignas(64) vf sums[T];
        std::fill(maximum, maximum + T, NEVER);
        std::fill(sums, sums + T, vf{});
        for (int64_t j = first_; j <= last; ++j) {
            float* tile = exponentials_.get() + (j - first_) * T * U;
            float* highest = factors_.get() + (j - first_) * T;
            const float* keys = columns.keys.get() + j * U * p.padded_width();
            product::multiply<1, T, T, false>(tile, U, U, queries_.get(), keys, U, p.width);
            if (p.softcap > 0) cap(tile, static_cast<float>(p.softcap));
            const bool clean = (j + 1) * U - 1 <= t0 && j * U >= sequence.teacher_first[t0 + T - 1] && sequence.whole[j];
            if (clean)
                add<true>(tile, highest, maximum, sums, sequence, j * U, t0);
            else
                add<false>(tile, highest, maximum, sums, sequence, j * U, t0);
        }
        for (int i = 0; i < T; ++i) {
            sum[i] = simd::hsum(sums[i]);
            // Rows of padding, and rows without a key, attend to nothing.
            sum[i] = sequence.real[t0 + i] && sum[i] != 0 ? 1 / sum[i] : 0;
        }
        for (int64_t j = first_; j <= last; ++j) {
            float* factor = factors_.get() + (j - first_) * T;
            for (int i = 0; i < T; i += W) {
                const vf down = simd::vexp(simd::load(factor + i) - simd::load(maximum + i));
                simd::store(factor + i, down * simd::load(sum + i));
            }
        }
    }

private:
    static void cap(float* tile, float softcap) {
        for (int i = 0; i < T * U; i += W) simd::store(tile + i, softcap * vtanh(simd::load(tile + i)));
    }

    // Scores of a tile become exponentials; `highest` keeps the maximum that they are relative to.
    template <bool CLEAN>
    static void add(
        float* tile, float* highest, float* maximum, vf* sums, const Sequence& sequence, int64_t s0, int64_t t0
    ) {
        for (int i = 0; i < T; ++i) {
            float* row = tile + i * U;
            vf high = simd::splat(NEVER);
            for (int v = 0; v < VU; ++v) {
                vf score = simd::load(row + v * W);
                if (!CLEAN) {
                    const vi mask = allowed(s0 + v * W, sequence.teacher_first[t0 + i], t0 + i, sequence.real.get());
                    score = simd::select(mask, score, simd::splat(NEVER));
                    simd::store(row + v * W, score);
                }
                high = simd::vmax(score, high);
            }
            highest[i] = top(high);
        }
        alignas(64) float shrink[T];
        for (int i = 0; i < T; i += W) {
            const vf before = simd::load(maximum + i), now = simd::vmax(before, simd::load(highest + i));
            simd::store(shrink + i, simd::vexp(before - now));
            simd::store(maximum + i, now);
            simd::store(highest + i, now);
        }
        for (int i = 0; i < T; ++i) {
            float* row = tile + i * U;
            const vf high = simd::splat(highest[i]);
            vf total{};
            for (int v = 0; v < VU; ++v) {
                const vf score = simd::load(row + v * W);
                vf value = simd::vexp(score - high);
                if (!CLEAN) value = simd::select(score == NEVER, vf{}, value);
                simd::store(row + v * W, value);
                total += value;
            }
            sums[i] = simd::fma(sums[i], simd::splat(shrink[i]), total);
        }
    }
};

}  // namespace distance
