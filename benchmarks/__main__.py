"""`python -m benchmarks NAME [--json -]`: run one benchmark and print its table, or one JSON object.

With `--json FILE` the object goes to a file; with `--json -` it is the last line of standard output. In both
`provenance` says which code made it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.provenance import provenance

BENCHMARKS = {
    "cohorts.controls": "what simple readers and oracles find in the made cohorts",
    "compress_3d": "a trained 3-D ResNet made small: RMSE; a plan for one of 63.5 M parameters: time",
    "cpic_cohort": "C-PIC and every baseline on made and real cohorts: R2, RMSE, intervals",
    "cpic_cross": "cross-approximation against tntorch and teneva: evaluations, time, error",
    "cpic_encode": "encoding a train's voxels in tubes, planes and bricks, against single cubes",
    "cpic_gradient": "gradients with fixed indices against tntorch's cross_forward; index batching",
    "cpic_predict": "one stored scan, C-PIC against a dense ResNet-34: seconds and memory, cold and warm",
    "cpic_projection": "feature projection by the Gram matrix against tntorch's rounded stack",
    "cpic_silent": "errors that go unnoticed: a kink in six dimensions, and the certificate's coverage",
    "cpic_train": "one training step of 20 stored scans, C-PIC against a dense ResNet-34",
    "cubes": "2,000 random cubes from a chunked volume: ours, zarr, Dask, tensorstore, memmap",
    "intervals": "coverage and width of conformal intervals on made and on real cohorts",
    "out_of_core": "C-PIC's forward pass on procedural volumes from 256^3 to 8192^3",
    "putt_bound": "a bound on every voxel of real scans: sizes against the best lossless codec",
    "putt_fit": "cubes of real scans as trains: distance from the certified bound, seconds, ms a step",
    "putt_predict": "C-PIC on compressed scans against the originals: features, answers, bytes read",
    "putt_rate": "rate and distortion of every compressor on real scans: CT, MR, and over time",
    "putt_restore": "noise and gaps in cubes of real scans: trains, descents, and what needs no train",
    "putt_scale": "compressing 256^3 to 1024^3, streamed: speed, memory, one tile, an overview",
    "putt_tiles": "tiles of real scans as trains of integers: bytes over lzma, ms to code and to read one",
    "sttp_counts": "parameters of STTP and SVDP networks against the official counts, to the unit",
    "sttp_learning": "STTP against SVDP on CIFAR-10 at an equal budget; a GAN's singular values",
    "sttp_speed": "orthonormal frames against torch's product of reflections; a layer's step against dense",
    "rsdtr_accuracy": "a compressed ResNet-20 on CIFAR-10: accuracy against SVD, Tucker-2 and TensorLy-Torch",
    "rsdtr_resnet": "tensor rings of pretrained ResNets: the paper's search and ours, storage, MACs, time",
    "service": "uploads, 1,000 jobs and 200 pollers on one machine, against a raw copy and a bare route",
    "results": "docs/results.md and its figures, from what other benchmarks wrote under docs/results",
}


def main() -> int:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--json", metavar="FILE", help="write one JSON object instead of a table; - is stdout"
    )
    parser.add_argument("--only", metavar="CASES", help="some of a benchmark's cases, with commas between")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are loaded
    code = provenance()  # of what is run, whatever is changed meanwhile
    module = import_module(f"benchmarks.{options.name}")
    result = module.run() if options.only is None else module.run(options.only.split(","))
    if options.json is None:
        module.show(result)
        return 0
    document = json.dumps({**result, "provenance": code}, allow_nan=False)
    if options.json == "-":
        print(document, flush=True)
    else:
        Path(options.json).write_text(document + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
