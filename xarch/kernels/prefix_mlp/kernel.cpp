// A perceptron with one hidden layer of which every position runs a prefix of the hidden units, in blocks of units.
// Positions are sorted by how many blocks they run, so that a block reads one slice of them. A job is a tile of sorted
// positions; its inputs, hidden values and results stay in the level-2 cache while packed weights pass by once.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "gemm.h"
#include "parallel.h"
#include "simd.h"

using simd::load;
using simd::store;
using simd::vf;
using simd::W;

namespace {

struct Call {
    int64_t positions, width, units, outputs, blocks, layers, activation, threads;
    const float* x;             // [T, D]
    const int64_t* count;       // [T], how many blocks run
    const int64_t* edges;       // [blocks + 1], first unit of every block, and F
    const float* into[2];       // [F, D], layers that read the input
    const float* into_bias[2];  // [F] or null
    const float* out;           // [O, F]
    const float* out_bias;      // [O] or null
    float* y;                   // [T, O]
};

constexpr int NV = gemm::STRIP;
constexpr int64_t PANEL = NV * W;         // columns of a packed panel
constexpr int MR = gemm::ROWS[NV];        // rows of a block of registers
constexpr int64_t DEEP = 256;             // rows of a panel that stay in the level-1 cache
constexpr int64_t LEAST = 8, MOST = 16;   // blocks of rows in a tile

enum Activation { NONE, RELU, GELU, GELU_TANH, SILU };

// erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
SIMD_INLINE vf verf(vf x) {
    const vf size = simd::vabs(x), t = 1.0f / simd::fma(size, simd::splat(0.3275911f), simd::splat(1.0f));
    vf p = simd::splat(1.061405429f);
    p = simd::fma(p, t, simd::splat(-1.453152027f));
    p = simd::fma(p, t, simd::splat(1.421413741f));
    p = simd::fma(p, t, simd::splat(-0.284496736f));
    p = simd::fma(p, t, simd::splat(0.254829592f));
    const vf found = 1.0f - p * t * simd::vexp(-size * size);
    return simd::select(x < vf{}, -found, found);
}

SIMD_INLINE vf activated(vf x, int64_t kind) {
    switch (kind) {
        case RELU: return simd::vmax(x, vf{});
        case GELU: return 0.5f * x * (1.0f + verf(x * 0.70710678118654752f));
        case GELU_TANH: return x * simd::vsigmoid(1.59576912160573f * x * simd::fma(x * x, simd::splat(0.044715f), simd::splat(1.0f)));
        case SILU: return x * simd::vsigmoid(x);
        default: return x;
    }
}

constexpr int64_t ceil_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Panel [inner, PANEL] of the transpose of `rows` rows; zero behind the last one.
void pack(const float* from, int64_t stride, int64_t rows, int64_t inner, float* to) {
    int64_t k = 0;
    if (rows >= PANEL)
        for (; k + W <= inner; k += W) gemm::transpose(from + k, stride, to + k * PANEL, PANEL, PANEL, W);
    for (; k < inner; ++k)
        for (int64_t j = 0; j < PANEL; ++j) to[k * PANEL + j] = j < rows ? from[j * stride + k] : 0.0f;
}

// Rows of floats, each anywhere.
using Rows = float* const*;

// What becomes of sums: they start from one vector for all rows, or from what is there, or from zero, and at the end
// they are activated and multiplied by what stands in other rows.
struct Ends {
    const float* begin = nullptr;
    bool more = false;
    int64_t activation = NONE;
    Rows gate = nullptr;
};

// `left`: how many columns of the panel exist in `to`.
template <int ROWS>
void block(const float* a, int64_t a_row, const float* panel, int64_t inner, Rows to, int64_t row, int64_t column, int64_t left, const Ends& ends) {
    vf sum[ROWS][NV];
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) {
            const int64_t lanes = left - j * W;
            const float* at = to[row + i] + column + j * W;
            if (ends.begin) sum[i][j] = load(ends.begin + column + j * W);
            else if (!ends.more || lanes <= 0) sum[i][j] = vf{};
            else sum[i][j] = lanes >= W ? load(at) : simd::load_part(at, int(lanes));
        }
    const gemm::Product product{a + row * a_row, a_row, 1, panel, PANEL, inner};
    gemm::accumulate<ROWS, NV>(sum, product, 0, 0, 0, inner);
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) {
            const int64_t lanes = left - j * W;
            float* at = to[row + i] + column + j * W;
            vf value = activated(sum[i][j], ends.activation);
            if (ends.gate) value = value * load(ends.gate[row + i] + column + j * W);
            if (lanes >= W) store(at, value);
            else if (lanes > 0) simd::store_part(at, value, int(lanes));
        }
}

