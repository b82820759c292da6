"""Small tensors are worked on by one thread: whoever asks has as many as before, whatever happened."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_fields import ArraySource
from small_cohorts import smooth_scans
from threadpoolctl import threadpool_info, threadpool_limits

from models.cpic.encoder import CpicEncoder, LearnedCpic
from models.cpic.fibres import FibreConfig
from models.learning.linear import LinearHead
from models.learning.task import Task
from models.regressors.readouts import FibreReadout, FibreReadoutConfig
from models.threads import one_thread
from models.training import ignore

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def three_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def test_threads_come_back_after_an_error_too() -> None:
    @one_thread()
    def failing() -> None:
        assert torch.get_num_threads() == 1
        raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert torch.get_num_threads() == 3


def test_a_readout_works_with_one_thread() -> None:
    seen = []

    class Watched(CpicEncoder):
        def forward(self, boxes):
            seen.append(torch.get_num_threads())
            return super().forward(boxes)

    encoder = LearnedCpic(Watched(1, 2, 0, hidden=(3,)).eval().requires_grad_(False))
    scans = [ArraySource(scan) for scan in smooth_scans(4, 0, (6, 6, 6))[0]]
    config = FibreReadoutConfig(FibreConfig(layout="tt", rank=2), counts=(2,), poolings=(1,))
    readout, features = FibreReadout.of(
        scans, list("abcd"), lambda scan: encoder, config, seed=0, device=CPU, report=ignore
    )
    assert np.allclose(readout.see(scans[0]).features(), features[0], atol=1e-9)
    assert set(seen) == {1}
    assert torch.get_num_threads() == 3


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_numpy_works_with_one_thread_too() -> None:
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with one_thread():
            assert blas_threads() == {1}
        assert blas_threads() == before


def test_a_head_has_the_same_bits_whatever_threads_there_are() -> None:
    rng = np.random.default_rng(0)
    F, y = rng.normal(size=(198, 216)), rng.normal(size=198)
    digests = set()
    for threads in (1, 2, 3):
        with threadpool_limits(threads, user_api="blas"):
            head = LinearHead.fit(F, y, [f"p{k // 9}" for k in range(198)], Task())
            digests.add(head.manifest()["digest"] + head.predict(F).tobytes().hex())
    assert len(digests) == 1
