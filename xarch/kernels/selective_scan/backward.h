// Backward pass. With g_t the gradient by h_t and c_t = exp(dt_t A) g_t what token t - 1 gets of it:
//
//   g_t = C_t dy_t + c_{t+1}      dB_t = sum over channels of dt_t x_t g_t      dC_t = sum over channels of dy_t h_t
//   u_t = sum over n of g_t B_t   w_t = sum over n of c_t h_{t-1} A             dA = sum over t of c_t h_{t-1} dt_t
//   dx_t = dt_t u_t + D dy_t      d dt_t = x_t u_t + w_t                        dD = sum over t of dy_t x_t
//
// States and decays of a chunk are computed again from the state before it. Sums over channels first run over the lanes,
// then over the blocks of a fixed span, then over the spans: always in the same order.
#pragma once
#include "layout.h"

namespace scan {

struct Gradients {
    Sequence out, x, dt, z;                 // `out` is given: the gradient by the result
    const float* last;                      // gradient by the last state, or null
    float *A, *B, *C, *D, *bias, *initial;  // [B, D, N], [B, G, N, L], [B, G, N, L], [B, D], [B, D], [B, D, N]
};

// Buffers of one chunk of a block, [CHUNK][lane] each, and those of a few states, [CHUNK][state][lane].
struct Chunk {
    float *raw, *dt, *x, *dtx, *dy, *u, *w, *y, *z, *dout;
    float *h, *a;
    Chunk(float* p, int wide) {
        float** const all[] = {&raw, &dt, &x, &dtx, &dy, &u, &w, &y, &z, &dout};
        for (float** one : all) *one = p, p += CHUNK * W;
        h = p, a = p + CHUNK * wide * W;
    }
    static int64_t floats(int wide) { return CHUNK * W * (10 + 2 * wide); }
};

constexpr int WIDE = W / 2;

// States are taken WIDE at a time, those left over one by one: a "slot". The sums of a slot over the channels of a span are
// one vector per token, its lower half by B and its upper half by C; of a single state the first lane of each half.
struct Slots {
    int64_t full, count;
    explicit Slots(int64_t states) : full(states / WIDE), count(full + states % WIDE) {}
    int64_t first(int64_t slot) const { return slot < full ? slot * WIDE : full * WIDE + slot - full; }
    int width(int64_t slot) const { return slot < full ? WIDE : 1; }
};

// What the states of a block have besides the chunk: [state][lane] each, and `sums` [slot][CHUNK][lane].
struct States {
    const float *A, *before;
    float *carry, *dA, *sums;
};

// States of a slot over one chunk, from its last token to its first. Adds to u, w, y, dA and sums.
template <int NB, bool RESET, bool GATE>
static void backward_states(int steps, int64_t states, int64_t n0, const Chunk& c, const States& s, float* sums,
                            const float* B, const float* C, const uint8_t* reset) {
    const float *A = s.A + n0 * W, *before = s.before + n0 * W;
    B += n0, C += n0;
    vf now[NB];
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) now[n] = simd::load(before + n * W);
    for (int t = 0; t < steps; ++t) {
        const vf dt_t = simd::load(c.dt + t * W), dtx_t = simd::load(c.dtx + t * W);
        const float *B_t = B + t * states, *C_t = C + t * states;
        const vf keep = RESET && reset[t] ? vf{} : simd::splat(1.0f);
        vf y = GATE ? simd::load(c.y + t * W) : vf{};
#pragma GCC unroll 16
        for (int n = 0; n < NB; ++n) {
            vf a = simd::vexp2(dt_t * simd::load(A + n * W));
            if (RESET) a *= keep;
            now[n] = simd::fma(a, now[n], dtx_t * B_t[n]);
            simd::store(c.a + (t * NB + n) * W, a);
            simd::store(c.h + (t * NB + n) * W, now[n]);
            if (GATE) y = simd::fma(now[n], simd::splat(C_t[n]), y);
        }
        if (GATE) simd::store(c.y + t * W, y);
    }
    vf give[NB], by_A[NB];
    float *carry = s.carry + n0 * W, *dA = s.dA + n0 * W;
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) give[n] = simd::load(carry + n * W), by_A[n] = simd::load(dA + n * W);
    for (int t = steps - 1; t >= 0; --t) {
        const vf dt_t = simd::load(c.dt + t * W), dtx_t = simd::load(c.dtx + t * W), dy_t = simd::load(c.dy + t * W);
        const float *B_t = B + t * states, *C_t = C + t * states;
        const float *a_t = c.a + t * NB * W, *h_t = c.h + t * NB * W;
        const float* h_before = t > 0 ? h_t - NB * W : before;
        vf u = simd::load(c.u + t * W), w = simd::load(c.w + t * W);
        const vf by_BC = tiles::sum_tree<NB>([&](int n) __attribute__((always_inline)) {
            const vf g = simd::fma(simd::splat(C_t[n]), dy_t, give[n]);
            const vf dB = dtx_t * g, dC = dy_t * simd::load(h_t + n * W);
            u = simd::fma(g, simd::splat(B_t[n]), u);
            give[n] = g * simd::load(a_t + n * W);
            const vf through_a = give[n] * simd::load(h_before + n * W);
            by_A[n] = simd::fma(through_a, dt_t, by_A[n]);
            w = simd::fma(through_a, simd::load(A + n * W), w);
            return tiles::low<W / 2>(dB, dC) + tiles::high<W / 2>(dB, dC);
        });
        simd::store(sums + t * W, simd::load(sums + t * W) + by_BC);
        simd::store(c.u + t * W, u);
        simd::store(c.w + t * W, w);
    }
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) simd::store(carry + n * W, give[n]), simd::store(dA + n * W, by_A[n]);
}

