// The distance between a teacher's attention and a student's mixing matrix, in one visit of each tile.
//
// The unit of work is a part of the row tiles of one sequence and B/C group: it owns its rows of dC and its own sum of
// everything else, and units are added in a fixed order. Memory is linear in the tokens, a panel of T rows of attention
// per thread included.
#include <atomic>
#include <vector>

#include "parallel.h"
#include "student.h"

using namespace distance;

namespace {

struct Unit {
    int64_t batch, group, part;
    std::vector<Squares> squares;  // per head of the group
    Buffer<double> dS;  // [heads of the group][length]
    Buffer<float> dB;  // [padded][padded state], only if there are several parts
};

// What a thread needs to work on any unit.
struct Workspace {
    Columns columns;
    Panel panel;
    Rows rows;
    Buffer<float> dB, own;  // [padded][padded state]; weights of t = s [length]
    explicit Workspace(const Problem& p)
        : columns(p), panel(p), rows(p), dB(p.dC == nullptr ? 0 : p.padded() * p.padded_state()), own(p.length) {}
};

int64_t parts_of(const Problem& p, int threads) {
    const int64_t units = p.batch * p.groups;
    if (units % threads == 0 || units >= 8 * threads) return 1;
    return std::min<int64_t>((8 * threads + units - 1) / units, std::max<int64_t>(p.tiles() / 2, 1));
}

// Row tiles are dealt back and forth, because later ones have more columns.
bool owns(int64_t part, int64_t parts, int64_t tile) {
    const int64_t place = tile % parts;
    return part == (tile / parts % 2 == 0 ? place : parts - 1 - place);
}

void add_rows(float* out, int64_t out_row, const float* rows, int64_t row, int64_t width, int64_t count, float factor,
              bool fresh) {
    for (int64_t i = 0; i < count; ++i)
        for (int64_t n = 0; n < width; ++n)
            out[i * out_row + n] = (fresh ? 0.0f : out[i * out_row + n]) + factor * rows[i * row + n];
}

void add(float* to, const float* from, int64_t width, float factor) {
    for (int64_t n = 0; n < width; ++n) to[n] += factor * from[n];
}

double dot(const float* a, const float* b, int64_t padded) {
    vf sum{};
    for (int64_t n = 0; n < padded; n += W) sum = simd::fma(simd::load(a + n), simd::load(b + n), sum);
    return simd::hsum(sum);
}

void run(const Problem& p, Workspace& workspace, Unit& unit, int64_t parts) {
    const bool gradient = p.dC != nullptr;
    const int64_t b = unit.batch, g = unit.group, ratio = p.heads / p.groups, width = p.padded_state();
    const int64_t row = p.groups * p.state;
    const Sequence sequence(p, b);
    auto& [columns, panel, rows, dB, own] = workspace;
    columns.pack_B(p, sequence, b, g);
    int64_t packed = -1;
    for (int64_t r = 0; r < ratio; ++r) {
        const int64_t h = g * ratio + r, key_head = h / (p.heads / p.key_heads);
        if (key_head != packed) columns.pack_keys(p, sequence, b, key_head);
        packed = key_head;
        columns.sum_decays(p, b, h);
        const float skip = p.D == nullptr ? 0.0f : p.D[h];
        const float factor = p.factor == nullptr ? 1.0f : p.factor[b * p.heads + h];
        double* dS = gradient ? unit.dS.get() + r * p.length : nullptr;
        if (gradient) {
            std::fill(dB.get(), dB.get() + p.padded() * width, 0.0f);
            std::fill(dS, dS + p.length, 0.0);
            std::fill(own.get(), own.get() + p.length, 0.0f);
        }
        Squares total;
        for (int64_t t0 = 0; t0 < p.length; t0 += T) {
            if (!owns(unit.part, parts, t0 / T)) continue;
            const int64_t count = std::min<int64_t>(T, p.length - t0);
            panel.fill(p, sequence, columns, b, h, t0);
            rows.begin(p, sequence, columns, b, g, t0);
            const int64_t first = sequence.student_first[t0] / U;
            for (int64_t j = first; j <= (t0 + count - 1) / U; ++j)
                rows.visit(p, sequence, columns, panel, skip, t0, j, dB.get(), total);
            if (!gradient) continue;
            rows.finish(p);
            for (int64_t i = 0; i < count; ++i) {
                dS[t0 + i] += dot(rows.C(i, p), rows.dC(i, p), width);
                own[t0 + i] = rows.own(i);
                add(rows.dC(i, p), columns.B.get() + (t0 + i) * width, width, rows.own(i));
            }
            float* out = p.dC + ((b * p.length + t0) * p.groups + g) * p.state;
            add_rows(out, row, rows.dC(0, p), width, p.state, count, factor, r == 0);
        }
        unit.squares[r] = total;
        if (!gradient) continue;
        for (int64_t s = 0; s < p.length; ++s) {
            dS[s] -= dot(columns.B.get() + s * width, dB.get() + s * width, width);
            if (own[s] != 0) add(dB.get() + s * width, p.C.at(b, s, g), p.state, own[s]);
        }
        if (parts == 1) {
            float* out = p.dB + (b * p.length * p.groups + g) * p.state;
            add_rows(out, row, dB.get(), width, p.state, p.length, factor, r == 0);
        } else {
            add_rows(unit.dB.get(), width, dB.get(), width, width, p.length, factor, r == 0);
        }
    }
}

// Sums over the parts of one sequence and group.
void gather(const Problem& p, const Unit* units, int64_t parts) {
    const int64_t b = units->batch, g = units->group, ratio = p.heads / p.groups, width = p.padded_state();
    for (int64_t r = 0; r < ratio; ++r) {
        const int64_t h = g * ratio + r, place = b * p.heads + h;
        Squares total;
        for (int64_t i = 0; i < parts; ++i) {
            total.error += units[i].squares[r].error;
            total.teacher += units[i].squares[r].teacher;
            total.skip += units[i].squares[r].skip;
        }
        p.error[place] = total.error;
        p.teacher[place] = total.teacher;
        if (p.dC == nullptr) continue;
        const double factor = p.factor == nullptr ? 1.0 : p.factor[place];
        p.dD[place] = static_cast<float>(total.skip * factor);
        double later = 0;  // a step adds to all later prefix sums
        for (int64_t t = p.length - 1; t >= 0; --t) {
            for (int64_t i = 0; i < parts; ++i) later += units[i].dS[r * p.length + t];
            p.dlog_a[(b * p.length + t) * p.heads + h] = static_cast<float>(later * factor);
        }
    }
    if (p.dC == nullptr || parts == 1) return;
    float* out = p.dB + (b * p.length * p.groups + g) * p.state;
    for (int64_t i = 0; i < parts; ++i)
        add_rows(out, p.groups * p.state, units[i].dB.get(), width, p.state, p.length, 1.0f, i == 0);
}

}  // namespace

// 0, or 1 if memory ran out.
extern "C" int matrix_distance(const Problem* problem, int threads) {
    return parallel::status_of([=] {
        const Problem& p = *problem;
        const int64_t parts = parts_of(p, threads), ratio = p.heads / p.groups;
        const bool gradient = p.dC != nullptr;
        std::vector<Unit> units;
        for (int64_t i = 0; i < p.batch * p.groups * parts; ++i)
            units.push_back(Unit{
                i / parts / p.groups, i / parts % p.groups, i % parts, std::vector<Squares>(ratio),
                Buffer<double>(gradient ? ratio * p.length : 0),
                Buffer<float>(gradient && parts > 1 ? p.padded() * p.padded_state() : 0)
            });
        const auto count = static_cast<int64_t>(units.size());
        std::atomic<int64_t> next{0};
        parallel::parallel_for(std::min<int64_t>(count, threads), threads, [&](int64_t) {
            Workspace workspace(p);
            for (int64_t i; (i = next.fetch_add(1)) < count;) run(p, workspace, units[i], parts);
        });
        parallel::parallel_for(p.batch * p.groups, threads, [&](int64_t i) { gather(p, &units[i * parts], parts); });
    });
}
