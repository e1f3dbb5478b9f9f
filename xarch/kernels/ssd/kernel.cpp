// SSD forward and backward in chunks of tokens. The formulas are in xarch/kernels/README.md, "SSD".
//
// A unit of work is one sequence and up to `slice` heads of one B/C group, chunk after chunk; all tiles of a chunk and the
// states stay in the level-2 cache of the thread, and only inputs, outputs and one state per chunk cross memory. States
// are kept as h^T [N, P], so that the forward pass transposes nothing but B.
//
// Legend: Q tokens of a chunk, P value width, N state size; tiles have their rows padded to whole vectors.
#include "chunk.h"
#include "gemm.h"
#include "parallel.h"

using namespace simd;
using namespace chunk;
using gemm::Job;
using gemm::padded;
using gemm::Product;
using gemm::Range;

struct Call {
    int64_t batch, length, heads, groups, width, size, chunk, slice, threads;
    Rows x, log_a, B, C, dy;        // log_a [B, L, H]: one number per head
    const float *D, *initial;       // [H] or null, [B, H, P, N] or null
    const int64_t* run;             // [B, L] or null
    float *y, *last, *states;       // [B, L, H, P], [B, H, P, N], [B, H, chunks, N, P] or null
    const float* dlast;             // [B, H, P, N] or null
    float *dx, *dlog_a, *dB, *dC, *dD, *dinitial;  // dB, dC [slices, B, L, G, N]; dD [B, H]
};

namespace {

struct Unit {
    const Call& c;
    int64_t b, g, first, count;  // heads first .. first + count - 1
    int64_t part;                // which slice of its group
    int64_t Pp, Np, Qp, Pr, Nr;  // widths of tiles; rows of transposed tiles
    int64_t chunks;

    Unit(const Call& call, int64_t index) : c(call) {
        const int64_t ratio = c.heads / c.groups, slices = (ratio + c.slice - 1) / c.slice;
        part = index % slices;
        g = index / slices % c.groups;
        b = index / slices / c.groups;
        first = g * ratio + part * c.slice;
        count = part * c.slice + c.slice < ratio ? c.slice : ratio - part * c.slice;
        Pp = padded(c.width), Np = padded(c.size), Qp = padded(c.chunk);
        chunks = (c.length + c.chunk - 1) / c.chunk;
    }

    const int64_t* documents() const { return c.run ? c.run + b * c.length : nullptr; }
    float* state(int64_t head, int64_t at) const {
        return c.states + ((b * c.heads + head) * chunks + at) * c.size * c.width;
    }
    int64_t head_state(int64_t head) const { return (b * c.heads + head) * c.size * c.width; }

    float* y_of(int64_t start, int64_t head) const {
        return c.y + ((b * c.length + start) * c.heads + head) * c.width;
    }
    // The rows of the chunk that begins at a token will be read.
    void foresee(gemm::Ahead& ahead, const Rows& from, int64_t start, int64_t head, int64_t columns) const {
        if (start < 0 || start >= c.length) return;
        const int64_t q = start + c.chunk < c.length ? c.chunk : c.length - start;
        ahead.add(from.of(b, start, head), from.token, q, columns);
    }

