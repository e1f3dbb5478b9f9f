// Forward pass: h = exp(dt A) h + dt x B, y = h C + D x, times silu(z).
#pragma once
#include "layout.h"

namespace scan {

// NB states of a block over one chunk; the states stay in registers. Adds to y.
template <int NB, bool RESET>
static void forward_states(int steps, int64_t states, const float* dt, const float* dtx, const float* A, const float* B,
                           const float* C, const uint8_t* reset, float* h, float* y) {
    vf now[NB];
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) now[n] = simd::load(h + n * W);
    for (int t = 0; t < steps; ++t) {
        const vf dt_t = simd::load(dt + t * W), dtx_t = simd::load(dtx + t * W);
        const float *B_t = B + t * states, *C_t = C + t * states;
        if (RESET && reset[t]) {
#pragma GCC unroll 16
            for (int n = 0; n < NB; ++n) now[n] = vf{};
        }
        vf sum[2] = {simd::load(y + t * W), vf{}};
#pragma GCC unroll 16
        for (int n = 0; n < NB; ++n) {
            const vf a = simd::vexp2(dt_t * simd::load(A + n * W));
            now[n] = simd::fma(a, now[n], dtx_t * B_t[n]);
            sum[n % 2] = simd::fma(now[n], simd::splat(C_t[n]), sum[n % 2]);
        }
        simd::store(y + t * W, sum[0] + sum[1]);
    }
#pragma GCC unroll 16
    for (int n = 0; n < NB; ++n) simd::store(h + n * W, now[n]);
}

template <bool RESET>
static void forward_chunk(int steps, int64_t states, const float* dt, const float* dtx, const float* A, const float* B,
                          const float* C, const uint8_t* reset, float* h, float* y) {
    constexpr int WIDE = W == 16 ? 16 : 8;
    int64_t n = 0;
    for (; n + WIDE <= states; n += WIDE)
        forward_states<WIDE, RESET>(steps, states, dt, dtx, A + n * W, B + n, C + n, reset, h + n * W, y);
    for (; n + 4 <= states; n += 4)
        forward_states<4, RESET>(steps, states, dt, dtx, A + n * W, B + n, C + n, reset, h + n * W, y);
    for (; n < states; ++n)
        forward_states<1, RESET>(steps, states, dt, dtx, A + n * W, B + n, C + n, reset, h + n * W, y);
}

// y and the state after the last token of one block; the states before each chunk into `kept` unless it is null.
static void forward_block(const Problem& p, const Block& b, const float* B, const float* C, const Sequence& out,
                          float* last, float* kept) {
    Floats work(CHUNK * W * 4 + p.states * W * 2);
    float *dt = work, *x = dt + CHUNK * W, *y = x + CHUNK * W, *z = y + CHUNK * W;
    float *A = z + CHUNK * W, *h = A + p.states * W;
    const int64_t rows = (b.batch * p.channels + b.first) * p.states;
    const int64_t matrix = (b.batch * p.groups + b.group) * p.length * p.states;
    read_states(p.A + b.first * p.states, b, p.states, LOG2E, A);
    if (p.initial != nullptr)
        read_states(p.initial + rows, b, p.states, 1.0f, h);
    else
        std::memset(h, 0, sizeof(float) * (size_t)(p.states * W));
    const vf bias = read_channels(p.bias, b), D = read_channels(p.D, b);

    for (int64_t chunk = 0; chunk < p.chunks(); ++chunk) {
        const int64_t first = chunk * CHUNK;
        const int steps = p.chunk_length(chunk);
        if (kept != nullptr) std::memcpy(kept + chunk * p.states * W, h, sizeof(float) * (size_t)(p.states * W));
        read(p.dt, b, first, steps, dt);
        read(p.x, b, first, steps, x);
        step_sizes(p, bias, steps, dt, dt);
        for (int t = 0; t < steps; ++t) {
            const vf x_t = simd::load(x + t * W);
            simd::store(y + t * W, skip(p, D, x_t));
            simd::store(x + t * W, simd::load(dt + t * W) * x_t);
        }
        const float *B_chunk = B + matrix + first * p.states, *C_chunk = C + matrix + first * p.states;
        if (p.reset != nullptr)
            forward_chunk<true>(steps, p.states, dt, x, A, B_chunk, C_chunk, p.reset + b.batch * p.length + first, h, y);
        else
            forward_chunk<false>(steps, p.states, dt, x, A, B_chunk, C_chunk, nullptr, h, y);
        if (p.z.data != nullptr) {
            read(p.z, b, first, steps, z);
            for (int t = 0; t < steps; ++t) {
                const vf z_t = simd::load(z + t * W);
                simd::store(y + t * W, simd::load(y + t * W) * z_t * simd::vsigmoid(z_t));
            }
        }
        write(out, b, first, steps, y);
    }
    write_states(last + rows, b, p.states, h);
}

static void forward(const Problem& p, const Sequence& out, float* last, float* kept) {
    const int64_t matrices = p.batch * p.groups * p.length * p.states;
    Floats B(matrices), C(matrices);
    states_last(p, p.B, B);
    states_last(p, p.C, C);
    const int64_t blocks = p.blocks(), rows = p.groups * blocks;
    parallel::parallel_for(p.batch * rows, int(p.threads), [&](int64_t i) {
        const Block b(p, i / rows, i % rows / blocks, i % blocks);
        forward_block(p, b, B, C, out, last, kept == nullptr ? nullptr : kept + i * p.kept_per_block());
    });
}

}  // namespace scan
