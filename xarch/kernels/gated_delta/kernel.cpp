// The gated delta rule forward and backward in chunks of tokens. The formulas are in xarch/kernels/README.md.
//
// A unit of work is one sequence and one key/value head with all its query heads, chunk after chunk; all tiles of a chunk
// and the state stay in the level-2 cache of the thread. States are kept as S^T [N, P].
//
// Legend: Q tokens of a chunk, R query heads of a state, P value width, N key width; tiles have their rows padded to whole
// vectors.
#include "chunk.h"
#include "gemm.h"
#include "parallel.h"

using namespace simd;
using namespace chunk;
using gemm::padded;
using gemm::Product;
using gemm::Range;

struct Call {
    int64_t batch, length, heads, states, width, size, chunk, threads;
    Rows q, k, v, log_a, beta, dy;  // log_a and beta [B, L, K]: one number per head
    const float* initial;           // [B, K, P, N] or null
    const int64_t* run;             // [B, L] or null
    float *y, *last, *kept;         // [B, L, H, P], [B, K, P, N], [B, K, chunks, N, P] or null
    const float* dlast;             // [B, K, P, N] or null
    float *dq, *dk, *dv, *dlog_a, *dbeta, *dinitial;
};

namespace {

// Rows of the triangular system that are solved one after another; what lies before them is a product.
constexpr int64_t BLOCK = 16;

// to -= from.
void subtract(const float* from, int64_t floats, float* to) { add(from, -1.0f, floats, to); }

// What both passes compute of a chunk.
struct Tiles {
    float *k, *kT, *v;        // [Q, N], [N, Q], [Q, P]
    float *G, *L;             // [Q, Q]: K K^T, and -(K K^T) o decays below the diagonal
    float *read, *z, *u;      // [Q, P]: what the state holds for each key; what misses there; beta times that
    float *beta, *minus;      // [Q]: and what a product is scaled by
    Decay decay;

    Tiles(int64_t Qp, int64_t Np, int64_t Pp, bool documents) {
        k = scratch.take(Qp * Np), kT = scratch.take(Np * Qp), v = scratch.take(Qp * Pp);
        G = scratch.take(Qp * Qp), L = scratch.take(Qp * Qp);
        read = scratch.take(Qp * Pp), z = scratch.take(Qp * Pp), u = scratch.take(Qp * Pp);
        beta = scratch.take(Qp), minus = scratch.take(Qp);
        decay = {scratch.take(Qp), scratch.take(Qp), scratch.take(Qp), scratch.take(Qp)};
        if (documents) decay.run = (int32_t*)scratch.take(Qp);
    }
    static int64_t floats(int64_t Qp, int64_t Np, int64_t Pp) { return 2 * Qp * Np + 4 * Qp * Pp + 2 * Qp * Qp + 7 * Qp + 256; }
};

struct Unit {
    const Call& c;
    int64_t b, g, ratio;  // the state, and its query heads g * ratio .. g * ratio + ratio - 1
    int64_t Pp, Np, Qp, chunks;

    Unit(const Call& call, int64_t index) : c(call) {
        b = index / c.states, g = index % c.states, ratio = c.heads / c.states;
        Pp = padded(c.width), Np = padded(c.size), Qp = padded(c.chunk);
        chunks = (c.length + c.chunk - 1) / c.chunk;
    }

    const int64_t* documents() const { return c.run ? c.run + b * c.length : nullptr; }
    float* kept(int64_t at) const { return c.kept + ((b * c.states + g) * chunks + at) * c.size * c.width; }
    int64_t state() const { return (b * c.states + g) * c.width * c.size; }
    int64_t row(int64_t start, int64_t heads, int64_t head) const { return (b * c.length + start) * heads + head; }

