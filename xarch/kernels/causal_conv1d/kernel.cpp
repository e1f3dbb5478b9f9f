// Causal depthwise convolution over tokens, forward and backward, in the layout [B, L, C].
//
// Blocks of tokens run over the channels a vector at a time, so that every input is read once from memory and every output
// written once. Where a block begins a sequence, ends it or holds a change of document, its tokens are taken one by one.
//
// Legend: B batch, L tokens, C channels, K taps, J = K - 1; u an input token, t = u + j an output it reaches.
#include <cstring>

#include "parallel.h"
#include "simd.h"

using namespace simd;

struct Call {
    int64_t batch, length, channels, taps, slab, threads;
    int64_t x_batch, x_token, dy_batch, dy_token;  // strides; the last dimension is dense
    const float *x, *dy;                           // [B, L, C]
    const float *weight, *bias, *history;          // [K, C]; [C] or null; [B, J, C] or null
    const int64_t* run;                            // [B, L] or null
    float *y, *dx, *dhistory;                      // [B, L, C]; [B, L, C]; [B, J, C] or null
    float *partial, *dweight;                      // [units, K + 1, C]; [K + 1, C], the last row for the bias
};

namespace {

constexpr int BLOCK = 8;

// fn(c, n) for every vector of n <= W channels that begins at c; n is a constant but for the last one.
template <class F>
SIMD_INLINE void over_channels(int64_t channels, const F& fn) {
    int64_t c = 0;
    for (; c + W <= channels; c += W) fn(c, std::integral_constant<int, W>{});
    if (c < channels) fn(c, (int)(channels - c));
}
template <class N>
SIMD_INLINE vf get(const float* p, N n) {
    if constexpr (std::is_same_v<N, int>) return load_part(p, n);
    else return load(p);
}
template <class N>
SIMD_INLINE void put(float* p, vf v, N n) {
    if constexpr (std::is_same_v<N, int>) store_part(p, v, n);
    else store(p, v);
}

struct Sequence {
    const Call& c;
    int64_t b;

    const float* x(int64_t t) const {
        if (t < 0) return c.history + (b * (c.taps - 1) + c.taps - 1 + t) * c.channels;
        return c.x + b * c.x_batch + t * c.x_token;
    }
    const float* dy(int64_t t) const { return c.dy + b * c.dy_batch + t * c.dy_token; }
    float* dx(int64_t t) const {
        if (t < 0) return c.dhistory + (b * (c.taps - 1) + c.taps - 1 + t) * c.channels;
        return c.dx + (b * c.length + t) * c.channels;
    }
    // What came before the first token belongs to its document.
    int64_t run(int64_t t) const { return c.run ? c.run[b * c.length + (t < 0 ? 0 : t)] : 0; }
    bool reaches(int64_t u, int64_t t) const { return t < c.length && (u >= 0 || c.history) && run(u) == run(t); }

    template <int K>
    void forward_block(int64_t t) const {
        const float *from[BLOCK + K - 1], *w = c.weight;
        float* to = c.y + (b * c.length + t) * c.channels;
        for (int i = 0; i < BLOCK + K - 1; ++i) from[i] = x(t + i - (K - 1));
        over_channels(c.channels, [&](int64_t at, auto n) {
            vf in[BLOCK + K - 1], tap[K];
            const vf bias = c.bias ? get(c.bias + at, n) : vf{};
#pragma GCC unroll 16
            for (int i = 0; i < BLOCK + K - 1; ++i) in[i] = get(from[i] + at, n);
#pragma GCC unroll 4
            for (int k = 0; k < K; ++k) tap[k] = get(w + k * c.channels + at, n);
#pragma GCC unroll 16
            for (int i = 0; i < BLOCK; ++i) {
                vf sum = bias;
#pragma GCC unroll 4
                for (int k = 0; k < K; ++k) sum = fma(in[i + k], tap[k], sum);
                put(to + i * c.channels + at, sum, n);
            }
        });
    }

    void forward_token(int64_t t) const {
        const int64_t before = c.taps - 1;
        int64_t back = 0;
        while (back < before && reaches(t - back - 1, t)) ++back;
        float* to = c.y + (b * c.length + t) * c.channels;
        over_channels(c.channels, [&](int64_t at, auto n) {
            vf sum = c.bias ? get(c.bias + at, n) : vf{};
            for (int64_t j = back; j >= 0; --j)
                sum = fma(get(x(t - j) + at, n), get(c.weight + (before - j) * c.channels + at, n), sum);
            put(to + at, sum, n);
        });
    }