// a [rows, inner] times packed panels, into `columns` columns of `to`. A part of `a` stays in the level-2 cache while the
// panels pass by; each is fetched while the one before it is used.
void product(const float* a, int64_t a_row, int64_t rows, const float* panels, int64_t inner, Rows to, int64_t columns, const Ends& ends) {
    const int64_t parts = std::max<int64_t>(1, (inner + DEEP - 1) / DEEP), deep = (inner + parts - 1) / parts;
    const int64_t steps = (rows + MR - 1) / MR;
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t from = part * deep, length = std::min(deep, inner - from);
        Ends now = ends;
        if (part) now.begin = nullptr, now.more = true;
        if (part + 1 < parts) now.activation = NONE, now.gate = nullptr;
        const int64_t ahead = (length * PANEL * 4 / 64 + steps) / steps;  // cache lines
        for (int64_t column = 0; column < columns; column += PANEL) {
            const float* panel = panels + column * inner + from * PANEL;
            const char* next = (const char*)(panel + PANEL * inner);
            const int64_t left = std::min(columns - column, PANEL);
            for (int64_t i = 0; i < rows; i += MR) {
                for (int64_t line = 0; line < ahead; ++line, next += 64) __builtin_prefetch(next, 0, 2);
                switch (std::min<int64_t>(rows - i, MR)) {
                    case 1: block<1>(a + from, a_row, panel, length, to, i, column, left, now); break;
                    case 2: block<2>(a + from, a_row, panel, length, to, i, column, left, now); break;
                    case 3: block<3>(a + from, a_row, panel, length, to, i, column, left, now); break;
                    case 4: block<4>(a + from, a_row, panel, length, to, i, column, left, now); break;
                    case 5: block<5>(a + from, a_row, panel, length, to, i, column, left, now); break;
                    default: block<MR>(a + from, a_row, panel, length, to, i, column, left, now);
                }
            }
        }
    }
}

// Memory that nobody has to fill first.
struct Floats {
    std::unique_ptr<float[]> owned;
    float* at = nullptr;
    void resize(int64_t n) { owned.reset(new float[n + 1]), at = owned.get(); }
};

struct Work {
    const Call& c;
    std::vector<int64_t> order, ends;  // positions, most blocks first; how many of them run each block
    // Of each block that runs: panels of every layer, and biases with zeros behind them.
    std::vector<Floats> into[2], out;
    std::vector<std::vector<float>> bias[2];
    std::vector<float> out_bias;
    int64_t widest = 0, used = 0;

