import platform
import time

import pytest
import torch

from lightning_compress.errors import InputError
from lightning_compress.evaluation.runtimes.runtime import TimeLimit, precision_caveat
from lightning_compress.evaluation.settings import BenchmarkSettings
from lightning_compress.quantization import PRECISIONS


def test_the_caveat_of_a_precision_is_named(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for has in (True, False):
        monkeypatch.setattr(
            torch.cpu,
            "get_capabilities",
            lambda has=has: dict.fromkeys(["avx512_bf16", "avx512_fp16", "avx512_vnni"], has),
        )
        assert (precision_caveat("bf16", "cpu", fused=False) is None) == has
        assert (precision_caveat("fp16", "cpu", fused=False) is None) == has
        assert (precision_caveat("int8-dynamic", "cpu", fused=True) is None) == has
        assert precision_caveat("fp32", "cpu", fused=False) is None
        unfused = precision_caveat("int8-static", "cpu", fused=False)
        # Fusing helps only with the instructions.
        slow = precision_caveat("int8-static", "cpu", fused=True)
        assert unfused == (PRECISIONS["int8-static"].unfused_caveat if has else slow)
        weight_only = precision_caveat("int4-weight", "cpu", fused=True)
        assert weight_only == PRECISIONS["int4-weight"].caveat


def test_a_precision_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="precisions: there is no 'int3'; there are fp32, bf16"):
        BenchmarkSettings(precisions=["int3"])  # type: ignore[list-item]


def test_steps_share_a_time_limit():
    limit = TimeLimit(0.05)
    limit.check()
    assert 0 < limit.left <= 0.05
    time.sleep(0.06)
    assert limit.left == 0
    with pytest.raises(TimeoutError, match=r"it took longer than 0\.05 s \(timeout_s\)"):
        limit.check()