template <bool RESET, bool GATE>
static void backward_chunk(int steps, int64_t states, const Chunk& c, const States& s, const float* B, const float* C,
                           const uint8_t* reset) {
    const Slots slots(states);
    for (int64_t i = 0; i < slots.count; ++i) {
        const auto run = i < slots.full ? backward_states<WIDE, RESET, GATE> : backward_states<1, RESET, GATE>;
        run(steps, states, slots.first(i), c, s, s.sums + i * CHUNK * W, B, C, reset);
    }
}

// Blocks one task works through together, so that sums over channels leave the vectors once per span.
static inline int64_t span(const Problem& p) {
    const int64_t few = 64 / W, even = (p.blocks() + 31) / 32;
    return few > even ? few : even;
}
static inline int64_t spans(const Problem& p) { return (p.blocks() + span(p) - 1) / span(p); }

// The sums of one chunk as rows [token][state].
static void write_sums(const float* sums, int64_t states, int steps, float* dB, float* dC) {
    const Slots slots(states);
    for (int64_t i = 0; i < slots.count; ++i)
        for (int t = 0; t < steps; ++t)
            for (int n = 0; n < slots.width(i); ++n) {
                const float* from = sums + (i * CHUNK + t) * W + n;
                dB[t * states + slots.first(i) + n] = from[0];
                dC[t * states + slots.first(i) + n] = from[W / 2];
            }
}

// The tokens of one chunk before the states are worked through: dt, dt x, the gradient by y, and y where it is gated.
static void prepare(const Problem& p, const Gradients& grad, const Block& b, vf D, vf bias, int64_t first, int steps,
                    const Chunk& c) {
    read(p.dt, b, first, steps, c.raw);
    read(p.x, b, first, steps, c.x);
    read(grad.out, b, first, steps, c.dout);
    step_sizes(p, bias, steps, c.raw, c.dt);
    if (p.z.data != nullptr) read(p.z, b, first, steps, c.z);
    for (int i = 0; i < steps * W; i += W) {
        const vf x = simd::load(c.x + i), dout = simd::load(c.dout + i);
        simd::store(c.dtx + i, simd::load(c.dt + i) * x);
        simd::store(c.u + i, vf{});
        simd::store(c.w + i, vf{});
        if (p.z.data == nullptr) {
            simd::store(c.dy + i, dout);
            continue;
        }
        const vf z = simd::load(c.z + i);
        simd::store(c.dy + i, dout * z * simd::vsigmoid(z));
        simd::store(c.y + i, skip(p, D, x));
    }
}

// The rest of a chunk after its states: gradients by x, dt and z, and the sums by D and bias.
static void finish(const Problem& p, const Gradients& grad, const Block& b, vf D, vf bias, int64_t first, int steps,
                   const Chunk& c, float* by_D, float* by_bias) {
    vf sum_D = simd::load(by_D), sum_bias = simd::load(by_bias);
    for (int i = (steps - 1) * W; i >= 0; i -= W) {
        const vf x = simd::load(c.x + i), dy = simd::load(c.dy + i), u = simd::load(c.u + i);
        vf ddt = simd::fma(x, u, simd::load(c.w + i) * LN2);
        if (p.softplus) ddt *= simd::vsigmoid(simd::load(c.raw + i) + bias);
        simd::store(c.w + i, ddt);
        simd::store(c.u + i, simd::load(c.dt + i) * u + skip(p, D, dy));
        sum_D = simd::fma(dy, x, sum_D);
        sum_bias += ddt;
        if (p.z.data == nullptr) continue;
        const vf z = simd::load(c.z + i), open = simd::vsigmoid(z);
        const vf slope = open * simd::fma(z, 1.0f - open, simd::splat(1.0f));
        simd::store(c.z + i, simd::load(c.dout + i) * simd::load(c.y + i) * slope);
    }
    simd::store(by_D, sum_D);
    simd::store(by_bias, sum_bias);
    write(grad.x, b, first, steps, c.u);
    write(grad.dt, b, first, steps, c.w);
    if (p.z.data != nullptr) write(grad.z, b, first, steps, c.z);
}

