"""Compiled libraries: built once, found again, refused with a reason; and the vector functions they share."""

from __future__ import annotations

import ctypes
import math
import platform
from pathlib import Path

import numpy as np
import pytest

from xarch.kernels.native import BuildError, build, declare, forget, library, why_not

PROBE = """
#include "parallel.h"
#include "simd.h"
using namespace simd;

template <class F>
static void each(const float* x, float* y, int64_t n, int threads, F f) {
    parallel::parallel_for((n + W - 1) / W, threads, [&](int64_t i) {
        const int m = int(n - i * W < W ? n - i * W : W);
        store_part(y + i * W, f(load_part(x + i * W, m)), m);
    });
}

extern "C" {
#define PROBE(name, value) \\
    void probe_##name(const float* x, float* y, int64_t n, int threads) { \\
        each(x, y, n, threads, [](vf v) { return value; }); \\
    }
PROBE(exp, vexp(v))
PROBE(log, vlog(v))
PROBE(log1p, vlog1p(v))
PROBE(sigmoid, vsigmoid(v))
PROBE(softplus, vsoftplus(v))
PROBE(sum, splat(hsum(v)))
}
"""

needs_compiler = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(
    scope="module", params=["this machine", pytest.param("without AVX-512", marks=pytest.mark.slow), "without AVX"]
)
def probe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    narrower = {"without AVX-512": ("-mno-avx512f",), "without AVX": ("-mno-avx",)}.get(request.param, ())
    if narrower and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("an x86 option")
    source = tmp_path_factory.mktemp("probe") / "probe.cpp"
    source.write_text(PROBE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.CACHE, str(source.parent / "cache"))
        patch.setattr(build, "FLAGS", (*build.FLAGS, *narrower))
        return library("probe", [source])


def run(probe: ctypes.CDLL, name: str, x: np.ndarray, threads: int = 2) -> np.ndarray:
    y = np.full(x.size + 1, np.nan, np.float32)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (x, y)]
    probe[f"probe_{name}"](*pointers, ctypes.c_int64(x.size), ctypes.c_int(threads))
    assert np.isnan(y[-1])
    return y[:-1]


@needs_compiler
@pytest.mark.parametrize(
    ("name", "truth", "low", "high"),
    [
        ("exp", np.exp, -87.0, 88.7),
        ("log", np.log, 1e-30, 1e30),
        ("log1p", np.log1p, 0.0, 1e3),
        ("log1p", np.log1p, 0.0, 1e-6),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), -80.0, 80.0),
        ("softplus", lambda x: np.logaddexp(0, x), -80.0, 80.0),
    ],
)
def test_functions_are_exact_to_a_few_units_in_the_last_place(probe, name, truth, low, high):
    x = np.linspace(low, high, 100_003, dtype=np.float32)
    np.testing.assert_allclose(run(probe, name, x), truth(x.astype(np.float64)), rtol=4e-7, atol=1e-37)


@needs_compiler
def test_functions_keep_infinity_and_nan(probe):
    x = np.array([np.inf, -np.inf, np.nan, 0.0, 200.0, -200.0], np.float32)
    cases = {
        "exp": [np.inf, 0, np.nan, 1, np.inf, 0],
        "sigmoid": [1, 0, np.nan, 0.5, 1, 0],
        "softplus": [np.inf, 0, np.nan, math.log(2), 200, 0],
    }
    for name, want in cases.items():
        np.testing.assert_allclose(run(probe, name, x), want, rtol=1e-6)
    positive = np.array([np.inf, np.nan, 1.0], np.float32)
    np.testing.assert_array_equal(run(probe, "log", positive), [np.inf, np.nan, 0])
    np.testing.assert_allclose(run(probe, "log1p", positive), [np.inf, np.nan, math.log(2)], rtol=1e-6)


@needs_compiler
def test_a_loop_gives_the_same_on_any_number_of_threads(probe):
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    one = run(probe, "sum", x, 1)
    np.testing.assert_array_equal(one, run(probe, "sum", x, 7))
    np.testing.assert_allclose(one[0], x[: np.flatnonzero(one != one[0])[0]].sum(), rtol=1e-5)
    assert run(probe, "sum", x[:0]).size == 0


THROWS = """
#include "parallel.h"
extern "C" int throws(int threads, int where) {
    return parallel::status_of([=] {
        parallel::parallel_for(8, threads, [=](int64_t i) { if (i == where) throw std::bad_alloc(); });
    });
}
"""


@needs_compiler
def test_memory_that_runs_out_in_any_thread_is_a_memory_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(build.CACHE, str(tmp_path / "kernels"))
    source = tmp_path / "throws.cpp"
    source.write_text(THROWS)
    throws = library("throws", [source]).throws
    declare(throws, ctypes.c_int, ctypes.c_int)
    for threads in (1, 4):
        assert throws(threads, -1) == 0
        for where in range(8):
            with pytest.raises(MemoryError, match="kernel throws: no memory"):
                throws(threads, where)


@needs_compiler
def test_a_library_is_compiled_once_per_content(tmp_path: Path, monkeypatch, capfd):
    monkeypatch.setenv(build.CACHE, str(tmp_path / "kernels"))
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" int answer() { return 41; }')
    assert library("answer", [source]).answer() == 41
    assert "compiling the kernel answer" in capfd.readouterr().err
    assert library("answer", [source]) is library("answer", [source])
    forget()
    assert library("answer", [source]).answer() == 41
    assert capfd.readouterr().err == ""
    source.write_text('extern "C" int answer() { return 42; }')
    assert library("answer", [source]).answer() == 42
    assert "compiling the kernel answer" in capfd.readouterr().err
    assert len(list((tmp_path / "kernels").glob("*.so"))) == 2


@needs_compiler
def test_the_compiler_names_itself(tmp_path: Path, monkeypatch):
    assert any(digit.isdigit() for digit in build.compiler() or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert build.compiler() is None


@needs_compiler
def test_an_error_of_the_compiler_is_one_line(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(build.CACHE, str(tmp_path / "kernels"))
    source = tmp_path / "broken.cpp"
    source.write_text("int f() { return nonsense; }\n")
    with pytest.raises(BuildError, match=r"kernel broken: .* failed: .*nonsense") as caught:
        library("broken", [source])
    assert len(str(caught.value.args[0]).splitlines()) == 1
    assert not list((tmp_path / "kernels").glob("*.so"))


@needs_compiler
def test_a_cache_that_cannot_be_written_names_the_remedy(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv(build.CACHE, raising=False)
    monkeypatch.setenv("XARCH_HOME", str(tmp_path / "file"))
    source = tmp_path / "answer.cpp"
    source.write_text("")
    with pytest.raises(BuildError, match="XARCH_HOME"):
        library("answer", [source])


def test_no_compiler_is_a_reason(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert why_not() == "no C++ compiler was found (g++ or clang++)"
    monkeypatch.setenv("CXX", "mycc")
    assert why_not() == "the C++ compiler in the environment variable CXX, 'mycc', was not found"
    with pytest.raises(BuildError, match="mycc"):
        library("answer", [])
