// Between the caller's layouts and the buffers of a chunk.
#pragma once
#include "parallel.h"
#include "problem.h"
#include "tiles.h"

namespace scan {

// Tokens first .. first + steps of a block into to[token][lane]; zero in lanes the block lacks.
static void read(const Sequence& from, const Block& b, int64_t first, int steps, float* to) {
    const float* origin = from.at(b.batch, b.first, first);
    if (from.of_channel == 1) {
        for (int t = 0; t < steps; ++t) simd::store(to + t * W, simd::load_part(origin + t * from.of_token, b.lanes));
        return;
    }
    if (from.of_token != 1) {
        for (int t = 0; t < steps; ++t)
            for (int lane = 0; lane < W; ++lane)
                to[t * W + lane] = lane < b.lanes ? origin[lane * from.of_channel + t * from.of_token] : 0.0f;
        return;
    }
    for (int t = 0; t < steps; t += W) {
        const int now = steps - t < W ? steps - t : W;
        vf v[W];
        for (int lane = 0; lane < W; ++lane)
            v[lane] = lane < b.lanes ? simd::load_part(origin + lane * from.of_channel + t, now) : vf{};
        tiles::transpose(v);
        for (int i = 0; i < now; ++i) simd::store(to + (t + i) * W, v[i]);
    }
}

static void write(const Sequence& to, const Block& b, int64_t first, int steps, const float* from) {
    float* origin = to.at(b.batch, b.first, first);
    if (to.of_channel == 1) {
        for (int t = 0; t < steps; ++t) simd::store_part(origin + t * to.of_token, simd::load(from + t * W), b.lanes);
        return;
    }
    if (to.of_token != 1) {
        for (int t = 0; t < steps; ++t)
            for (int lane = 0; lane < b.lanes; ++lane)
                origin[lane * to.of_channel + t * to.of_token] = from[t * W + lane];
        return;
    }
    for (int t = 0; t < steps; t += W) {
        const int now = steps - t < W ? steps - t : W;
        vf v[W];
        for (int i = 0; i < W; ++i) v[i] = i < now ? simd::load(from + (t + i) * W) : vf{};
        tiles::transpose(v);
        for (int lane = 0; lane < b.lanes; ++lane) simd::store_part(origin + lane * to.of_channel + t, v[lane], now);
    }
}

// [channel][state] rows of a block, times `factor`, into to[state][lane].
static void read_states(const float* rows, const Block& b, int64_t states, float factor, float* to) {
    for (int64_t n = 0; n < states; ++n)
        for (int lane = 0; lane < W; ++lane) to[n * W + lane] = lane < b.lanes ? rows[lane * states + n] * factor : 0.0f;
}
static void write_states(float* rows, const Block& b, int64_t states, const float* from) {
    for (int64_t n = 0; n < states; ++n)
        for (int lane = 0; lane < b.lanes; ++lane) rows[lane * states + n] = from[n * W + lane];
}

// One value per channel, zero in lanes the block lacks and where there is no such tensor.
static inline vf read_channels(const float* values, const Block& b) {
    return values == nullptr ? vf{} : simd::load_part(values + b.first, b.lanes);
}

// D x, zero without D even where x is infinite.
static inline vf skip(const Problem& p, vf D, vf x) { return p.D == nullptr ? vf{} : D * x; }

// [B, G, N, L] to [B, G, L, N]: a token's values side by side, however far apart the rows are.
static void states_last(const Problem& p, const float* from, float* to) {
    const int64_t tiles = (p.length + W - 1) / W;
    parallel::parallel_for(p.batch * p.groups * tiles, int(p.threads), [&](int64_t i) {
        const int64_t matrix = i / tiles, t = i % tiles * W;
        const float* source = from + matrix * p.states * p.length + t;
        float* target = to + (matrix * p.length + t) * p.states;
        const int64_t now = p.length - t < W ? p.length - t : W;
        for (int64_t n = 0; n < p.states; ++n)
            for (int64_t k = 0; k < now; ++k) target[k * p.states + n] = source[n * p.length + k];
    });
}

// dt of a chunk from what the caller gave: plus bias, through softplus. `raw` and `dt` may be the same place.
static inline void step_sizes(const Problem& p, vf bias, int steps, const float* raw, float* dt) {
    for (int t = 0; t < steps; ++t) {
        vf v = simd::load(raw + t * W) + bias;
        simd::store(dt + t * W, p.softplus ? simd::vsoftplus(v) : v);
    }
}

}  // namespace scan