// The blocks of one span: everything but dB and dC, of which it leaves its own part [token][state].
static void backward_span(const Problem& p, const Gradients& grad, int64_t batch, int64_t group, int64_t first_block,
                          int64_t count, const float* kept, const float* B, const float* C, float* dB_part,
                          float* dC_part) {
    const int64_t size = p.states * W, each = 3 * size + 2 * W;
    Floats blocks(count * each), sums(Slots(p.states).count * CHUNK * W), buffers(Chunk::floats(WIDE));
    std::memset(blocks, 0, sizeof(float) * (size_t)(count * each));
    const Chunk c(buffers, WIDE);
    for (int64_t i = 0; i < count; ++i) {
        const Block b(p, batch, group, first_block + i);
        read_states(p.A + b.first * p.states, b, p.states, LOG2E, blocks + i * each);
        if (grad.last != nullptr)
            read_states(grad.last + (batch * p.channels + b.first) * p.states, b, p.states, 1.0f,
                        blocks + i * each + size);
    }
    const auto run = p.reset != nullptr ? (p.z.data ? backward_chunk<true, true> : backward_chunk<true, false>)
                                        : (p.z.data ? backward_chunk<false, true> : backward_chunk<false, false>);
    for (int64_t chunk = p.chunks() - 1; chunk >= 0; --chunk) {
        const int64_t first = chunk * CHUNK;
        const int steps = p.chunk_length(chunk);
        const uint8_t* reset = p.reset == nullptr ? nullptr : p.reset + batch * p.length + first;
        std::memset(sums, 0, sizeof(float) * (size_t)(Slots(p.states).count * CHUNK * W));
        for (int64_t i = 0; i < count; ++i) {
            const Block b(p, batch, group, first_block + i);
            const vf D = read_channels(p.D, b), bias = read_channels(p.bias, b);
            float *A = blocks + i * each, *carry = A + size, *dA = carry + size, *by_D = dA + size;
            const States s{A, kept + b.number(p) * p.kept_per_block() + chunk * size, carry, dA, sums};
            prepare(p, grad, b, D, bias, first, steps, c);
            run(steps, p.states, c, s, B + first * p.states, C + first * p.states, reset);
            finish(p, grad, b, D, bias, first, steps, c, by_D, by_D + W);
        }
        write_sums(sums, p.states, steps, dB_part + first * p.states, dC_part + first * p.states);
    }
    for (int64_t i = 0; i < count; ++i) {
        const Block b(p, batch, group, first_block + i);
        const float *carry = blocks + i * each + size, *dA = carry + size, *by_D = dA + size;
        const int64_t row = batch * p.channels + b.first;
        write_states(grad.A + row * p.states, b, p.states, dA);
        write_states(grad.initial + row * p.states, b, p.states, carry);
        simd::store_part(grad.D + row, simd::load(by_D), b.lanes);
        simd::store_part(grad.bias + row, simd::load(by_D + W), b.lanes);
    }
}

// Sum over the spans, from [B, G, span, L, N] to [B, G, N, L].
static void gather(const Problem& p, const float* parts, float* to) {
    const int64_t tiles = (p.length + W - 1) / W, part = p.length * p.states, count = spans(p);
    parallel::parallel_for(p.batch * p.groups * tiles, int(p.threads), [&](int64_t i) {
        const int64_t matrix = i / tiles, first = i % tiles * W;
        const int64_t tokens = p.length - first < W ? p.length - first : W;
        const float* from = parts + matrix * count * part + first * p.states;
        Floats sum(W * p.states);
        std::memcpy(sum, from, sizeof(float) * (size_t)(tokens * p.states));
        for (int64_t s = 1; s < count; ++s)
            for (int64_t k = 0; k < tokens * p.states; ++k) sum[k] += from[s * part + k];
        float* target = to + matrix * part + first;
        for (int64_t n = 0; n < p.states; ++n)
            for (int64_t t = 0; t < tokens; ++t) target[n * p.length + t] = sum[t * p.states + n];
    });
}

static void backward(const Problem& p, const Gradients& grad, const float* kept) {
    const int64_t matrix = p.length * p.states, all = p.batch * p.groups * matrix;
    const int64_t count = spans(p), each = span(p);
    Floats B(all), C(all), dB(all * count), dC(all * count);
    states_last(p, p.B, B);
    states_last(p, p.C, C);
    parallel::parallel_for(p.batch * p.groups * count, int(p.threads), [&](int64_t i) {
        const int64_t m = i / count, first = i % count * each;
        const int64_t now = p.blocks() - first < each ? p.blocks() - first : each;
        backward_span(p, grad, m / p.groups, m % p.groups, first, now, kept, B + m * matrix, C + m * matrix,
                      dB + i * matrix, dC + i * matrix);
    });
    gather(p, dB, grad.B);
    gather(p, dC, grad.C);
}

}  // namespace scan