    explicit Work(const Call& call) : c(call), order(c.positions), ends(c.blocks), out(c.blocks), out_bias(ceil_to(c.outputs, PANEL)) {
        std::vector<int64_t> places(c.blocks + 2);
        for (int64_t t = 0; t < c.positions; ++t) ++places[c.blocks - count(t) + 1];
        for (int64_t n = 0; n <= c.blocks; ++n) places[n + 1] += places[n];
        // Positions that run more than n blocks come before those that run n.
        for (int64_t n = 0; n < c.blocks; ++n) ends[n] = places[c.blocks - n];
        for (int64_t t = 0; t < c.positions; ++t) order[places[c.blocks - count(t)]++] = t;
        while (used < c.blocks && ends[used]) widest = std::max(widest, size(used)), ++used;
        if (c.out_bias) std::memcpy(out_bias.data(), c.out_bias, sizeof(float) * c.outputs);
        for (int l = 0; l < c.layers; ++l) into[l].resize(used), bias[l].resize(used);
        for (int64_t n = 0; n < used; ++n) {
            for (int l = 0; l < c.layers; ++l) {
                into[l][n].resize(ceil_to(size(n), PANEL) * c.width), bias[l][n].resize(ceil_to(size(n), PANEL));
                if (c.into_bias[l]) std::memcpy(bias[l][n].data(), c.into_bias[l] + c.edges[n], sizeof(float) * size(n));
            }
            out[n].resize(ceil_to(c.outputs, PANEL) * size(n));
        }
    }

    int64_t count(int64_t t) const { return std::clamp<int64_t>(c.count[t], 0, c.blocks); }
    int64_t size(int64_t n) const { return c.edges[n + 1] - c.edges[n]; }

    void pack_block(int64_t n) {
        for (int l = 0; l < c.layers; ++l)
            for (int64_t u = 0; u < size(n); u += PANEL)
                pack(c.into[l] + (c.edges[n] + u) * c.width, c.width, std::min(size(n) - u, PANEL), c.width, into[l][n].at + u * c.width);
        for (int64_t o = 0; o < c.outputs; o += PANEL)
            pack(c.out + o * c.units + c.edges[n], c.units, std::min(c.outputs - o, PANEL), size(n), out[n].at + o * size(n));
    }

    int64_t tile() const {
        // Sorted tiles differ in work, so several threads take smaller ones. Results are the same.
        return MR * (c.threads > 1 ? std::clamp<int64_t>(c.positions / (4 * c.threads * MR), LEAST, MOST) : MOST);
    }

    void run_tile(int64_t first, int64_t last) const {
        const int64_t rows = last - first, x_row = ceil_to(c.width, W) + W, h_row = ceil_to(widest, PANEL) + W;
        Floats x, h, gate;
        x.resize(rows * x_row), h.resize(rows * h_row), gate.resize(c.layers > 1 ? rows * h_row : 0);
        std::vector<float*> y(rows), hidden(rows), gates(rows);
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t t = order[first + i];
            std::memcpy(x.at + i * x_row, c.x + t * c.width, sizeof(float) * c.width);
            y[i] = c.y + t * c.outputs, hidden[i] = h.at + i * h_row, gates[i] = gate.at + (c.layers > 1 ? i * h_row : 0);
            if (!count(t)) std::memcpy(y[i], out_bias.data(), sizeof(float) * c.outputs);
        }
        for (int64_t n = 0; n < used && ends[n] > first; ++n) {
            const int64_t now = std::min(rows, ends[n] - first), wide = ceil_to(size(n), PANEL);
            const auto read = [&](int l, Rows to, const Ends& end) {
                product(x.at, x_row, now, into[l][n].at, c.width, to, wide, end);
            };
            if (c.layers > 1) {
                read(0, gates.data(), {bias[0][n].data(), false, c.activation});
                read(1, hidden.data(), {bias[1][n].data(), false, NONE, gates.data()});
            } else {
                read(0, hidden.data(), {bias[0][n].data(), false, c.activation});
            }
            const Ends added{n ? nullptr : out_bias.data(), n > 0};
            product(h.at, h_row, now, out[n].at, size(n), y.data(), c.outputs, added);
        }
    }
};

}  // namespace

extern "C" int prefix_mlp_forward(const Call* call) {
    return parallel::status_of([&] {
        Work work(*call);
        parallel::parallel_for(work.used, int(call->threads), [&](int64_t n) { work.pack_block(n); });
        const int64_t tile = work.tile();
        parallel::parallel_for((call->positions + tile - 1) / tile, int(call->threads), [&](int64_t i) {
            work.run_tile(i * tile, std::min(call->positions, (i + 1) * tile));
        });
    });
}