    void forward() const;
    void backward() const;
};

void Unit::forward() const {
    const int64_t square = Qp * Qp, state_floats = Np * Pp;
    scratch.reserve(3 * Qp * Np + Np * Qp + 2 * square + 2 * Qp * Pp + 5 * Qp + (count + 1) * state_floats + 256);
    float *B = scratch.take(Qp * Np), *C = scratch.take(Qp * Np), *LB = scratch.take(Qp * Np);
    float *BT = scratch.take(Np * Qp), *G = scratch.take(square), *M = scratch.take(square);
    float *x = scratch.take(Qp * Pp), *y = scratch.take(Qp * Pp), *h = scratch.take(count * state_floats);
    float* between = scratch.take(state_floats);
    Decay decay{scratch.take(Qp), scratch.take(Qp), scratch.take(Qp), scratch.take(Qp)};
    if (c.run) decay.run = (int32_t*)scratch.take(Qp);
    for (int64_t r = 0; r < count; ++r) {
        if (c.initial)
            turn_in(c.initial + head_state(first + r), c.width, c.size, h + r * state_floats, between);
        else
            std::memset(h + r * state_floats, 0, sizeof(float) * (size_t)state_floats);
        if (c.states) gemm::unpack(h + r * state_floats, c.size, c.width, state(first + r, 0), c.width);
    }
    gemm::Ahead ahead;
    for (int64_t i = 0; i < chunks; ++i) {
        const int64_t start = i * c.chunk, q = start + c.chunk < c.length ? c.chunk : c.length - start, qp = padded(q);
        gemm::pack(c.B.of(b, start, g), c.B.token, q, c.size, B, qp);
        gemm::pack(c.C.of(b, start, g), c.C.token, q, c.size, C, q);
        gemm::transpose(B, Np, BT, qp, q, c.size);
        gemm::run({G, qp, q, q, 0.0f, {}, nullptr, {C, Np, 1, BT, qp, c.size}, Range::BELOW}, ahead);
        for (int64_t r = 0; r < count; ++r) {
            const int64_t head = first + r;
            float* state_NP = h + r * state_floats;
            ahead.clear();
            ahead.add(y_of(start, head), c.heads * c.width, q, c.width, true);
            if (c.states && i + 1 < chunks) ahead.add(state(head, i + 1), c.width, c.size, c.width, true);
            if (r + 1 < count) foresee(ahead, c.x, start, head + 1, c.width);
            else foresee(ahead, c.x, start + c.chunk, first, c.width);
            if (r == 0) foresee(ahead, c.B, start + c.chunk, g, c.size), foresee(ahead, c.C, start + c.chunk, g, c.size);
            gemm::pack(c.x.of(b, start, head), c.x.token, q, c.width, x, q);
            decay.read(c.log_a, documents(), b, head, start, q);
            decay.apply(G, M, nullptr, nullptr, q);
            Product through{C, Np, 1, state_NP, Pp, i > 0 || c.initial ? c.size : 0};
            gemm::run({y, Pp, q, c.width, 0.0f, through, decay.enter, {M, qp, 1, x, Pp, q}, Range::UP_TO_ROW}, ahead);
            if (c.D) add(x, c.D[head], q * Pp, y);
            gemm::unpack(y, q, c.width, y_of(start, head), c.heads * c.width);
            scaled(B, decay.leave, q, Np, LB);
            gemm::run({state_NP, Pp, c.size, c.width, decay.cross, {}, nullptr, {LB, 1, Np, x, Pp, q}}, ahead);
            if (c.states && i + 1 < chunks) gemm::unpack(state_NP, c.size, c.width, state(head, i + 1), c.width);
        }
    }
    for (int64_t r = 0; r < count; ++r)
        turn_out(h + r * state_floats, c.width, c.size, c.last + head_state(first + r), between);
}

void Unit::backward() const {
    const int64_t square = Qp * Qp, state_floats = Np * Pp;
    scratch.reserve(8 * Qp * Np + 5 * Qp * Pp + 3 * square + 7 * Qp + Qp * W + (count + 3) * state_floats + 512);
    float *B = scratch.take(Qp * Np), *C = scratch.take(Qp * Np), *BT = scratch.take(Np * Qp);
    float *dB = scratch.take(Qp * Np), *dC = scratch.take(Qp * Np), *EC = scratch.take(Qp * Np);
    float *x = scratch.take(Qp * Pp), *dy = scratch.take(Qp * Pp), *xT = scratch.take(Pp * Qp);
    float* dx = scratch.take(Qp * Pp);
    float *G = scratch.take(square), *M = scratch.take(square), *dG = scratch.take(square);
    float *dh = scratch.take(count * state_floats), *h = scratch.take(state_floats);
    float *h_PN = scratch.take(state_floats), *dh_PN = scratch.take(state_floats), *dS = scratch.take(Qp * W);
    float *diagonal = scratch.take(Qp), *passed = scratch.take(Qp), *leaving = scratch.take(Qp * Np);
    Decay decay{scratch.take(Qp), scratch.take(Qp), scratch.take(Qp), scratch.take(Qp)};
    if (c.run) decay.run = (int32_t*)scratch.take(Qp);
    for (int64_t r = 0; r < count; ++r) {
        c.dD[b * c.heads + first + r] = 0.0f;
        if (c.dlast)
            turn_in(c.dlast + head_state(first + r), c.width, c.size, dh + r * state_floats, h);
        else
            std::memset(dh + r * state_floats, 0, sizeof(float) * (size_t)state_floats);
    }
    const int64_t row_BC = ((part * c.batch + b) * c.length) * c.groups + g;
    gemm::Ahead ahead;
    for (int64_t i = chunks - 1; i >= 0; --i) {
        const int64_t start = i * c.chunk, q = start + c.chunk < c.length ? c.chunk : c.length - start, qp = padded(q);
        const bool onward = i + 1 < chunks || c.dlast;
        const int64_t stride = c.groups * c.size, offset = row_BC * c.size + start * stride;
        gemm::pack(c.B.of(b, start, g), c.B.token, q, c.size, B, qp);
        gemm::pack(c.C.of(b, start, g), c.C.token, q, c.size, C, q);
        gemm::transpose(B, Np, BT, qp, q, c.size);
        gemm::run({G, qp, q, q, 0.0f, {}, nullptr, {C, Np, 1, BT, qp, c.size}, Range::BELOW}, ahead);
        for (int64_t r = 0; r < count; ++r) {
            const int64_t head = first + r;
            float* dstate_NP = dh + r * state_floats;
            float* dx_rows = c.dx + ((b * c.length + start) * c.heads + head) * c.width;
            const int64_t next = r + 1 < count ? start : start - c.chunk, next_head = r + 1 < count ? head + 1 : first;
            ahead.clear();
            ahead.add(dx_rows, c.heads * c.width, q, c.width, true);
            foresee(ahead, c.x, next, next_head, c.width);
            foresee(ahead, c.dy, next, next_head, c.width);
            if (next >= 0) ahead.add(state(next_head, next / c.chunk), c.width, c.size, c.width);
            if (r == 0) {
                ahead.add(c.dC + offset, stride, q, c.size, true);
                ahead.add(c.dB + offset, stride, q, c.size, true);
                foresee(ahead, c.B, start - c.chunk, g, c.size);
                foresee(ahead, c.C, start - c.chunk, g, c.size);
            }
            gemm::pack(c.x.of(b, start, head), c.x.token, q, c.width, x, qp);
            gemm::pack(c.dy.of(b, start, head), c.dy.token, q, c.width, dy, q);
            gemm::transpose(x, Pp, xT, qp, q, c.width);
            gemm::pack(state(head, i), c.width, c.size, c.width, h, Np);
            gemm::transpose(h, Pp, h_PN, Np, c.size, c.width);
            if (onward) gemm::transpose(dstate_NP, Pp, dh_PN, Np, c.size, c.width);
            decay.read(c.log_a, documents(), b, head, start, q);
            gemm::run({dG, qp, q, q, 0.0f, {}, nullptr, {dy, Pp, 1, xT, qp, c.width}, Range::BELOW}, ahead);
            decay.apply(G, M, dG, diagonal, q);

            // Heads of a group add up in order; each needs its own rows for dS first.
            float *dC_r = r == 0 ? dC : EC, *dB_r = r == 0 ? dB : EC;
            gemm::run({dC_r, Np, q, c.size, 0.0f, {dy, Pp, 1, h_PN, Np, c.width}, decay.enter,
                       {dG, qp, 1, B, Np, q}, Range::UP_TO_ROW}, ahead);
            for (int64_t t = 0; t < q; ++t) {
                store(dS + t * W, dot(dC_r + t * Np, C + t * Np, Np, vf{}));
                add(B + t * Np, diagonal[t], Np, dC_r + t * Np);
            }
            if (r > 0) add(dC_r, 1.0f, q * Np, dC);
            gemm::run({dB_r, Np, q, c.size, 0.0f, {}, nullptr, {dG, 1, qp, C, Np, q}, Range::FROM_ROW}, ahead);
            if (onward) gemm::run({leaving, Np, q, c.size, 0.0f, {x, Pp, 1, dh_PN, Np, c.width}, decay.leave, {}}, ahead);
            float left = 0.0f;
            for (int64_t t = 0; t < q; ++t) {
                store(dS + t * W, load(dS + t * W) - dot(dB_r + t * Np, B + t * Np, Np, vf{}));
                add(C + t * Np, diagonal[t], Np, dB_r + t * Np);
                passed[t] = left;
                if (!onward) continue;
                left += hsum(dot(leaving + t * Np, B + t * Np, Np, vf{}));
                add(leaving + t * Np, 1.0f, Np, dB_r + t * Np);
            }
            if (r > 0) add(dB_r, 1.0f, q * Np, dB);
            const int64_t size = onward ? c.size : 0;
            gemm::run({dx, Pp, q, c.width, 0.0f, {B, Np, 1, dstate_NP, Pp, size}, decay.leave,
                       {M, 1, qp, dy, Pp, q}, Range::FROM_ROW}, ahead);
            if (c.D) {
                add(dy, c.D[head], q * Pp, dx);
                c.dD[b * c.heads + head] += hsum(dot(dy, x, q * Pp, vf{}));
            }
            gemm::unpack(dx, q, c.width, dx_rows, c.heads * c.width);

            // Step k decays what passes it: from the state before the chunk and from tokens before k to the state after the
            // chunk, and what later tokens read less what they wrote. No term is in two of these sums, or they would leave
            // its rounding where their difference is zero.
            float sum = onward ? decay.cross * hsum(dot(dstate_NP, h, c.size * Pp, vf{})) : 0.0f;
            for (int64_t t = q - 1; t >= 0; --t) {
                sum += hsum(load(dS + t * W));
                c.dlog_a[(b * c.length + start + t) * c.heads + head] = sum + passed[t];
            }
            scaled(C, decay.enter, q, Np, EC);
            gemm::run({dstate_NP, Pp, c.size, c.width, decay.cross, {}, nullptr, {EC, 1, Np, dy, Pp, q}}, ahead);
        }
        gemm::unpack(dC, q, c.size, c.dC + offset, stride);
        gemm::unpack(dB, q, c.size, c.dB + offset, stride);
    }
    for (int64_t r = 0; r < count; ++r)
        turn_out(dh + r * state_floats, c.width, c.size, c.dinitial + head_state(first + r), h);
}

}  // namespace

static int64_t units(const Call& c) {
    return c.batch * c.groups * ((c.heads / c.groups + c.slice - 1) / c.slice);
}

extern "C" int ssd_forward(const Call* c) {
    return parallel::status_of([c] {
        parallel::parallel_for(units(*c), (int)c->threads, [c](int64_t i) { Unit(*c, i).forward(); });
    });
}

extern "C" int ssd_backward(const Call* c) {
    return parallel::status_of([c] {
        parallel::parallel_for(units(*c), (int)c->threads, [c](int64_t i) { Unit(*c, i).backward(); });
    });
}
