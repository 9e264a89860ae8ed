import ctypes
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import quire_kernels
from quire_kernels import KernelInputError, KernelSettingError
from quire_kernels.backends import Backend, choose_cpu_backend, cpp_backend, torch_backend
from quire_kernels.library import available_isas, load_library
from quire_kernels.settings import KernelSettings, read_settings


def test_the_widest_variant_is_chosen() -> None:
    if not available_isas():
        pytest.skip("no compiled variant")
    assert choose_cpu_backend(KernelSettings(), available_isas()).isa == available_isas()[0]


def test_torch_can_be_forced() -> None:
    backend = choose_cpu_backend(KernelSettings(implementation="torch"), available_isas())
    assert (backend.name, backend.isa) == ("torch", "torch")


def test_without_a_variant_torch_runs_and_says_what_that_costs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose_cpu_backend(KernelSettings(), ()).name == "torch"
    assert "third of the speed" in caplog.text


def test_cpp_forced_without_a_variant_is_refused() -> None:
    with pytest.raises(KernelSettingError, match="QUIRE_KERNELS=cpp needs a compiled variant"):
        choose_cpu_backend(KernelSettings(implementation="cpp"), ())


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    with pytest.raises(KernelSettingError, match="got 'sse9'"):
        cpp_backend("sse9")


def test_each_variant_reports_itself(compiled: Backend) -> None:
    assert compiled.isa in available_isas()
    assert compiled.name == "cpp"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, KernelSettings()),
        ({"QUIRE_KERNELS": "", "QUIRE_ISA": ""}, KernelSettings()),
        ({"QUIRE_KERNELS": "torch"}, KernelSettings(implementation="torch")),
        ({"QUIRE_ISA": "avx2"}, KernelSettings(isa="avx2")),
    ],
)
def test_settings(environ: dict[str, str], expected: KernelSettings) -> None:
    assert read_settings(environ) == expected


@pytest.mark.parametrize("name", ["QUIRE_KERNELS", "QUIRE_ISA"])
def test_bad_settings_are_named(name: str) -> None:
    with pytest.raises(KernelSettingError, match=f"{name} must be one of .*, got 'fast'"):
        read_settings({name: "fast"})


def test_the_environment_forces_torch_in_a_process() -> None:
    code = "import quire_kernels; print(quire_kernels.isa())"
    environment = {**os.environ, "QUIRE_KERNELS": "torch"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "torch"


def test_the_kernels_bring_no_second_openmp_runtime(compiled: Backend) -> None:
    """Two pools that spin would fight for the cores."""
    del compiled
    maps = Path("/proc/self/maps").read_text().splitlines()
    runtimes = {line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line}
    assert len(runtimes) == 1, runtimes


def test_progress_moves_with_every_call(cpu_backend: Backend) -> None:
    cell = ctypes.c_int64(0)
    quire_kernels.set_progress_counter(ctypes.addressof(cell))
    try:
        x = torch.randn(2, 32)
        packed = cpu_backend.pack_linear(torch.randn(4, 32))
        for count, call in enumerate(
            [
                lambda: cpu_backend.linear(x, packed),
                lambda: cpu_backend.rms_norm(x, torch.ones(32), 1e-5),
                lambda: cpu_backend.silu_mul(x),
                lambda: cpu_backend.argmax(x),
            ],
            start=1,
        ):
            call()
            assert cell.value == count
    finally:
        quire_kernels.set_progress_counter(None)
    cpu_backend.silu_mul(x)
    assert cell.value == 4


def test_num_threads_must_be_positive() -> None:
    with pytest.raises(KernelInputError, match="num_threads must be >= 1, got 0"):
        quire_kernels.set_num_threads(0)


def test_torch_keeps_to_one_thread_beside_the_kernels_pool() -> None:
    before = torch.get_num_threads()
    try:
        quire_kernels.set_num_threads(3)
        assert torch.get_num_threads() == (1 if quire_kernels.isa() != "torch" else 3)
    finally:
        quire_kernels.backend("cpu").set_num_threads(before)
        torch.set_num_threads(before)


def test_public_functions_serve_by_device() -> None:
    weight = quire_kernels.pack_linear(torch.randn(5, 8))
    x = torch.randn(3, 8)
    query, key = torch.randn(3, 4, 8), torch.randn(3, 2, 8)
    caches = torch.zeros(2, 1, 16, 2, 8)
    positions = torch.arange(3)
    quire_kernels.rope(query, key, positions, torch.randn(3, 8))
    quire_kernels.write_kv(key, key, *caches, positions)
    starts, lens = torch.tensor([0, 3]).int(), torch.tensor([3]).int()
    tables = torch.zeros(1, 1, dtype=torch.int32)
    out = quire_kernels.paged_attention(query, *caches, starts, lens, tables, 0.3)
    shapes = {
        "linear": quire_kernels.linear(x, weight).shape,
        "embedding": quire_kernels.embedding(positions, weight).shape,
        "rms_norm": quire_kernels.rms_norm(x, torch.ones(8), 1e-5).shape,
        "add_rms_norm": quire_kernels.add_rms_norm(x, x, torch.ones(8), 1e-5)[1].shape,
        "silu_mul": quire_kernels.silu_mul(x).shape,
        "argmax": quire_kernels.argmax(x).shape,
        "paged_attention": out.shape,
    }
    assert shapes == {
        "linear": (3, 5),
        "embedding": (3, 8),
        "rms_norm": (3, 8),
        "add_rms_norm": (3, 8),
        "silu_mul": (3, 4),
        "argmax": (3,),
        "paged_attention": (3, 4, 8),
    }
    assert quire_kernels.isa() in (*available_isas(), "torch")


def test_libraries_are_loaded_once(compiled: Backend) -> None:
    assert load_library(compiled.isa) is load_library(compiled.isa)
    assert torch_backend() is torch_backend()
