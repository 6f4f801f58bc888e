"""The same input gives the same bytes in every process, whatever the hash seed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys, torch, fxhash
from tests.models import MODELS
torch.set_num_threads(1)
for name in ("ResidualConvNet", "TiedEmbedding", "LSTM", "MixedTypes"):
    torch.manual_seed(0)
    gm = fxhash.transform(MODELS[name][0](), 0.6, seed=3)
    fxhash.save(gm, sys.argv[1] + name)
    print(gm.code, fxhash.lower_for_deploy(gm).code)
inputs = [MODELS["ResidualConvNet"][1]()]
gm = fxhash.transform(MODELS["ResidualConvNet"][0](), 0.6, seed=3, init="pretrained", calibration=inputs)
fxhash.save(gm, sys.argv[1] + "calibrated")
"""


@pytest.mark.slow
def test_bytes_are_equal_across_processes(tmp_path):
    digests = set()
    for hash_seed in ("0", "1", "4242"):
        prefix = str(tmp_path / hash_seed)
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, prefix],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.getcwd()},
            capture_output=True,
            check=True,
        )
        digest = hashlib.sha256(result.stdout)
        for file in sorted(tmp_path.glob(f"{hash_seed}*")):
            digest.update(file.read_bytes())
        digests.add(digest.hexdigest())
    assert len(digests) == 1