    void solve(Tiles& t, int64_t start, int64_t q, const float* h_NP, bool holds, gemm::Ahead& ahead) const;
    void forward() const;
    void backward() const;
};

// All tiles of a chunk, given the state before it.
void Unit::solve(Tiles& t, int64_t start, int64_t q, const float* h_NP, bool holds, gemm::Ahead& ahead) const {
    const int64_t qp = padded(q);
    gemm::pack(c.k.of(b, start, g), c.k.token, q, c.size, t.k, qp);
    gemm::pack(c.v.of(b, start, g), c.v.token, q, c.width, t.v, q);
    gemm::transpose(t.k, Np, t.kT, qp, qp, c.size);
    for (int64_t i = 0; i < q; ++i) t.beta[i] = *c.beta.of(b, start + i, g);
    t.decay.read(c.log_a, documents(), b, g, start, q);
    gemm::run({t.G, qp, q, q, 0.0f, {}, nullptr, {t.k, Np, 1, t.kT, qp, c.size}, Range::BELOW}, ahead);
    t.decay.apply(t.G, t.L, nullptr, nullptr, q);
    for (int64_t i = 0; i < q; ++i) {
        for (int64_t s = 0; s <= i; s += W) store(t.L + i * qp + s, -load(t.L + i * qp + s));
        t.L[i * qp + i] = 0.0f;
    }
    if (holds)
        gemm::run({t.read, Pp, q, c.width, 0.0f, {t.k, Np, 1, h_NP, Pp, c.size}, t.decay.enter, {}}, ahead);
    else
        std::memset(t.read, 0, sizeof(float) * (size_t)(q * Pp));
    for (int64_t j = 0; j < q * Pp; j += W) store(t.z + j, load(t.v + j) - load(t.read + j));
    for (int64_t first = 0; first < q; first += BLOCK) {
        const int64_t last = first + BLOCK < q ? first + BLOCK : q;
        gemm::run({t.z + first * Pp, Pp, last - first, c.width, 1.0f, {}, nullptr, {t.L + first * qp, qp, 1, t.u, Pp, first}},
                  ahead);
        for (int64_t i = first; i < last; ++i)
            for (int64_t j = 0; j < Pp; j += W) {
                vf missing = load(t.z + i * Pp + j);
                for (int64_t s = first; s < i; ++s) missing = fma(vf{} + t.L[i * qp + s], load(t.u + s * Pp + j), missing);
                store(t.z + i * Pp + j, missing);
                store(t.u + i * Pp + j, missing * t.beta[i]);
            }
    }
}

void Unit::forward() const {
    const int64_t state_floats = Np * Pp;
    scratch.reserve(Tiles::floats(Qp, Np, Pp) + 2 * Qp * Np + 2 * Qp * Qp + Qp * Pp + 2 * state_floats + 256);
    Tiles t(Qp, Np, Pp, c.run != nullptr);
    float *q_tile = scratch.take(Qp * Np), *leaving = scratch.take(Qp * Np), *y = scratch.take(Qp * Pp);
    float *score = scratch.take(Qp * Qp), *weight = scratch.take(Qp * Qp);
    float *h = scratch.take(state_floats), *between = scratch.take(state_floats);
    if (c.initial)
        turn_in(c.initial + state(), c.width, c.size, h, between);
    else
        std::memset(h, 0, sizeof(float) * (size_t)state_floats);
    gemm::Ahead ahead;
    for (int64_t i = 0; i < chunks; ++i) {
        const int64_t start = i * c.chunk, q = start + c.chunk < c.length ? c.chunk : c.length - start, qp = padded(q);
        const bool holds = i > 0 || c.initial;
        if (c.kept) gemm::unpack(h, c.size, c.width, kept(i), c.width);
        solve(t, start, q, h, holds, ahead);
        for (int64_t r = 0; r < ratio; ++r) {
            const int64_t head = g * ratio + r;
            gemm::pack(c.q.of(b, start, head), c.q.token, q, c.size, q_tile, q);
            gemm::run({score, qp, q, q, 0.0f, {}, nullptr, {q_tile, Np, 1, t.kT, qp, c.size}, Range::BELOW}, ahead);
            t.decay.apply(score, weight, nullptr, nullptr, q);
            Product through{q_tile, Np, 1, h, Pp, holds ? c.size : 0};
            gemm::run({y, Pp, q, c.width, 0.0f, through, t.decay.enter, {weight, qp, 1, t.u, Pp, q}, Range::UP_TO_ROW}, ahead);
            gemm::unpack(y, q, c.width, c.y + row(start, c.heads, head) * c.width, c.heads * c.width);
        }
        scaled(t.k, t.decay.leave, q, Np, leaving);
        gemm::run({h, Pp, c.size, c.width, t.decay.cross, {}, nullptr, {leaving, 1, Np, t.u, Pp, q}}, ahead);
    }
    turn_out(h, c.width, c.size, c.last + state(), between);
}

void Unit::backward() const {
    const int64_t state_floats = Np * Pp;
    scratch.reserve(Tiles::floats(Qp, Np, Pp) + 5 * Qp * Np + 4 * Qp * Pp + 3 * Qp * Qp + 5 * state_floats + Qp * W + 2 * Qp + 512);
    Tiles t(Qp, Np, Pp, c.run != nullptr);
    float *q_tile = scratch.take(Qp * Np), *dq = scratch.take(Qp * Np), *dk = scratch.take(Qp * Np);
    float *part = scratch.take(Qp * Np), *scaled_rows = scratch.take(Qp * Np);
    float *dy = scratch.take(Qp * Pp), *du = scratch.take(Qp * Pp), *dz = scratch.take(Qp * Pp), *uT = scratch.take(Pp * Qp);
        float *score = scratch.take(Qp * Qp), *weight = scratch.take(Qp * Qp), *dscore = scratch.take(Qp * Qp);
    float *h = scratch.take(state_floats), *h_PN = scratch.take(state_floats);
    float *dh = scratch.take(state_floats), *dh_PN = scratch.take(state_floats), *between = scratch.take(state_floats);
    float *dS = scratch.take(Qp * W), *diagonal = scratch.take(Qp), *passed = scratch.take(Qp);
    if (c.dlast)
        turn_in(c.dlast + state(), c.width, c.size, dh, between);
    else
        std::memset(dh, 0, sizeof(float) * (size_t)state_floats);
    gemm::Ahead ahead;
    for (int64_t i = chunks - 1; i >= 0; --i) {
        const int64_t start = i * c.chunk, q = start + c.chunk < c.length ? c.chunk : c.length - start, qp = padded(q);
        const bool holds = i > 0 || c.initial, onward = i + 1 < chunks || c.dlast;
        gemm::pack(kept(i), c.width, c.size, c.width, h, Np);
        gemm::transpose(h, Pp, h_PN, Np, Np, c.width);
        if (onward) gemm::transpose(dh, Pp, dh_PN, Np, Np, c.width);
        solve(t, start, q, h, holds, ahead);
        if (qp > q) std::memset(t.u + q * Pp, 0, sizeof(float) * (size_t)((qp - q) * Pp));
        gemm::transpose(t.u, Pp, uT, qp, qp, c.width);

        // What each token left in the state after the chunk.
        const int64_t size = onward ? c.size : 0, width = onward ? c.width : 0;
        gemm::run({du, Pp, q, c.width, 0.0f, {t.k, Np, 1, dh, Pp, size}, t.decay.leave, {}}, ahead);
        gemm::run({dk, Np, q, c.size, 0.0f, {t.u, Pp, 1, dh_PN, Np, width}, t.decay.leave, {}}, ahead);
        float lost = 0.0f;
        for (int64_t s = 0; s < q; ++s) {
            store(dS + s * W, vf{});
            passed[s] = lost;
            if (onward) lost += hsum(dot(du + s * Pp, t.u + s * Pp, Pp, vf{}));
        }
        float sum = onward ? t.decay.cross * hsum(dot(dh, h, c.size * Pp, vf{})) : 0.0f;
        for (int64_t j = 0; j < c.size * Pp; j += W) store(dh + j, load(dh + j) * t.decay.cross);

        // What each query read.
        for (int64_t r = 0; r < ratio; ++r) {
            const int64_t head = g * ratio + r;
            gemm::pack(c.q.of(b, start, head), c.q.token, q, c.size, q_tile, q);
            gemm::pack(c.dy.of(b, start, head), c.dy.token, q, c.width, dy, q);
            gemm::run({score, qp, q, q, 0.0f, {}, nullptr, {q_tile, Np, 1, t.kT, qp, c.size}, Range::BELOW}, ahead);
            gemm::run({dscore, qp, q, q, 0.0f, {}, nullptr, {dy, Pp, 1, uT, qp, c.width}, Range::BELOW}, ahead);
            t.decay.apply(score, weight, dscore, diagonal, q);
            gemm::run({du, Pp, q, c.width, 1.0f, {}, nullptr, {weight, 1, qp, dy, Pp, q}, Range::FROM_ROW}, ahead);
            gemm::run({dq, Np, q, c.size, 0.0f, {dy, Pp, 1, h_PN, Np, holds ? c.width : 0}, t.decay.enter,
                       {dscore, qp, 1, t.k, Np, q}, Range::UP_TO_ROW}, ahead);
            gemm::run({part, Np, q, c.size, 0.0f, {}, nullptr, {dscore, 1, qp, q_tile, Np, q}, Range::FROM_ROW}, ahead);
            for (int64_t s = 0; s < q; ++s) {
                const vf gained = dot(dq + s * Np, q_tile + s * Np, Np, load(dS + s * W));
                store(dS + s * W, gained - dot(part + s * Np, t.k + s * Np, Np, vf{}));
                add(t.k + s * Np, diagonal[s], Np, dq + s * Np);
                add(q_tile + s * Np, diagonal[s], Np, part + s * Np);
            }
            add(part, 1.0f, q * Np, dk);
            gemm::unpack(dq, q, c.size, c.dq + row(start, c.heads, head) * c.size, c.heads * c.size);
            scaled(q_tile, t.decay.enter, q, Np, scaled_rows);
            gemm::run({dh, Pp, c.size, c.width, 1.0f, {}, nullptr, {scaled_rows, 1, Np, dy, Pp, q}}, ahead);
        }

        // Back through the triangular system, the last token first.
        for (int64_t first = (q - 1) / BLOCK * BLOCK; first >= 0; first -= BLOCK) {
            const int64_t last = first + BLOCK < q ? first + BLOCK : q;
            gemm::run({du + first * Pp, Pp, last - first, c.width, 1.0f, {}, nullptr,
                       {t.L + last * qp + first, 1, qp, dz + last * Pp, Pp, q - last}}, ahead);
            for (int64_t s = last - 1; s >= first; --s)
                for (int64_t j = 0; j < Pp; j += W) {
                    vf written = load(du + s * Pp + j);
                    for (int64_t k = s + 1; k < last; ++k)
                        written = fma(vf{} + t.L[k * qp + s], load(dz + k * Pp + j), written);
                    store(du + s * Pp + j, written);
                    store(dz + s * Pp + j, written * t.beta[s]);
                }
        }
        for (int64_t s = 0; s < q; ++s)
            c.dbeta[row(start + s, c.states, g)] = hsum(dot(du + s * Pp, t.z + s * Pp, Pp, vf{}));
        gemm::unpack(dz, q, c.width, c.dv + row(start, c.states, g) * c.width, c.states * c.width);

        // What the corrections read: of keys before, and of the state before the chunk.
        gemm::run({dscore, qp, q, q, 0.0f, {}, nullptr, {dz, Pp, 1, uT, qp, c.width}, Range::BELOW}, ahead);
        t.decay.apply(t.G, weight, dscore, diagonal, q);
        gemm::run({part, Np, q, c.size, 0.0f, {dz, Pp, 1, h_PN, Np, holds ? c.width : 0}, t.decay.enter,
                   {dscore, qp, 1, t.k, Np, q}, Range::UP_TO_ROW}, ahead);
        gemm::run({dq, Np, q, c.size, 0.0f, {}, nullptr, {dscore, 1, qp, t.k, Np, q}, Range::FROM_ROW}, ahead);
        for (int64_t s = 0; s < q; ++s) {
            const vf lost_here = dot(part + s * Np, t.k + s * Np, Np, vf{}), gained = dot(dq + s * Np, t.k + s * Np, Np, vf{});
            store(dS + s * W, load(dS + s * W) - lost_here + gained);
        }
        subtract(part, q * Np, dk);
        subtract(dq, q * Np, dk);
        gemm::unpack(dk, q, c.size, c.dk + row(start, c.states, g) * c.size, c.states * c.size);
        for (int64_t s = 0; s < q; ++s) t.minus[s] = -t.decay.enter[s];
        scaled(t.k, t.minus, q, Np, scaled_rows);
        gemm::run({dh, Pp, c.size, c.width, 1.0f, {}, nullptr, {scaled_rows, 1, Np, dz, Pp, q}}, ahead);

        // As in SSD: no term is in two of these sums.
        for (int64_t s = q - 1; s >= 0; --s) {
            sum += hsum(load(dS + s * W));
            c.dlog_a[row(start + s, c.states, g)] = sum + passed[s];
        }
    }
    turn_out(dh, c.width, c.size, c.dinitial + state(), between);
}

}  // namespace

extern "C" int gated_delta_forward(const Call* c) {
    return parallel::status_of([c] {
        parallel::parallel_for(c->batch * c->states, (int)c->threads, [c](int64_t i) { Unit(*c, i).forward(); });
    });
}

extern "C" int gated_delta_backward(const Call* c) {
    return parallel::status_of([c] {
        parallel::parallel_for(c->batch * c->states, (int)c->threads, [c](int64_t i) { Unit(*c, i).backward(); });
    });
}