    template <int K>
    void backward_block(int64_t u, float* sums) const {
        const float *in[BLOCK], *grad[BLOCK + K - 1];
        float* to = dx(u);
        for (int i = 0; i < BLOCK; ++i) in[i] = x(u + i);
        for (int i = 0; i < BLOCK + K - 1; ++i) grad[i] = dy(u + i);
        over_channels(c.channels, [&](int64_t at, auto n) {
            vf dy[BLOCK + K - 1], tap[K], dtap[K] = {}, dbias = {};
#pragma GCC unroll 16
            for (int i = 0; i < BLOCK + K - 1; ++i) dy[i] = get(grad[i] + at, n);
#pragma GCC unroll 4
            for (int j = 0; j < K; ++j) tap[j] = get(c.weight + (K - 1 - j) * c.channels + at, n);
#pragma GCC unroll 16
            for (int i = 0; i < BLOCK; ++i) {
                const vf x = get(in[i] + at, n);
                vf sum{};
#pragma GCC unroll 4
                for (int j = 0; j < K; ++j) {
                    sum = fma(dy[i + j], tap[j], sum);
                    dtap[j] = fma(dy[i + j], x, dtap[j]);
                }
                dbias += dy[i];
                put(to + i * c.channels + at, sum, n);
            }
#pragma GCC unroll 4
            for (int j = 0; j < K; ++j) {
                float* row = sums + (K - 1 - j) * c.channels + at;
                put(row, get(row, n) + dtap[j], n);
            }
            float* row = sums + K * c.channels + at;
            put(row, get(row, n) + dbias, n);
        });
    }

    void backward_token(int64_t u, float* sums) const {
        const int64_t before = c.taps - 1;
        over_channels(c.channels, [&](int64_t at, auto n) {
            const vf in = get(x(u) + at, n);
            vf sum{};
            for (int64_t j = 0; j <= before; ++j) {
                if (u + j < 0 || !reaches(u, u + j)) continue;
                const vf grad = get(dy(u + j) + at, n);
                float* row = sums + (before - j) * c.channels + at;
                sum = fma(grad, get(c.weight + (before - j) * c.channels + at, n), sum);
                put(row, fma(grad, in, get(row, n)), n);
            }
            if (u >= 0) {
                float* row = sums + c.taps * c.channels + at;
                put(row, get(row, n) + get(dy(u) + at, n), n);
            }
            put(dx(u) + at, sum, n);
        });
    }

    template <int K>
    void forward(int64_t from, int64_t to) const {
        for (int64_t t = from; t < to;) {
            const bool whole = K > 0 && t >= K - 1 && t + BLOCK <= to && run(t - K + 1) == run(t + BLOCK - 1);
            if constexpr (K > 0)
                if (whole) {
                    forward_block<K>(t), t += BLOCK;
                    continue;
                }
            forward_token(t++);
        }
    }

    template <int K>
    void backward(int64_t from, int64_t to, float* sums) const {
        std::memset(sums, 0, sizeof(float) * (size_t)((c.taps + 1) * c.channels));
        if (from == 0 && c.history)
            for (int64_t u = 1 - c.taps; u < 0; ++u) backward_token(u, sums);
        for (int64_t u = from; u < to;) {
            const bool whole =
                K > 0 && u + BLOCK <= to && u + BLOCK + K - 1 <= c.length && run(u) == run(u + BLOCK + K - 2);
            if constexpr (K > 0)
                if (whole) {
                    backward_block<K>(u, sums), u += BLOCK;
                    continue;
                }
            backward_token(u++, sums);
        }
    }
};

int64_t slabs(const Call& c) { return (c.length + c.slab - 1) / c.slab; }

// fn(sequence, from, to) with the number of taps as a constant, 0 for those without a loop of their own.
template <class F>
void with_taps(const Call& c, int64_t unit, const F& fn) {
    const Sequence sequence{c, unit / slabs(c)};
    const int64_t from = unit % slabs(c) * c.slab, to = from + c.slab < c.length ? from + c.slab : c.length;
    if (c.taps == 4) fn(sequence, from, to, std::integral_constant<int, 4>{});
    else if (c.taps == 3) fn(sequence, from, to, std::integral_constant<int, 3>{});
    else if (c.taps == 2) fn(sequence, from, to, std::integral_constant<int, 2>{});
    else fn(sequence, from, to, std::integral_constant<int, 0>{});
}

}  // namespace

extern "C" int conv_forward(const Call* c) {
    return parallel::status_of([&] {
        parallel::parallel_for(c->batch * slabs(*c), (int)c->threads, [c](int64_t unit) {
            with_taps(*c, unit, [](const Sequence& s, int64_t from, int64_t to, auto K) { s.forward<K>(from, to); });
        });
    });
}

extern "C" int conv_backward(const Call* c) {
    return parallel::status_of([&] {
        const int64_t floats = (c->taps + 1) * c->channels, units = c->batch * slabs(*c);
        parallel::parallel_for(units, (int)c->threads, [=](int64_t unit) {
            float* sums = c->partial + unit * floats;
            with_taps(*c, unit, [=](const Sequence& s, int64_t from, int64_t to, auto K) { s.backward<K>(from, to, sums); });
        });
        // In order of the units, whichever thread was first.
        over_channels(floats, [=](int64_t at, auto n) {
            vf sum{};
            for (int64_t unit = 0; unit < units; ++unit) sum += get(c->partial + unit * floats + at, n);
            put(c->dweight + at, sum, n);
        });
    });
}
